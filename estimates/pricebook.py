"""The price book: what an hour of a machine costs, and what everything else costs that a training job is billed for.

A price is *published* (read from a price list, a bill or a vendor's page) or *derived*: a published price of the machine
beneath it, of EC2 or Compute Engine, times a ratio that was read. A derived one carries its formula and is shown with `~`.
What is neither is not known, and None. Prices that were read since, by `orchestrate prices refresh`, lie in files of the
same columns beside the shipped ones, and the newest reading wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_CEILING, Decimal, localcontext
from functools import cache
from pathlib import Path

from estimates import accelerators, derived, readings
from estimates.readings import Rate
from estimates.rows import COMPONENTS_BY_TRUST, DEFAULT_REGION, TABLES, Machine, Price, check_region, exact_usd, table
from estimates.rows import machines as known_machines

__all__ = [
    "STALE_DAYS", "Book", "FreeTier", "Machine", "Price", "Rate", "Terms", "current", "days_old", "read_files", "shipped",
    "using",
]  # fmt: skip

STALE_DAYS = 60
COMPONENTS = {"on_demand": COMPONENTS_BY_TRUST, "spot": ("SpotTraining", "Training")}


@dataclass(frozen=True, slots=True)
class Terms:
    """A user's own conditions: what is written under `[prices]` of orchestrate.toml.

    discounts: pattern → fraction off the list price, 0 to 1. contract: pattern → USD an hour. A pattern is a cloud
    (`sagemaker`), a machine (`ml.p3.2xlarge`), a machine with `*`, each with `@REGION` or without; the longest that matches wins.
    """

    discounts: Mapping[str, Decimal] = field(default_factory=dict)
    contract: Mapping[str, Decimal] = field(default_factory=dict)
    source: str = "orchestrate.toml"


@dataclass(frozen=True, slots=True)
class FreeTier:
    """What a cloud gives a new account: so many hours a month on these machines, for the first months."""

    machines: tuple[str, ...]
    hours_per_month: Decimal
    first_months: int
    source: str
    as_of: date
    note: str


@dataclass(frozen=True)
class Book:
    """All prices, as tables and files have them, and the user's terms."""

    machines: Mapping[tuple[str, str], tuple[Price, ...]]
    """By cloud and machine: every published row. A GPU that is attached stands under its name in the API."""
    rates: tuple[Rate, ...] = ()
    terms: Terms = Terms()
    derives: bool = True
    """Whether prices are derived where none is published."""

    def price(self, machine: Machine, region: str | None = None, market: str = "on_demand") -> Price | None:
        """What an hour of *machine* costs; see catalog.price. Terms are not applied: this is the list price.

        Raises CatalogError if the cloud has no such region.
        """
        if region is not None:
            check_region(region, machine.cloud)
        default = DEFAULT_REGION[machine.cloud]
        here = self._price_in(machine, region or default, market)
        if here is not None or region is not None:
            return here
        part_of_world = default.split("-")[0]
        elsewhere = [self._price_in(machine, place, market) for place in self._regions_of(machine) if place != default]
        return min(
            (found for found in elsewhere if found is not None),
            key=lambda found: (not found.region.startswith(part_of_world), *_trust(found)),
            default=None,
        )

    def own_price(self, machine: Machine, listed: Price | None, region: str) -> Price | None:
        """What the user pays: *listed* under the terms; the same object where they say nothing of it.

        A contract's price is one on demand and comes before any discount; a discount holds for spot prices too. Both
        are given by patterns: see Terms.
        """
        contract = (
            None if listed is not None and listed.market == "spot" else _match(self.terms.contract, machine, region)
        )
        if contract is not None:
            return _contract(contract, region, self.terms.source)
        discount = _match(self.terms.discounts, machine, region)
        if listed is None or not discount:
            return listed
        formula = f"{listed.formula or exact_usd(listed.usd_per_hour)} − {derived.plain(discount * 100)} %"
        usd = derived.plain(listed.usd_per_hour * (1 - discount))
        return replace(
            listed, usd_per_hour=usd, formula=formula, source=f"{listed.source}; discount: {self.terms.source}"
        )

    def rate(self, cloud: str, item: str, region: str) -> Rate | None:
        """The rate of *item* in *region*, else the one of `*`, else the default region's, which says so; else None.

        In a region the newest published row wins; a disk of Vertex AI that has none costs Compute Engine's and the fee.
        """
        here = self._rate_in(cloud, item, region) or self._rate_in(cloud, item, "*")
        if here is not None:
            return here
        found = self._rate_in(cloud, item, DEFAULT_REGION[cloud])
        if found is None:
            return None
        note = f"{found.region}'s; what it is in {region} was not read"
        return replace(found, published=False, note="; ".join(filter(None, (note, found.note))))

    def free_tier(self, machine: Machine) -> FreeTier | None:
        """What new accounts have free of *machine*; None: nothing that is known."""
        return _free_tiers().get(machine.name)

    def with_terms(self, terms: Terms) -> Book:
        """The same book under *terms*."""
        return replace(self, terms=terms)

    def _rate_in(self, cloud: str, item: str, region: str) -> Rate | None:
        rows = [row for row in self.rates if row.item == item and row.region == region]
        own = _newest(row for row in rows if row.cloud in (cloud, ""))
        if own is not None or cloud != "vertex":
            return own
        return _with_fee(_newest(row for row in rows if row.cloud == derived.BENEATH[cloud]))

    def _price_in(self, machine: Machine, region: str, market: str) -> Price | None:
        rows = self._published(machine.cloud, machine.name, market)
        here = [row for row in rows if row.region == region]
        if here:
            return min(here, key=_trust)
        parts = accelerators.parts(machine.name) if machine.cloud == "vertex" else None
        if parts is not None:
            return self._composed(*parts, region, market)
        return derived.price(machine, region, market) if self.derives else None

    def _composed(self, host: str, gpu: accelerators.Accelerator, count: int, region: str, market: str) -> Price | None:
        """Host and GPUs summed, where both are known. No spot price of such a GPU is."""
        base = self._price_in(known_machines()[host], region, market)
        rows = [row for row in self._published("vertex", gpu.vertex_name, market) if row.region == region]
        if base is None:
            return None
        if rows:
            read = min(rows, key=_trust)
            one, as_of, source, words = read.usd_per_hour, read.as_of, read.source, exact_usd(read.usd_per_hour)
        elif self.derives and region == gpu.region and market == "on_demand":
            one, as_of, source, words = gpu.usd_per_hour, gpu.as_of, f"{gpu.source}; {gpu.note}", gpu.formula
        else:
            return None
        published = base.published and bool(rows)
        return replace(
            base,
            usd_per_hour=derived.plain(base.usd_per_hour + count * one),
            component=base.component if published else "derived",
            as_of=min(base.as_of, as_of),
            source=f"{base.source}; GPU: {source}",
            published=published,
            formula=f"{base.formula or exact_usd(base.usd_per_hour)} + {count} × {gpu.gpu} ({words})",
        )

    def _published(self, cloud: str, name: str, market: str) -> list[Price]:
        rows = self.machines.get((cloud, name), ())
        return [row for row in rows if row.market == market and row.component in COMPONENTS[market]]

    def _regions_of(self, machine: Machine) -> set[str]:
        found = {row.region for row in self.machines.get((machine.cloud, machine.name), ())}
        if self.derives:
            found |= set(derived.regions_of(machine))
        return found


