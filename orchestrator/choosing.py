"""Which machines a question is about: by name, cloud, region, GPU; everything that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from estimates import catalog
from orchestrator import spec as specs
from orchestrator.errors import BadInput, NotInCatalog, OrchestrateError, shown

NO_GPU = ("none", "cpu", "no")
NEAR_REGIONS = 5


@dataclass(frozen=True)
class Choice:
    """The machines that were asked for, and the region of each cloud where one was named."""

    machines: tuple[catalog.Machine, ...]
    regions: dict[str, str] = field(default_factory=dict)
    named: bool = False  # each by its name


def choose(
    names: Sequence[str],
    backend: str | None,
    regions: Sequence[str],
    gpu: str | None,
    problems: list[OrchestrateError],
    *,
    every: bool = False,
) -> Choice:
    """The machines of *names*, or, where there are none, all those of the cloud and GPU that were asked for.

    With a region of one cloud and none of the other, only the one's. every: also those that no source calls fit to train.
    What is wrong goes to *problems*.
    """
    cloud = _cloud(backend, problems)
    places = _regions(regions, cloud, problems)
    if names:
        found = [machine for name in names if (machine := _named(name, cloud, problems)) is not None]
        return Choice(tuple(found), _of(found, places, problems), named=True)
    clouds = [cloud] if cloud else [name for name in catalog.CLOUD_NAMES if not places or name in places]
    machines = [machine for name in clouds for machine in catalog.machines(name) if every or catalog.suggested(machine)]
    if "vertex" in clouds:
        machines += catalog.attachable()
    return Choice(_with_gpu(machines, gpu, problems), places)


def _cloud(backend: str | None, problems: list[OrchestrateError]) -> str | None:
    if backend is None or backend in catalog.CLOUD_NAMES:
        return backend
    hint = specs.suggestion(backend, tuple(catalog.CLOUD_NAMES))
    problems.append(BadInput(f"--backend {shown(backend)} is no cloud that has prices", hint=hint))
    return None


def _regions(regions: Sequence[str], cloud: str | None, problems: list[OrchestrateError]) -> dict[str, str]:
    found: dict[str, str] = {}
    clouds = (cloud,) if cloud else tuple(catalog.CLOUD_NAMES)
    for region in regions:
        homes = [name for name in clouds if region in catalog.regions(name)]
        if not homes:
            hint = _near_region(region, clouds)
            problems.append(NotInCatalog(f"no prices for region {shown(region)} are known", hint=hint))
        elif homes[0] in found and found[homes[0]] != region:
            what = f"two regions of {catalog.CLOUD_NAMES[homes[0]]}: {found[homes[0]]} and {region}"
            problems.append(BadInput(what, hint="one --region for each cloud"))
        else:
            found[homes[0]] = region
    return found


def _near_region(region: str, clouds: Sequence[str]) -> str:
    """The regions to take instead, a few of dozens."""
    import difflib

    known = sorted({place for name in clouds for place in catalog.regions(name)})
    near = difflib.get_close_matches(region.casefold(), known, n=NEAR_REGIONS, cutoff=0)
    hint = specs.suggestion(region, known)
    return hint if hint.startswith("did you mean") else f"nearest of {len(known)}: {', '.join(near)}"


def check_data_region(
    region: str | None, backend: str | None, choice: Choice, problems: list[OrchestrateError]
) -> None:
    """That data can lie in *region*: of the clouds whose machines are asked about."""
    clouds = tuple(dict.fromkeys(machine.cloud for machine in choice.machines)) or tuple(catalog.CLOUD_NAMES)
    clouds = (backend,) if backend in catalog.CLOUD_NAMES else clouds
    if region is None or any(region in catalog.regions(name) for name in clouds):
        return
    what = f"--data-region {shown(region)} is no region of {' or '.join(catalog.CLOUD_NAMES[name] for name in clouds)}"
    problems.append(NotInCatalog(what, hint=_near_region(region, clouds)))


def _named(name: str, cloud: str | None, problems: list[OrchestrateError]) -> catalog.Machine | None:
    """A machine by its name, or by cloud and name: `vertex:n1-standard-8+V100`."""
    prefix, colon, rest = name.partition(":")
    try:
        if colon and prefix in catalog.CLOUD_NAMES:
            return catalog.machine(rest, cloud=prefix)
        return catalog.machine(name, cloud=cloud)
    except catalog.CatalogError as error:
        problems.append(NotInCatalog(error.what, hint=error.hint))
        return None


def _of(
    machines: Sequence[catalog.Machine], places: dict[str, str], problems: list[OrchestrateError]
) -> dict[str, str]:
    """*places*, once each of them is found to be of a cloud that a machine is of."""
    clouds = {machine.cloud for machine in machines}
    for cloud, region in places.items():
        if machines and cloud not in clouds:
            (other,) = clouds  # of two
            what = f"{region} is a region of {catalog.CLOUD_NAMES[cloud]}, {machines[0].name} a machine of "
            hint = f"--region {catalog.DEFAULT_REGION[other]}"
            problems.append(BadInput(what + catalog.CLOUD_NAMES[other], hint=hint))
    return places


def _with_gpu(
    machines: Sequence[catalog.Machine], gpu: str | None, problems: list[OrchestrateError]
) -> tuple[catalog.Machine, ...]:
    if gpu is None:
        return tuple(machines)
    wanted = gpu.casefold().replace("nvidia", "").strip(" -_")
    if wanted in NO_GPU:
        return tuple(machine for machine in machines if not machine.gpu_count)
    found = tuple(machine for machine in machines if machine.gpu and machine.gpu.casefold() == wanted)
    if not found:
        known = sorted({machine.gpu for machine in machines if machine.gpu})
        hint = specs.suggestion(wanted, known)
        hint = f"{hint} known: {', '.join(known)}" if hint.startswith("did you mean") else hint
        problems.append(NotInCatalog(f"no machine here has a GPU called {shown(gpu)}", hint=hint))
    return found


def amount(option: str, text: str | None, problems: list[OrchestrateError], *, example: str = "10") -> Decimal | None:
    """A positive number that was typed for *option*; None where none was, or where it goes to *problems*."""
    if text is None:
        return None
    try:
        return specs.decimal_number(option, text, example=example)
    except OrchestrateError as error:
        problems.append(error)
        return None
