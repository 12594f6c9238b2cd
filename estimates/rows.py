"""What the catalog's tables hold: a machine, the price of one, the regions; and the error for what is not in them.

The tables lie in `catalog/`; `estimates.catalog` answers questions about them and says what each holds.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_CEILING, Decimal, localcontext
from functools import cache
from pathlib import Path

TABLES = Path(__file__).with_name("catalog")
CLOUD_NAMES = {"sagemaker": "SageMaker", "vertex": "Vertex AI"}
DEFAULT_REGION = {"sagemaker": "us-east-1", "vertex": "us-central1"}

# A training job is billed at the Training rate. Wherever both were read, the Hosting and Studio rates of a machine are
# that rate or its rounded form, so they stand in for it, and the row says so. Warm pool and spot rates never do.
COMPONENTS_BY_TRUST = ("Training", "unstated", "Hosting", "Studio")
PRECISIONS = ("day", "month", "two_months", "first_day")


class CatalogError(LookupError):
    """What was asked for is not in the catalog: *what* in one line, and as *hint* the next thing to type."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Machine:
    """One rentable shape. GiB = 2³⁰ bytes, GB = 10⁹ bytes, Gbps = 10⁹ bits a second. None: not known, or has none."""

    cloud: str
    name: str
    vcpus: int | None
    memory_gib: float | None
    gpu: str | None
    """Model of the accelerator, GPU or not: `A100`, `Trainium`."""
    gpu_count: int
    gpu_memory_gib: float | None
    """Of one GPU."""
    local_nvme_gb: int | None
    network_gbps: float | None
    source: str
    as_of: date
    serves: tuple[str, ...] = ()
    """What the cloud uses it for, if it cannot train."""

    @property
    def label(self) -> str:
        """The hardware as people write it: `8 vCPU, 61 GiB, 1 × V100 16 GiB`."""
        if self.vcpus is None or self.memory_gib is None:
            return "hardware not known"
        parts = [f"{self.vcpus} vCPU", f"{self.memory_gib:g} GiB"]
        if self.gpus:
            parts.append(f"{self.gpus} GiB" if self.gpu_memory_gib else self.gpus)
        return ", ".join(parts)

    @property
    def gpus(self) -> str:
        """Its accelerators for a table, memory in GiB: `1 × V100 16`; empty without any."""
        if not self.gpu:
            return ""
        memory = f" {self.gpu_memory_gib:g}" if self.gpu_memory_gib else ""
        return f"{self.gpu_count} × {self.gpu}{memory}"


@dataclass(frozen=True, slots=True)
class Price:
    """What one hour of one machine cost in one region, by one reading on one day."""

    usd_per_hour: Decimal
    region: str
    market: str
    """`on_demand` or `spot`."""
    component: str
    """What was billed at this rate: `Training`, a rate that stands in for it (COMPONENTS_BY_TRUST), `derived`, `contract`."""
    as_of: date
    """The day of the reading; the first day it can have been, where that is not known."""
    as_of_precision: str
    """One of PRECISIONS. `first_day`: on that day or in the weeks after it."""
    grade: str
    """A: a price list or a bill, for training. B: the same for another component, or the component is not stated."""
    source: str
    note: str
    published: bool = True
    """Read as it is; if not, derived from what was read by *formula*."""
    formula: str = ""
    """How it was reckoned, in words: `EC2 $24.48 × 1.15`, `$3.825 − 12 %`."""

    @property
    def dated(self) -> str:
        """The date as precisely as it is known: `2026-08-17`, `2023-12`, `2026-08/09` or `2025-11-30+`."""
        return dated(self.as_of, self.as_of_precision)

    @property
    def hourly(self) -> str:
        """To the hundredth of a cent, rounded up, with `~` where it is derived: `$3.8250`, `~$28.1520`."""
        with localcontext(rounding=ROUND_CEILING):
            return f"{'' if self.published else '~'}${self.usd_per_hour:,.4f}"

    @property
    def label(self) -> str:
        """For people, to its last digit: `$0.23/h in us-east-1, 2025-01-26`, with `~` in front where it is derived."""
        return f"{'' if self.published else '~'}{exact_usd(self.usd_per_hour)}/h in {self.region}, {self.dated}"


def dated(as_of: date, precision: str) -> str:
    """*as_of* as precisely as it is known: see Price.dated."""
    if precision == "day":
        return as_of.isoformat()
    if precision == "first_day":
        return f"{as_of.isoformat()}+"
    later = "" if precision == "month" else f"/{as_of.month % 12 + 1:02}"
    return f"{as_of:%Y-%m}{later}"


def exact_usd(usd: Decimal) -> str:
    """All digits, cents at least: `$24.48`, `$0.1955`."""
    places = max(2, -int(usd.as_tuple().exponent))
    return f"${usd:.{places}f}"


def regions(cloud: str) -> tuple[str, ...]:
    """The regions in which the cloud's training service runs, whether or not a price is known there."""
    check_cloud(cloud)
    return _regions()[cloud]


def check_region(region: str, cloud: str) -> None:
    """Raise CatalogError, with the nearest name, if the cloud has no such region."""
    known = regions(cloud)
    if region not in known:
        close = close_names(region, known) or (DEFAULT_REGION[cloud],)
        raise CatalogError(f"{CLOUD_NAMES[cloud]} has no region {shown(region)}", f"--region {close[0]}")


def check_cloud(cloud: str) -> None:
    """Raise CatalogError if the catalog has no such cloud."""
    if cloud not in CLOUD_NAMES:
        raise CatalogError(f"the catalog has no cloud {shown(cloud)}", f"--backend {' or '.join(CLOUD_NAMES)}")


def close_names(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """At most three of *names* that look like *name*, the closest first."""
    from difflib import get_close_matches

    return tuple(get_close_matches(name[:80].lower(), names, n=3))


def shown(value: str, limit: int = 80) -> str:
    """*value* as it may be printed: control codes escaped, at most *limit* characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def table(name: str) -> list[dict[str, str]]:
    """Every row of `catalog/{name}.csv`."""
    with (TABLES / f"{name}.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@cache
def _regions() -> dict[str, tuple[str, ...]]:
    rows = table("regions")
    return {cloud: tuple(row["region"] for row in rows if row["cloud"] == cloud) for cloud in CLOUD_NAMES}


@cache
def machines() -> dict[str, Machine]:
    """Every machine that can train, by name; a test holds that no name is in both clouds."""
    return {row["machine"]: _machine_from(row, row["cloud"]) for row in table("machines")}


@cache
def not_for_training() -> dict[str, Machine]:
    """SageMaker's types that look alike but cannot train, by name."""
    return {row["machine"]: _machine_from(row, "sagemaker") for row in table("not_for_training")}


def _machine_from(row: dict[str, str], cloud: str) -> Machine:
    def number(column: str) -> float | None:
        return float(row[column]) if row.get(column) else None

    def whole(column: str) -> int | None:
        return int(row[column]) if row.get(column) else None

    return Machine(
        cloud=cloud,
        name=row["machine"],
        vcpus=whole("vcpus"),
        memory_gib=number("memory_gib"),
        gpu=row["gpu"] or None,
        gpu_count=whole("gpu_count") or 0,
        gpu_memory_gib=number("gpu_memory_gib"),
        local_nvme_gb=whole("local_nvme_gb"),
        network_gbps=number("network_gbps"),
        source=row["source"],
        as_of=date.fromisoformat(row["as_of"]),
        serves=tuple(row["serves"].split("; ")) if "serves" in row else (),
    )
