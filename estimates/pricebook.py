"""The price book: what an hour of a machine costs, and what everything else costs that a training job is billed for.

A price is *published* (read from a price list, a bill or a vendor's page) or *derived*: a published price of the machine
beneath it, of EC2 or Compute Engine, times a ratio that was read. A derived one carries its formula and is shown with `~`.
What is neither is not known, and None. Prices that were read since, by `orchestrate prices refresh`, lie in files of the
same columns beside the shipped ones, and the newest reading wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import cache

from estimates.catalog import Machine, Price

STALE_DAYS = 60


@dataclass(frozen=True, slots=True)
class Rate:
    """What one unit of something that is not a machine costs: disks, storage, logs, transfer."""

    item: str
    usd: Decimal
    unit: str
    """`GB-month`, `GiB-month`, `GB`, `1,000 requests`."""
    region: str
    """A region, or `*` where it is the same everywhere or no source tells them apart."""
    as_of: date
    source: str
    published: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """A user's own conditions: what is written under `[prices]` of orchestrate.toml.

    discounts: pattern → fraction off the list price, 0 to 1. contract: pattern → USD an hour. A pattern is a cloud
    (`sagemaker`), a machine (`ml.p3.2xlarge`), a machine with `*`, each with `@REGION` or without; the longest that matches wins.
    """

    discounts: Mapping[str, Decimal] = field(default_factory=dict)
    contract: Mapping[str, Decimal] = field(default_factory=dict)
    source: str = "orchestrate.toml"


@dataclass(frozen=True)
class Book:
    """All prices, as tables and files have them, and the user's terms."""

    machines: Mapping[tuple[str, str], tuple[Price, ...]]
    """By cloud and machine: every published row."""
    rates: tuple[Rate, ...] = ()
    terms: Terms = Terms()

    def price(self, machine: Machine, region: str | None = None, market: str = "on_demand") -> Price | None:
        """What an hour of *machine* costs; see catalog.price. Terms are not applied: this is the list price."""
        raise NotImplementedError

    def own_price(self, machine: Machine, listed: Price | None, region: str) -> Price | None:
        """What the user pays: *listed* under the terms; the same object where they say nothing of it."""
        raise NotImplementedError

    def rate(self, cloud: str, item: str, region: str) -> Rate | None:
        """The rate of *item* in *region*, else the one of `*`, else None."""
        raise NotImplementedError


@cache
def shipped() -> Book:
    """The book of the tables in `catalog/`, as released."""
    raise NotImplementedError


_CURRENT: ContextVar[Book | None] = ContextVar("price book", default=None)


def current() -> Book:
    """The book that this context reckons with: the shipped one, unless `using` says otherwise."""
    return _CURRENT.get() or shipped()


@contextmanager
def using(book: Book) -> Iterator[Book]:
    """Reckon with *book* within the block."""
    token = _CURRENT.set(book)
    try:
        yield book
    finally:
        _CURRENT.reset(token)


def days_old(as_of: date, today: date) -> int | None:
    """How old a price is, if that is over STALE_DAYS days and so has to be said; else None."""
    age = (today - as_of).days
    return age if age > STALE_DAYS else None
