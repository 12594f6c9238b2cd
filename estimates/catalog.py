"""Which machines SageMaker and Vertex AI rent for training, and what an hour of each cost when its price was last read.

The tables lie beside this file, in `catalog/`, each row with its source and date:

    machines.csv          what can be rented to train on, with its hardware; blank means not known
    not_for_training.csv  SageMaker types that look alike but cannot train, and what they serve instead
    prices.csv            prices that somebody read from a price list, a bill or a vendor's page; none is computed
    regions.csv           the regions in which the two services run

They are read on first use and kept. A price that is not in the book is None, shown as unknown: none is made up here.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path

TABLES = Path(__file__).with_name("catalog")
CLOUD_NAMES = {"sagemaker": "SageMaker", "vertex": "Vertex AI"}
DEFAULT_REGION = {"sagemaker": "us-east-1", "vertex": "us-central1"}

# A training job is billed at the Training rate. Wherever both were read, the Hosting and Studio rates of a machine are
# that rate or its rounded form, so they stand in for it, and the row says so. Warm pool and spot rates never do.
COMPONENTS_BY_TRUST = ("Training", "unstated", "Hosting", "Studio")
# "n1-standard-4 is currently the lowest common denominator" for training: googleapis/python-aiplatform#66. No list of
# the smaller ones that can train was found, so they are in the catalog but never suggested.
VERTEX_LEAST_VCPUS = 4


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
        if self.gpu:
            memory = f" {self.gpu_memory_gib:g} GiB" if self.gpu_memory_gib else ""
            parts.append(f"{self.gpu_count} × {self.gpu}{memory}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Price:
    """What one hour of one machine cost in one region, by one reading on one day."""

    usd_per_hour: Decimal
    region: str
    market: str
    """`on_demand` or `spot`."""
    component: str
    """What was billed at this rate: `Training`, or a rate that stands in for it (see COMPONENTS_BY_TRUST)."""
    as_of: date
    """The day of the reading; the first day it can have been, where only the month is known."""
    as_of_precision: str
    """`day`, `month` or `two_months`."""
    grade: str
    """A: a price list or a bill, for training. B: the same for another component, or the component is not stated."""
    source: str
    note: str

    @property
    def dated(self) -> str:
        """The date as precisely as it is known: `2026-08-17`, `2023-12` or `2026-08/09`."""
        if self.as_of_precision == "day":
            return self.as_of.isoformat()
        later = "" if self.as_of_precision == "month" else f"/{self.as_of.month % 12 + 1:02}"
        return f"{self.as_of:%Y-%m}{later}"

    @property
    def label(self) -> str:
        """For people: `$0.23/h in us-east-1, 2025-01-26`."""
        places = max(2, -int(self.usd_per_hour.as_tuple().exponent))
        return f"${self.usd_per_hour:.{places}f}/h in {self.region}, {self.dated}"


def machines(cloud: str | None = None) -> tuple[Machine, ...]:
    """Every machine that can train, of one cloud or of both, by family and size.

    Raises CatalogError if there is no such cloud.
    """
    if cloud is None:
        return tuple(_machines().values())
    _check_cloud(cloud)
    return tuple(machine for machine in _machines().values() if machine.cloud == cloud)


def machine(name: str, *, cloud: str | None = None) -> Machine:
    """The machine called exactly *name*.

    Raises CatalogError, with the machine to take instead, if there is none, it cannot train or is the other cloud's.
    """
    if cloud is not None:
        _check_cloud(cloud)
    known = _machines().get(name) or _not_for_training().get(name)
    if known is None:
        raise _unknown(name, cloud)
    if cloud not in (None, known.cloud):
        raise _other_cloud(known, cloud)
    if known.serves:
        raise _cannot_train(known)
    return known


def price(machine: Machine, *, region: str | None = None) -> Price | None:
    """What an hour of *machine* costs on demand, or None if the book does not know.

    With *region*: the price there or None, never another region's. Without: the price in the cloud's default region; if
    that is not known, in another one, of the same part of the world where possible. Price.region says which, and
    whoever shows the price shows it.

    Several rows may tell of one machine and region. Training rows come before those that do not state their component,
    then Hosting, then Studio; within a component the newest reading, and of two on one day the dearer.

    Raises CatalogError if the cloud has no such region.
    """
    if region is not None:
        check_region(region, machine.cloud)
    rows = [row for row in prices(machine) if row.market == "on_demand" and row.component in COMPONENTS_BY_TRUST]
    default = DEFAULT_REGION[machine.cloud]
    here = [row for row in rows if row.region == (region or default)]
    if here or region:
        return min(here, key=_trust, default=None)
    part_of_world = default.split("-")[0]
    return min(rows, key=lambda row: (not row.region.startswith(part_of_world), *_trust(row)), default=None)


def prices(machine: Machine) -> tuple[Price, ...]:
    """Every row of the book for *machine*: all regions, markets, components and dates."""
    return _prices().get((machine.cloud, machine.name), ())


def regions(cloud: str) -> tuple[str, ...]:
    """The regions in which the cloud's training service runs, whether or not a price is known there."""
    _check_cloud(cloud)
    return _regions()[cloud]


