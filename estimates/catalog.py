"""Which machines SageMaker and Vertex AI rent for training, and what an hour of each cost when its price was last read.

The tables lie beside this file, in `catalog/`, each row with its source and date:

    machines.csv          what can be rented to train on, with its hardware; blank means not known
    not_for_training.csv  SageMaker types that look alike but cannot train, and what they serve instead
    accelerators.csv      GPUs that Vertex AI attaches to its N1 machines
    prices.csv            prices that somebody read from a price list, a bill or a vendor's page; none is computed
    price_parts.csv       what such a price was summed from, where it was: GPUs, vCPUs, memory
    base_prices.csv       prices of the machines beneath, of EC2 and Compute Engine
    ratios.csv            what the services take over those, by family, where it was read
    rates.csv             disks, storage, requests, logs, transfer
    free_tier.csv         what new accounts have free
    retired.csv           families that are being retired, by region
    regions.csv           the regions in which the two services run

They are read on first use and kept. A price that is neither read nor derived is None, shown as unknown: none is made up.
"""

from __future__ import annotations

import math
from decimal import Decimal

from estimates import accelerators, pricebook
from estimates.retired import Retirement, retired
from estimates.rows import (
    CLOUD_NAMES,
    COMPONENTS_BY_TRUST,
    DEFAULT_REGION,
    TABLES,
    CatalogError,
    Machine,
    Price,
    check_cloud,
    check_region,
    close_names,
    regions,
    shown,
)
from estimates.rows import machines as _machines
from estimates.rows import not_for_training as _not_for_training

__all__ = [
    "CLOUD_NAMES", "COMPONENTS_BY_TRUST", "DEFAULT_REGION", "TABLES", "CatalogError", "Machine", "Price", "Retirement",
    "attachable", "check_region", "machine", "machines", "nearest", "price", "prices", "regions", "retired",
]  # fmt: skip

# "n1-standard-4 is currently the lowest common denominator" for training: googleapis/python-aiplatform#66. No list of
# the smaller ones that can train was found, so they are in the catalog but never suggested.
VERTEX_LEAST_VCPUS = 4


def machines(cloud: str | None = None) -> tuple[Machine, ...]:
    """Every machine that can train, of one cloud or of both, by family and size.

    Raises CatalogError if there is no such cloud.
    """
    if cloud is None:
        return tuple(_machines().values())
    check_cloud(cloud)
    return tuple(machine for machine in _machines().values() if machine.cloud == cloud)


def machine(name: str, *, cloud: str | None = None) -> Machine:
    """The machine called exactly *name*; on Vertex AI also `n1-standard-8+V100`, `n1-standard-8+2xT4`.

    Raises CatalogError, with the machine to take instead, if there is none, it cannot train or is the other cloud's.
    """
    if cloud is not None:
        check_cloud(cloud)
    known = _machines().get(name) or _not_for_training().get(name) or _composed(name, cloud)
    if known is None:
        raise _unknown(name, cloud)
    if cloud not in (None, known.cloud):
        raise _other_cloud(known, cloud)
    if known.serves:
        raise _cannot_train(known)
    return known


def attachable() -> tuple[Machine, ...]:
    """Machines of Vertex AI with GPUs attached, those that are usual: `machine` knows many more.

    n1-standard-4, -8, -16 and -32, with every GPU and number of them for which the host has 4 vCPUs or more each, and no
    more vCPUs than Google allows.
    """
    return accelerators.usual()


def suggested(machine: Machine) -> bool:
    """Whether to name *machine* to somebody who has not: not the smallest of Vertex AI, which no source calls fit to train."""
    return machine.cloud != "vertex" or (machine.vcpus or 0) >= VERTEX_LEAST_VCPUS


def price(machine: Machine, *, region: str | None = None) -> Price | None:
    """What an hour of *machine* costs on demand, or None if the book does not know.

    With *region*: the price there or None, never another region's. Without: the price in the cloud's default region,
    published or derived; if none is known, in another one, of the same part of the world where possible. Price.region says
    which, and whoever shows the price shows it.

    In one region a published price beats a derived one. Of several published ones, Training comes before those that do
    not state their component, then Hosting, then Studio; within a component the newest reading, and of two on one day
    the dearer.

    Raises CatalogError if the cloud has no such region.
    """
    return pricebook.current().price(machine, region)


