"""What the same run would cost on each machine: hours × published price × count, or "unknown" without such a price.

Compute only: storage, transfer and the minutes that a cloud bills before the script starts are not in it. The hours are
the same on every machine, as if each were as fast as the one they were measured on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

from estimates import catalog, pricebook
from estimates.catalog import Machine, Price
from estimates.pricebook import Book

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class CostRow:
    """One machine's hours × price × count. What is not known is None: the price, the hours, and then the cost."""

    machine: Machine
    region: str
    """The region that was asked for; where none was, the price's."""
    price: Price | None
    hours: Decimal | None
    count: int
    usd: Decimal | None
    """Not rounded, but for the 28th digit, upwards; `format_usd` and `as_json` round it up for show."""


def rows(
    seconds: float | Decimal | None,
    *,
    count: int = 1,
    regions: Mapping[str, str] | None = None,
    clouds: Iterable[str] = ("sagemaker", "vertex"),
) -> tuple[CostRow, ...]:
    """A row for each machine whose price is known, cheapest first.

    *regions* names the region of a cloud: then only machines with a price there. In a cloud that it does not name, each
    machine's price is the one that catalog.price finds, in the default region or elsewhere; CostRow.region says where.

    Raises as row_for does.
    """
    asked = dict(regions or {})
    found = [
        row_for(machine, seconds, count, asked.get(cloud)) for cloud in clouds for machine in catalog.machines(cloud)
    ]
    priced = [(row.price.usd_per_hour, row.machine.name, row) for row in found if row.price]
    return tuple(row for _, _, row in sorted(priced, key=lambda entry: entry[:2]))


def row_for(machine: Machine, seconds: float | Decimal | None, count: int = 1, region: str | None = None) -> CostRow:
    """What *count* of *machine* cost for *seconds* of wall clock: billed by the second, a begun second counts whole.

    Raises CatalogError if the cloud has no such region; ValueError if *seconds* is negative or not finite, or *count*
    under 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}, and at least one machine is needed")
    price, _ = prices_of(machine, region)
    place = region or (price.region if price else catalog.DEFAULT_REGION[machine.cloud])
    if seconds is None:
        return CostRow(machine, place, price, None, count, None)
    billed = _whole_seconds(seconds)
    with localcontext(rounding=ROUND_CEILING):
        hours = Decimal(billed) / SECONDS_PER_HOUR
        # Divided last: hours × price would carry the rounding of hours into the next cent.
        usd = price.usd_per_hour * count * billed / SECONDS_PER_HOUR if price else None
    return CostRow(machine, place, price, hours, count, usd)


def prices_of(
    machine: Machine, region: str | None, *, spot: bool = False, book: Book | None = None
) -> tuple[Price | None, Price | None]:
    """What the user pays for an hour of *machine*, by the terms of *book* (default: the current one), and the list price.

    On spot SageMaker has a rate of its own in few regions, and elsewhere the one on demand: the saving is in the seconds.
    Raises CatalogError if the cloud has no such region.
    """
    book = book or pricebook.current()
    listed = book.price(machine, region, "spot") if spot else None
    if listed is None and not (spot and machine.cloud == "vertex"):
        listed = book.price(machine, region)
    place = region or (listed.region if listed else catalog.DEFAULT_REGION[machine.cloud])
    return book.own_price(machine, listed, place), listed


def format_usd(usd: Decimal | None) -> str:
    """`$1,234.57`, under a dollar `$0.0042`, both rounded up; `unknown` for None. What is given back is `−$0.4600`."""
    if usd is None:
        return "unknown"
    sign, size = ("−", -usd) if usd < 0 else ("", usd)
    with localcontext(rounding=ROUND_FLOOR if sign else ROUND_CEILING):
        fine = f"{size:.4f}"
        return f"{sign}${fine}" if size > 0 and Decimal(fine) < 1 else f"{sign}${size:,.2f}"


def as_json(row: CostRow) -> dict[str, str | float | int | None]:
    """*row* for json.dumps: money as strings (*usd* to the millionth, rounded up), what is not known as null."""
    machine, price = row.machine, row.price
    with localcontext(rounding=ROUND_CEILING):
        usd = None if row.usd is None else f"{row.usd:.6f}"
    return {
        "machine": machine.name,
        "cloud": machine.cloud,
        "region": row.region,
        "vcpus": machine.vcpus,
        "memory_gib": machine.memory_gib,
        "gpu": machine.gpu,
        "gpu_count": machine.gpu_count,
        "usd_per_hour": str(price.usd_per_hour) if price else None,
        "hours": None if row.hours is None else round(float(row.hours), 6),
        "count": row.count,
        "usd": usd,
        "price_as_of": price.dated if price else None,
        "price_source": price.source if price else None,
        "price_grade": price.grade if price else None,
        "component": price.component if price else None,
    }


def _whole_seconds(seconds: float | Decimal) -> int:
    exact = Decimal(seconds)
    if not exact.is_finite() or exact < 0:
        raise ValueError(f"a run cannot take {seconds} seconds")
    return math.ceil(exact)