def check_region(region: str, cloud: str) -> None:
    """Raise CatalogError, with the nearest name, if the cloud has no such region."""
    known = regions(cloud)
    if region not in known:
        close = _close(region, known) or (DEFAULT_REGION[cloud],)
        raise CatalogError(f"{CLOUD_NAMES[cloud]} has no region {_shown(region)}", f"--region {close[0]}")


def nearest(like: Machine, cloud: str) -> Machine | None:
    """The machine of *cloud* most like *like*: in its GPUs, then in vCPUs and memory; of equals, the cheapest known.

    GPUs are compared by model, count and memory, on a scale of doublings. None if the hardware of *like* is not known.
    """
    if not like.vcpus:
        return None
    least_vcpus = VERTEX_LEAST_VCPUS if cloud == "vertex" else 1
    candidates = (other for other in machines(cloud) if other.vcpus and other.vcpus >= least_vcpus and other != like)
    return min(candidates, key=lambda other: (*_distance(like, other), *_dearness(other), other.name))


def _distance(one: Machine, other: Machine) -> tuple[float, float]:
    """How unlike two machines of known hardware are: by accelerators, then by vCPUs and memory, both in doublings."""
    host = _doublings(one.vcpus, other.vcpus) + _doublings(one.memory_gib, other.memory_gib)
    if not one.gpu and not other.gpu:
        return 0, host
    if not one.gpu or not other.gpu:
        return math.inf, host
    accelerators = _doublings(one.gpu_count, other.gpu_count) + _doublings(one.gpu_memory_gib, other.gpu_memory_gib)
    # One doubling for another model; three more where a script for the one does not even run on the other.
    accelerators += (one.gpu != other.gpu) + 3 * (_is_neuron(one.gpu) != _is_neuron(other.gpu))
    return accelerators, host


def _doublings(one: float | None, other: float | None) -> float:
    return abs(math.log2(one / other)) if one and other else 0


def _is_neuron(gpu: str) -> bool:
    return gpu.startswith(("Trainium", "Inferentia"))


def _dearness(machine: Machine) -> tuple[bool, bool, Decimal]:
    """Sorts machines with a price before those without, the default region before others, the cheap before the dear."""
    known = price(machine)
    if known is None:
        return True, True, Decimal(0)
    return False, known.region != DEFAULT_REGION[machine.cloud], known.usd_per_hour


def _trust(row: Price) -> tuple[int, int, Decimal, str]:
    return COMPONENTS_BY_TRUST.index(row.component), -row.as_of.toordinal(), -row.usd_per_hour, row.region


