"""GPUs that Vertex AI attaches to an N1 machine: `n1-standard-8+V100`, `n1-standard-8+2xT4`.

Such a machine is in no table: it is composed of a host of machines.csv and GPUs of `catalog/accelerators.csv`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import cache

from estimates import derived
from estimates.rows import CatalogError, Machine, close_names, exact_usd, machines, shown, table

HOST_FAMILY = "n1-"
# Of the many hosts that a GPU can have, the ones worth a row of a table.
USUAL_HOSTS = ("n1-standard-4", "n1-standard-8", "n1-standard-16", "n1-standard-32")
USUAL_VCPUS_PER_GPU = 4


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU model, and what one of it costs beside the host."""

    gpu: str
    """As in machines.csv: `V100`."""
    vertex_name: str
    """As the API calls it, `NVIDIA_TESLA_V100`; a published price of one GPU stands under this name in a price book."""
    gpu_memory_gib: float
    vcpus_at_most: dict[int, int]
    """By number of GPUs: each number that can be attached, and the vCPUs that its host may have."""
    usd_per_hour: Decimal
    """Of one, derived by *formula*."""
    formula: str
    region: str
    """The only one in which that price is known."""
    as_of: date
    as_of_precision: str
    source: str
    note: str


def parts(name: str) -> tuple[str, Accelerator, int] | None:
    """Host, GPU and number of GPUs of the composed machine called *name*; None if that is no name of one.

    Raises CatalogError, with the nearest that can be had, if there is no such host or GPU, or they do not go together.
    """
    host, plus, rest = name.partition("+")
    if not plus:
        return None
    times = re.match(r"([0-9]{1,4})x", rest.strip(), flags=re.IGNORECASE)
    gpu = _gpu(host, rest.strip()[times.end() :] if times else rest.strip())
    count = int(times[1]) if times else 1
    _check_host(host, gpu)
    if count not in gpu.vcpus_at_most:
        allowed = ", ".join(map(str, gpu.vcpus_at_most))
        closest = min(gpu.vcpus_at_most, key=lambda known: (abs(known - count), -known))
        hint = f"--instance {composed_name(host, gpu, closest)}"
        raise CatalogError(f"{count} × {gpu.gpu} cannot be attached to a machine of Vertex AI (but {allowed})", hint)
    vcpus = machines()[host].vcpus or 0
    if vcpus > gpu.vcpus_at_most[count]:
        raise _too_large(host, vcpus, gpu, count)
    return host, gpu, count


def compose(name: str) -> Machine | None:
    """The machine called *name*, if it is a host with GPUs; None if that is no such name. Raises as `parts` does."""
    found = parts(name)
    if found is None:
        return None
    host, gpu, count = found
    plain = machines()[host]
    return replace(
        plain,
        name=composed_name(host, gpu, count),
        gpu=gpu.gpu,
        gpu_count=count,
        gpu_memory_gib=gpu.gpu_memory_gib,
        source=f"{plain.source}; {gpu.source}",
        as_of=min(plain.as_of, gpu.as_of),
    )


def usual() -> tuple[Machine, ...]:
    """Each GPU in each number that can be had, on the USUAL_HOSTS that may have it and bring 4 vCPUs or more for each."""
    found = []
    for host in USUAL_HOSTS:
        vcpus = machines()[host].vcpus or 0
        for gpu in accelerators().values():
            counts = [n for n, most in gpu.vcpus_at_most.items() if USUAL_VCPUS_PER_GPU * n <= vcpus <= most]
            found += [compose(composed_name(host, gpu, count)) for count in counts]
    return tuple(machine for machine in found if machine is not None)


def composed_name(host: str, gpu: Accelerator, count: int) -> str:
    return f"{host}+{gpu.gpu}" if count == 1 else f"{host}+{count}x{gpu.gpu}"


def _gpu(host: str, text: str) -> Accelerator:
    wanted = text.upper().removeprefix("NVIDIA_TESLA_")
    known = accelerators()
    if wanted in known:
        return known[wanted]
    own = machines().get(host)
    beside = {machine.gpu for machine in machines().values() if machine.cloud == "vertex" and machine.gpu}
    alike = next((gpu for gpu in beside if gpu.upper() == wanted), None)
    if alike:
        example = next(m for m in machines().values() if m.cloud == "vertex" and m.gpu == alike)
        what = f"{alike} cannot be attached on Vertex AI: it comes with machines of its own"
        raise CatalogError(what, f"--instance {example.name}")
    close = close_names(wanted.lower(), tuple(gpu.lower() for gpu in known)) or ("t4",)
    host = host if own is not None and host.startswith(HOST_FAMILY) else USUAL_HOSTS[0]
    hint = f"--instance {host}+{close[0].upper()} (of {', '.join(known)})"
    raise CatalogError(f"no GPU called {shown(text)} can be attached to a machine of Vertex AI", hint)


def _check_host(host: str, gpu: Accelerator) -> None:
    known = machines().get(host)
    if known is not None and known.cloud == "vertex" and host.startswith(HOST_FAMILY):
        return
    hosts = tuple(name for name in machines() if name.startswith(HOST_FAMILY))
    close = close_names(host, hosts) or (USUAL_HOSTS[0],)
    likely = next((name for name in close if (machines()[name].vcpus or 0) <= gpu.vcpus_at_most[1]), USUAL_HOSTS[0])
    what = f"a GPU can be attached to N1 machines of Vertex AI, not to {shown(host)}"
    raise CatalogError(what, f"--instance {composed_name(likely, gpu, 1)}")


def _too_large(host: str, vcpus: int, gpu: Accelerator, count: int) -> CatalogError:
    what = f"{count} × {gpu.gpu} goes with at most {gpu.vcpus_at_most[count]} vCPUs; {host} has {vcpus}"
    enough = [n for n, most in gpu.vcpus_at_most.items() if vcpus <= most]
    if enough:
        return CatalogError(what, f"--instance {composed_name(host, gpu, enough[0])}")
    fits = [name for name in USUAL_HOSTS if (machines()[name].vcpus or 0) <= gpu.vcpus_at_most[count]]
    return CatalogError(what, f"--instance {composed_name(fits[-1], gpu, count)}")


@cache
def accelerators() -> dict[str, Accelerator]:
    """Every GPU that can be attached, by its model."""
    fee = derived.ratio("vertex", "n1-standard-4")
    assert fee is not None  # a test of the tables holds it
    return {row["gpu"]: _accelerator(row, fee) for row in table("accelerators")}


def _accelerator(row: dict[str, str], fee: derived.Ratio) -> Accelerator:
    dataflow, over = Decimal(row["dataflow_usd_per_hour"]), Decimal(row["dataflow_over_gce"])
    counts = map(int, row["counts"].split())
    return Accelerator(
        gpu=row["gpu"],
        vertex_name=row["vertex_name"],
        gpu_memory_gib=float(row["gpu_memory_gib"]),
        vcpus_at_most=dict(zip(counts, map(int, row["vcpus_at_most"].split()), strict=True)),
        usd_per_hour=derived.plain(dataflow * fee.ratio / over),
        formula=f"Dataflow {exact_usd(dataflow)} / {over} × {fee.ratio}",
        region=row["region"],
        as_of=date.fromisoformat(row["as_of"]),
        as_of_precision=row["as_of_precision"],
        source=row["source"],
        note=row["note"],
    )
