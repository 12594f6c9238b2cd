"""Prices that nobody published: a published price of the machine beneath, times a ratio that was read.

A SageMaker machine is an EC2 machine, a Vertex AI one a Compute Engine machine. What the service takes more was read on
some families (`catalog/ratios.csv`); for the others there is no derived price. On Vertex AI the surcharge is a management
fee that is not discounted on spot: spot costs Compute Engine's spot price plus the fee on the price on demand.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache

from estimates.retired import retired
from estimates.rows import TABLES, Machine, Price, exact_usd, table

BENEATH = {"sagemaker": "ec2", "vertex": "gce"}
BENEATH_NAMES = {"ec2": "EC2", "gce": "Compute Engine"}


@dataclass(frozen=True, slots=True)
class Base:
    """A published price of a machine of EC2 or Compute Engine."""

    usd_per_hour: Decimal
    as_of: date
    as_of_precision: str
    source: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """What a service costs over the machine beneath it, read on one family."""

    ratio: Decimal
    fee: Decimal | None
    """The part of *ratio* that a spot price bears undiscounted; None: there is no spot price of this service."""
    readings: int
    source: str
    as_of: date
    note: str


def price(machine: Machine, region: str, market: str = "on_demand") -> Price | None:
    """The derived price of *machine* in *region*; None without a base there, without a ratio, or once it is retired there."""
    known = ratio(machine.cloud, machine.name)
    if known is None:
        return None
    gone = retired(machine, region)
    if gone is not None and gone.missing_on is not None:
        return None
    full = base_price(machine, region)
    if full is None:
        return None
    if market == "on_demand":
        return _on_demand(machine, region, full, known)
    spot = base_price(machine, region, market)
    return None if spot is None or known.fee is None else _spot(machine, region, full, spot, known, known.fee)


def base_price(machine: Machine, region: str, market: str = "on_demand") -> Base | None:
    """What the machine beneath *machine* costs; None if that was not read."""
    row = _bases().get((*_beneath(machine), region, market))
    if row is None:
        return None
    usd, as_of, precision, source = next(csv.reader([row]))
    return Base(Decimal(usd), date.fromisoformat(as_of), precision, source)


def regions_of(machine: Machine) -> tuple[str, ...]:
    """The regions in which a price of *machine* may be derived."""
    return () if ratio(machine.cloud, machine.name) is None else _regions().get(_beneath(machine), ())


def ratio(cloud: str, name: str) -> Ratio | None:
    """The ratio of a machine by its *name*, or of a disk (`pd-ssd`): its size's, else its family's."""
    family, _, size = name.rpartition(".") if cloud == "sagemaker" else name.partition("-")
    known = _ratios()
    return known.get((cloud, family, size)) or known.get((cloud, family, "*"))


def plain(usd: Decimal) -> Decimal:
    """*usd* without the zeros that a product leaves behind: 28.152, not 28.1520."""
    short = usd.normalize()
    return short if int(short.as_tuple().exponent) <= 0 else short.quantize(Decimal(1))


def _beneath(machine: Machine) -> tuple[str, str]:
    """Cloud and name of the machine beneath, as base_prices.csv has them."""
    return BENEATH[machine.cloud], machine.name.removeprefix("ml.")


def _on_demand(machine: Machine, region: str, full: Base, known: Ratio) -> Price:
    beneath = BENEATH_NAMES[BENEATH[machine.cloud]]
    formula = f"{beneath} {exact_usd(full.usd_per_hour)} × {known.ratio}"
    return _derived(region, "on_demand", full.usd_per_hour * known.ratio, formula, full, known)


def _spot(machine: Machine, region: str, full: Base, spot: Base, known: Ratio, fee: Decimal) -> Price:
    beneath = BENEATH_NAMES[BENEATH[machine.cloud]]
    formula = f"{beneath} spot {exact_usd(spot.usd_per_hour)} + {fee} × {exact_usd(full.usd_per_hour)} on demand"
    return _derived(region, "spot", spot.usd_per_hour + fee * full.usd_per_hour, formula, spot, known)


def _derived(region: str, market: str, usd: Decimal, formula: str, base: Base, known: Ratio) -> Price:
    return Price(
        usd_per_hour=plain(usd),
        region=region,
        market=market,
        component="derived",
        as_of=base.as_of,
        as_of_precision=base.as_of_precision,
        grade="derived",
        source=f"{base.source}; ratio: {known.source}, {known.as_of}",
        note=known.note,
        published=False,
        formula=formula,
    )


@cache
def _bases() -> dict[tuple[str, str, str, str], str]:
    """By cloud, machine, region and market: the rest of the row, not yet parsed. 2,700 rows are read and few are asked for.

    The first four cells hold no comma and no quote, as a test of the table holds.
    """
    found = {}
    for line in (TABLES / "base_prices.csv").read_text("utf-8").split("\n")[1:-1]:
        cloud, machine, region, market, rest = line.split(",", 4)
        found[cloud, machine, region, market] = rest
    return found


@cache
def _regions() -> dict[tuple[str, str], tuple[str, ...]]:
    """The regions with a base price, by cloud and machine."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for cloud, machine, region, _ in _bases():
        found.setdefault((cloud, machine), {})[region] = None
    return {key: tuple(regions) for key, regions in found.items()}


@cache
def _ratios() -> dict[tuple[str, str, str], Ratio]:
    return {
        (row["cloud"], row["family"], row["size"]): Ratio(
            ratio=Decimal(row["ratio"]),
            fee=Decimal(row["fee_ratio"]) if row["fee_ratio"] else None,
            readings=int(row["readings"]),
            source=row["source"],
            as_of=date.fromisoformat(row["as_of"]),
            note=row["note"],
        )
        for row in table("ratios")
    }
