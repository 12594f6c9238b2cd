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

_Base = tuple[str, str, str, str]
"""USD per hour, as_of, as_of_precision and source, as they stand in the table: 2,700 rows are read, few are asked for."""


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
    at = _bases().get((BENEATH[machine.cloud], machine.name.removeprefix("ml.")), {})
    base = at.get((region, "on_demand"))
    if base is None:
        return None
    if market == "on_demand":
        return _on_demand(machine, region, base, known)
    spot = at.get((region, market))
    return None if spot is None or known.fee is None else _spot(machine, region, base, spot, known, known.fee)


def regions_of(machine: Machine) -> tuple[str, ...]:
    """The regions with a base price of *machine*, once each."""
    at = _bases().get((BENEATH[machine.cloud], machine.name.removeprefix("ml.")), {})
    return tuple(dict.fromkeys(region for region, _ in at))


def ratio(cloud: str, name: str) -> Ratio | None:
    """The ratio of a machine by its *name*, or of a disk (`pd-ssd`): its size's, else its family's."""
    family, _, size = name.rpartition(".") if cloud == "sagemaker" else name.partition("-")
    known = _ratios()
    return known.get((cloud, family, size)) or known.get((cloud, family, "*"))


def plain(usd: Decimal) -> Decimal:
    """*usd* without the zeros that a product leaves behind: 28.152, not 28.1520."""
    short = usd.normalize()
    return short if int(short.as_tuple().exponent) <= 0 else short.quantize(Decimal(1))


def _on_demand(machine: Machine, region: str, base: _Base, known: Ratio) -> Price:
    usd = Decimal(base[0])
    formula = f"{BENEATH_NAMES[BENEATH[machine.cloud]]} {exact_usd(usd)} × {known.ratio}"
    return _derived(region, "on_demand", usd * known.ratio, formula, base, known)


def _spot(machine: Machine, region: str, base: _Base, spot: _Base, known: Ratio, fee: Decimal) -> Price:
    usd, full = Decimal(spot[0]), Decimal(base[0])
    beneath = BENEATH_NAMES[BENEATH[machine.cloud]]
    formula = f"{beneath} spot {exact_usd(usd)} + {fee} × {exact_usd(full)} on demand"
    return _derived(region, "spot", usd + fee * full, formula, spot, known)


def _derived(region: str, market: str, usd: Decimal, formula: str, base: _Base, known: Ratio) -> Price:
    return Price(
        usd_per_hour=plain(usd),
        region=region,
        market=market,
        component="derived",
        as_of=date.fromisoformat(base[1]),
        as_of_precision=base[2],
        grade="derived",
        source=f"{base[3]}; ratio: {known.source}, {known.as_of}",
        note=known.note,
        published=False,
        formula=formula,
    )


@cache
def _bases() -> dict[tuple[str, str], dict[tuple[str, str], _Base]]:
    """By cloud and machine, then by region and market."""
    found: dict[tuple[str, str], dict[tuple[str, str], _Base]] = {}
    with (TABLES / "base_prices.csv").open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines)
        next(rows)
        for cloud, machine, region, market, usd, as_of, precision, source in rows:
            found.setdefault((cloud, machine), {})[region, market] = usd, as_of, precision, source
    return found


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