def prices(machine: Machine) -> tuple[Price, ...]:
    """Every published row of the book for *machine*: all regions, markets, components and dates."""
    return pricebook.current().machines.get((machine.cloud, machine.name), ())


def nearest(like: Machine, cloud: str) -> Machine | None:
    """The machine of *cloud* most like *like*: in its GPUs, then in vCPUs and memory; of equals, the cheapest published.

    GPUs are compared by model, count and memory, on a scale of doublings. None if the hardware of *like* is not known.
    """
    if not like.vcpus:
        return None
    least_vcpus = VERTEX_LEAST_VCPUS if cloud == "vertex" else 1
    candidates = [other for other in machines(cloud) if other.vcpus and other.vcpus >= least_vcpus and other != like]
    distances = [_distance(like, other) for other in candidates]
    closest = min(distances, default=None)
    nearest_ones = [other for other, far in zip(candidates, distances, strict=True) if far == closest]
    return min(nearest_ones, key=lambda other: (*_dearness(other), other.name), default=None)


def _composed(name: str, cloud: str | None) -> Machine | None:
    """A host with GPUs attached; what is wrong with such a name is told to whoever may have meant Vertex AI."""
    try:
        return accelerators.compose(name)
    except CatalogError:
        if cloud == "sagemaker":
            return None
        raise


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


def _dearness(machine: Machine) -> tuple[bool, bool, bool, Decimal]:
    """Sorts what has a price before what has none, then the default region, then the published, then the cheap first."""
    known = price(machine)
    if known is None:
        return True, True, True, Decimal(0)
    return False, known.region != DEFAULT_REGION[machine.cloud], not known.published, known.usd_per_hour


def _other_cloud(known: Machine, wanted: str) -> CatalogError:
    what = f"{shown(known.name)} is a machine of {CLOUD_NAMES[known.cloud]}, not of {CLOUD_NAMES[wanted]}"
    hint = _suggestion(nearest(known, wanted), wanted)
    if not known.serves:
        hint += f"; or --backend {known.cloud} for {known.name} ({_described(known)})"
    return CatalogError(what, hint)


def _cannot_train(known: Machine) -> CatalogError:
    *most, last = known.serves
    serves = f"{', '.join(most)} and {last}" if most else last
    what = f"{CLOUD_NAMES[known.cloud]} cannot train on {shown(known.name)} (it serves {serves} only)"
    return CatalogError(what, _suggestion(nearest(known, known.cloud), known.cloud))


def _unknown(name: str, cloud: str | None) -> CatalogError:
    ours = f"ml.{name}"
    if ours in _machines() or ours in _not_for_training():
        what = f"{shown(name)} is the name of an EC2 instance (SageMaker's begin with ml.)"
        try:
            return CatalogError(what, _suggestion(machine(ours, cloud=cloud), "sagemaker"))
        except CatalogError as error:
            return CatalogError(f"{what}, and {error.what}", error.hint)
    close = close_names(name, tuple(known.name for known in machines(cloud)))
    hint = _suggestion(_machines()[close[0]] if close else None, cloud or "sagemaker")
    if close[1:]:
        hint += f"; also close: {', '.join(close[1:])}"
    service = CLOUD_NAMES[cloud] if cloud else " or ".join(CLOUD_NAMES.values())
    return CatalogError(f"no training machine of {service} is called {shown(name)}", hint)


def _suggestion(found: Machine | None, cloud: str) -> str:
    """*found* as the option to type; where there is none, the cloud's cheapest machine as an example."""
    example = found or min(machines(cloud), key=_dearness)
    return f"--instance {example.name} ({_described(example)})"


def _described(machine: Machine) -> str:
    known = price(machine)
    return f"{machine.label}, {known.label if known else 'price unknown'}"