@cache
def shipped() -> Book:
    """The book of the tables in `catalog/`, as released."""
    return Book(readings.prices(TABLES / "prices.csv"), readings.rates(TABLES / "rates.csv"))


def read_files(folder: Path, book: Book | None = None) -> Book:
    """*book* (default: the shipped one) and what was read since: every CSV file of *folder*, if there is such a folder.

    A file has the columns of prices.csv; one called `rates-*.csv` those of rates.csv. Raises CatalogError, naming file
    and line, if one is damaged, has a price that cannot be, or one that was read after tomorrow (UTC): it would win for ever.
    """
    book = book or shipped()
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        return book
    prices, rates = dict(book.machines), book.rates
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)  # two clocks need not agree
    for path in paths:
        if path.name.startswith("rates-"):
            rates += readings.rates(path, tomorrow)
        else:
            for key, found in readings.prices(path, tomorrow).items():
                prices[key] = (*prices.get(key, ()), *found)
    return replace(book, machines=prices, rates=rates)


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


def _trust(row: Price) -> tuple[int, int, Decimal, str]:
    """Sorts the row that is believed first: by component (a derived price last), then the newest, then the dearer."""
    order = COMPONENTS[row.market]
    rank = order.index(row.component) if row.component in order else len(order)
    return rank, -row.as_of.toordinal(), -row.usd_per_hour, row.region


def _contract(usd: Decimal, region: str, source: str) -> Price:
    """A contract holds on the day on which it is asked: it is never stale."""
    today = datetime.now(UTC).date()
    return Price(usd, region, "on_demand", "contract", today, "day", "A", source, "your own contract price")


def _match(patterns: Mapping[str, Decimal], machine: Machine, region: str) -> Decimal | None:
    """The value of the longest pattern that *machine* in *region* matches."""
    fitting = [pattern for pattern in patterns if _fits(pattern, machine, region)]
    return patterns[max(fitting, key=lambda pattern: (len(pattern), pattern))] if fitting else None


def _fits(pattern: str, machine: Machine, region: str) -> bool:
    name, at, place = pattern.partition("@")
    if at and place != region:
        return False
    wanted = ".*".join(map(re.escape, name.split("*")))
    return name == machine.cloud or re.fullmatch(wanted, machine.name) is not None


def _newest(rows: Iterable[Rate]) -> Rate | None:
    """Published before derived, then the newest, then the dearer."""
    return max(rows, key=lambda row: (row.published, row.as_of, row.usd), default=None)


def _with_fee(disk: Rate | None) -> Rate | None:
    """A disk of Compute Engine as a job of Vertex AI pays it."""
    fee = derived.ratio("vertex", disk.item.replace("_", "-")) if disk else None
    if disk is None or fee is None:
        return None
    with localcontext(rounding=ROUND_CEILING):
        usd = derived.plain(disk.usd * fee.ratio)
    source = f"{disk.source}; ratio: {fee.source}, {fee.as_of}"
    return replace(
        disk, usd=usd, source=source, published=False, note=f"Compute Engine {exact_usd(disk.usd)} × {fee.ratio}"
    )


@cache
def _free_tiers() -> dict[str, FreeTier]:
    """By machine."""
    found: dict[str, FreeTier] = {}
    for row in table("free_tier"):
        machines = tuple(row["machines"].split())
        tier = FreeTier(
            machines, Decimal(row["hours_per_month"]), int(row["first_months"]), row["source"],
            date.fromisoformat(row["as_of"]), row["note"],
        )  # fmt: skip
        found |= dict.fromkeys(machines, tier)
    return found
