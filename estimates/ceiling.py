"""The most that a request can be billed: machines and their disks until the hard stop, the time to stop, the warm pool.

Linear in the seconds of the hard stop, and so turned round exactly: a budget becomes the seconds that it buys. Reckoned in
integers and Decimals, never in floats. What a request puts no limit to (requests to storage, logs, transfer, the upload of
the results after the stop) is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, localcontext
from fractions import Fraction

from estimates import pricebook
from estimates.cost import SECONDS_PER_HOUR, format_usd
from estimates.pricebook import Book, Machine, Price, Rate

# No source says what a GB-month is divided by; a second of the shortest month costs the most.
SECONDS_PER_MONTH = 28 * 86_400
DISK_ITEMS = {"sagemaker": "training_storage", "vertex": "pd_ssd"}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What *count* machines with a disk of *disk_gb* each can be billed, by the second, a begun one whole."""

    price: Price
    """Of one machine: the dearest that can hold; see `of`."""
    disk: Rate | None
    """None: no disk is billed."""
    count: int
    disk_gb: int
    extra_seconds: int
    """Billed after the hard stop: the time to stop, and that for which the machines are kept warm."""
    notes: tuple[str, ...] = ()

    @property
    def usd_per_second(self) -> Fraction:
        """USD for one second of all machines and their disks, exactly."""
        machines = Fraction(self.price.usd_per_hour) / SECONDS_PER_HOUR
        disks = Fraction(self.disk.usd) * self.disk_gb / SECONDS_PER_MONTH if self.disk else Fraction(0)
        return self.count * (machines + disks)

    def usd_at(self, seconds: int | Decimal) -> Decimal:
        """USD if the hard stop is after *seconds*; not rounded but for the 28th digit, upwards. Raises ValueError under 0."""
        if seconds < 0:
            raise ValueError(f"a hard stop cannot be after {seconds} seconds")
        usd = self.usd_per_second * (math.ceil(seconds) + self.extra_seconds)
        with localcontext(rounding=ROUND_CEILING):
            return Decimal(usd.numerator) / usd.denominator

    def seconds_within(self, budget: Decimal) -> int:
        """The most whole seconds whose usd_at is not over *budget* USD; -1 where not even a stop at once is."""
        seconds = math.floor(Fraction(budget) / self.usd_per_second) - self.extra_seconds
        if seconds >= 0 and self.usd_at(seconds) > budget:  # the 28th digit, rounded up
            seconds -= 1
        return max(seconds, -1)

    def shown(self, seconds: int | Decimal) -> str:
        """usd_at for people, rounded up: `$57.31`, with `~` in front where the price is derived."""
        return f"{self._derived}{format_usd(self.usd_at(seconds))}"

    @property
    def _derived(self) -> str:
        return "" if self.price.published else "~"

    @property
    def words(self) -> str:
        """`3.825 USD an hour, 30 GB of storage at 0.14 USD a GB-month`, for one machine; `~28.152` where it is derived."""
        said = f"{self._derived}{self.price.usd_per_hour} USD an hour"
        if self.disk is None:
            return said
        return f"{said}, {self.disk_gb} GB of storage at {self.disk.usd} USD a {self.disk.unit}"


def of(
    machine: Machine,
    *,
    count: int = 1,
    region: str,
    spot: bool = False,
    disk_gb: int = 0,
    keep_alive_seconds: int = 0,
    stop_seconds: int = 0,
    book: Book | None = None,
) -> Ceiling | None:
    """The ceiling of *count* machines in *region* by *book* (default: the current one); None where a price is not known.

    disk_gb: of each machine: the ML storage volume of SageMaker, which machines with local NVMe are not given, or the boot
    disk of Vertex AI. The price is the list's, or the user's contract's where that is higher or the only one; a discount
    lowers no ceiling. On spot SageMaker can bill either rate, and the dearer counts; Vertex AI bills its spot price with the
    fee, and where that is not known the price on demand counts. Without a disk price in the region the dearest known one
    counts, and a note says so.

    Raises CatalogError if the cloud has no such region; ValueError if *count* is under 1 or a number below 0.
    """
    if count < 1 or min(disk_gb, keep_alive_seconds, stop_seconds) < 0:
        raise ValueError("a ceiling is of at least one machine, and of no negative size or time")
    book = book or pricebook.current()
    price = _price(book, machine, region, spot)
    if price is None:
        return None
    needs_disk = disk_gb > 0 and not (machine.cloud == "sagemaker" and machine.local_nvme_gb)
    disk, notes = _disk(book, machine.cloud, region) if needs_disk else (None, ())
    if needs_disk and disk is None:
        return None
    return Ceiling(price, disk, count, disk_gb if needs_disk else 0, keep_alive_seconds + stop_seconds, notes)


def _price(book: Book, machine: Machine, region: str, spot: bool) -> Price | None:
    """The dearest at which the machine can be billed; None where it is not known."""
    full = book.price(machine, region)
    reduced = book.price(machine, region, "spot") if spot else None
    if spot and machine.cloud == "vertex":
        full = reduced or full
    own = book.own_price(machine, full, region)
    return None if full is None and own is None else _dearest((full, reduced, own))


def _dearest(prices: Iterable[Price | None]) -> Price | None:
    return max((price for price in prices if price is not None), key=lambda price: price.usd_per_hour, default=None)


def _disk(book: Book, cloud: str, region: str) -> tuple[Rate | None, tuple[str, ...]]:
    """The price of a disk in *region*, else the dearest that is known of the cloud, and the words that say so."""
    item = DISK_ITEMS[cloud]
    here = book.rate(cloud, item, region)
    if here is not None and here.region in (region, "*"):
        return here, ()
    elsewhere = sorted({rate.region for rate in book.rates if rate.item == item})
    known = [rate for rate in (book.rate(cloud, item, place) for place in elsewhere) if rate is not None]
    dearest = max(known, key=lambda rate: (rate.usd, rate.region), default=None)
    if dearest is None:
        return None, ()
    words = f"the price of disks in {region} is not known: the dearest that is, {dearest.region}'s, is taken"
    return dearest, (words,)