def _check_cloud(cloud: str) -> None:
    if cloud not in CLOUD_NAMES:
        raise CatalogError(f"the catalog has no cloud {_shown(cloud)}", f"--backend {' or '.join(CLOUD_NAMES)}")


def _other_cloud(known: Machine, wanted: str) -> CatalogError:
    what = f"{_shown(known.name)} is a machine of {CLOUD_NAMES[known.cloud]}, not of {CLOUD_NAMES[wanted]}"
    hint = _suggestion(nearest(known, wanted), wanted)
    if not known.serves:
        hint += f"; or --backend {known.cloud} for {known.name} ({_described(known)})"
    return CatalogError(what, hint)


def _cannot_train(known: Machine) -> CatalogError:
    *most, last = known.serves
    serves = f"{', '.join(most)} and {last}" if most else last
    what = f"{CLOUD_NAMES[known.cloud]} cannot train on {_shown(known.name)} (it serves {serves} only)"
    return CatalogError(what, _suggestion(nearest(known, known.cloud), known.cloud))


def _unknown(name: str, cloud: str | None) -> CatalogError:
    ours = f"ml.{name}"
    if ours in _machines() or ours in _not_for_training():
        what = f"{_shown(name)} is the name of an EC2 instance (SageMaker's begin with ml.)"
        try:
            return CatalogError(what, _suggestion(machine(ours, cloud=cloud), "sagemaker"))
        except CatalogError as error:
            return CatalogError(f"{what}, and {error.what}", error.hint)
    close = _close(name, tuple(known.name for known in machines(cloud)))
    hint = _suggestion(_machines()[close[0]] if close else None, cloud or "sagemaker")
    if close[1:]:
        hint += f"; also close: {', '.join(close[1:])}"
    service = CLOUD_NAMES[cloud] if cloud else " or ".join(CLOUD_NAMES.values())
    return CatalogError(f"no training machine of {service} is called {_shown(name)}", hint)


def _suggestion(found: Machine | None, cloud: str) -> str:
    """*found* as the option to type; where there is none, the cloud's cheapest machine as an example."""
    example = found or min(machines(cloud), key=_dearness)
    return f"--instance {example.name} ({_described(example)})"


def _described(machine: Machine) -> str:
    known = price(machine)
    return f"{machine.label}, {known.label if known else 'price unknown'}"


def _close(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    from difflib import get_close_matches

    return tuple(get_close_matches(name[:80].lower(), names, n=3))


def _shown(value: str, limit: int = 80) -> str:
    """*value* as it may be printed: control codes escaped, at most *limit* characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@cache
def _machines() -> dict[str, Machine]:
    """By name; a test holds that no name is in both clouds."""
    return {row["machine"]: _machine_from(row, row["cloud"]) for row in _table("machines")}


@cache
def _not_for_training() -> dict[str, Machine]:
    return {row["machine"]: _machine_from(row, "sagemaker") for row in _table("not_for_training")}


@cache
def _prices() -> dict[tuple[str, str], tuple[Price, ...]]:
    """By cloud and machine."""
    found: dict[tuple[str, str], tuple[Price, ...]] = {}
    for row in _table("prices"):
        known = Price(
            usd_per_hour=Decimal(row["usd_per_hour"]),
            region=row["region"],
            market=row["market"],
            component=row["component"],
            as_of=date.fromisoformat(row["as_of"]),
            as_of_precision=row["as_of_precision"],
            grade=row["grade"],
            source=row["source"],
            note=row["note"],
        )
        key = row["cloud"], row["machine"]
        found[key] = (*found.get(key, ()), known)
    return found


@cache
def _regions() -> dict[str, tuple[str, ...]]:
    rows = _table("regions")
    return {cloud: tuple(row["region"] for row in rows if row["cloud"] == cloud) for cloud in CLOUD_NAMES}


def _table(name: str) -> list[dict[str, str]]:
    with (TABLES / f"{name}.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


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
