"""A spec with every choice made: which script, machine, folders, limits, and what it would cost. Pure data."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimates import catalog, cost
from orchestrator import budgets
from orchestrator import spec as specs
from orchestrator.entrypoint import Entrypoint
from orchestrator.errors import BadInput, NotInCatalog, OrchestrateError, raise_all, shown
from orchestrator.spec import TrainingSpec

if TYPE_CHECKING:
    from orchestrator.aws.place import AwsPlace

CLOUDS = ("sagemaker", "vertex")
SAMPLE = "sample:"


@dataclass(frozen=True)
class Plan:
    """What will be done, decided. seconds is how long the run is thought to take, and seconds_from says who thinks so."""

    run_id: str
    name: str
    spec: TrainingSpec
    entrypoint: Entrypoint
    package_digest: str
    package_files: int
    package_bytes: int
    run_dir: Path
    machine: catalog.Machine | None
    channels: specs.Pairs
    seconds: float | None
    seconds_from: str
    notes: tuple[str, ...] = ()
    checkpoints_from: str | None = None  # a folder here, or s3:// of an earlier run
    cloud: AwsPlace | None = None
    data_uris: specs.Pairs = ()  # where in the cloud each data channel lies, or will lie
    seconds_are_billed: bool = False  # they are what the cloud billed for the same before, start and upload included
    around_included: bool = False  # they are a cloud job's, by the wall clock or as billed: start and upload included
    held_seconds: float | None = None  # for which the machines were held, where that is more than was billed: on spot

    @property
    def script_key(self) -> str:
        """Tells this script from others in the ledger."""
        return script_key(self.entrypoint)

    def cost_rows(self, seconds: float | None = None) -> tuple[cost.CostRow, ...]:
        """What this run would cost on the machines of both clouds whose price is known, cheapest first."""
        return cost.rows(self.seconds if seconds is None else seconds, count=self.spec.count, regions=self._regions())

    def machine_row(self, seconds: float | None = None) -> cost.CostRow | None:
        """The same for the machine that was asked for, known price or not."""
        if self.machine is None:
            return None
        region = self._regions().get(self.machine.cloud)
        return cost.row_for(self.machine, self.seconds if seconds is None else seconds, self.spec.count, region)

    @property
    def region(self) -> str | None:
        """The region that a cloud run goes to; None where that is not decided."""
        if self.cloud is not None:
            return self.cloud.region
        return regions_of(self.spec).get(self.spec.backend)

    @property
    def grace_seconds(self) -> int:
        """What the script has from SIGTERM to SIGKILL."""
        if self.cloud is None:
            return self.spec.grace_seconds
        from orchestrator.aws.place import GRACE_SECONDS

        return GRACE_SECONDS

    def _regions(self) -> Mapping[str, str]:
        return regions_of(self.spec) if self.cloud is None else {"sagemaker": self.cloud.region}


def new_run_id() -> str:
    """An id that no other run has: `r-` and 10 hex digits."""
    return f"r-{secrets.token_hex(5)}"


def script_key(entrypoint: Entrypoint) -> str:
    return f"shipped:{entrypoint.name}" if entrypoint.shipped else str(entrypoint.path)


def check(spec: TrainingSpec, folder: Path) -> tuple[catalog.Machine | None, specs.Pairs]:
    """The machine and the channels' places that *spec* means, once all of it is found to be possible.

    Raises every problem at once: NotInCatalog, BadInput, OverBudget.
    """
    problems: list[OrchestrateError] = []
    machine = _machine(spec, problems)
    channels = _channels(spec, folder, problems)
    _region(spec, problems)
    if spec.backend == "local" and spec.rehearse:
        hint = "--backend sagemaker --instance ml.m5.xlarge --rehearse"
        problems.append(BadInput("--rehearse rehearses a cloud, and this is a local run", hint=hint))
    if spec.backend == "local" and spec.count > 1:
        hint = f"--processes {spec.count} starts that many processes here"
        problems.append(BadInput(f"--count {spec.count}: a local run has one machine", hint=hint))
    if spec.backend in CLOUDS and spec.instance is None:
        problems.append(BadInput(f"--backend {spec.backend} needs a machine", hint=_example(spec.backend)))
    if machine is not None:
        _budget(spec, machine, problems)
    raise_all(problems)
    return machine, channels


def _example(backend: str) -> str:
    return "--instance ml.m5.xlarge" if backend == "sagemaker" else "--instance n1-standard-4"


def _machine(spec: TrainingSpec, problems: list[OrchestrateError]) -> catalog.Machine | None:
    if spec.instance is None:
        return None
    try:
        return catalog.machine(spec.instance, cloud=spec.backend if spec.backend in CLOUDS else None)
    except catalog.CatalogError as error:
        problems.append(NotInCatalog(error.what, hint=error.hint))
        return None


def _region(spec: TrainingSpec, problems: list[OrchestrateError]) -> None:
    if spec.region is None:
        return
    clouds = (spec.backend,) if spec.backend in CLOUDS else CLOUDS
    known = [region for cloud in clouds for region in catalog.regions(cloud)]
    if spec.region not in known:
        hint = specs.suggestion(spec.region, known)
        problems.append(NotInCatalog(f"no prices for region {shown(spec.region)} are known", hint=hint))


def regions_of(spec: TrainingSpec) -> dict[str, str]:
    """The region of each cloud that *spec* asks for, where it asks for one."""
    return {cloud: spec.region for cloud in CLOUDS if spec.region and spec.region in catalog.regions(cloud)}


def _budget(spec: TrainingSpec, machine: catalog.Machine, problems: list[OrchestrateError]) -> None:
    """A cloud run whose worst case costs more than its budget is refused; a local run costs nothing."""
    if spec.backend == "vertex":  # of SageMaker aws/place.py asks: it knows the region
        budgets.vertex_stop(spec, machine, problems)


def _channels(spec: TrainingSpec, folder: Path, problems: list[OrchestrateError]) -> specs.Pairs:
    found = []
    for name, location in spec.data:
        try:
            found.append((name, channel_place(name, location, folder, spec.backend)))
        except OrchestrateError as error:
            problems.append(error)
    return tuple(found)


def channel_place(name: str, location: str, folder: Path, backend: str = "local") -> str:
    """*location* as *backend* needs it: an existing folder's absolute path; `sample:NAME` and the cloud's own as they are."""
    if location.startswith(SAMPLE):
        return location
    scheme = location.partition(":")[0]
    if backend == "sagemaker" and scheme == "s3":
        return _s3_place(name, location)
    if backend == "sagemaker" and scheme == "gs":
        hint = f"copy it to S3 first: gcloud storage rsync -r {location} s3://BUCKET/{name}"
        raise BadInput(f"--data {name}={shown(location)}: SageMaker reads s3://, not gs://", hint=hint)
    if location.startswith(("s3://", "gs://")):
        tool = "aws s3 sync" if scheme == "s3" else "gcloud storage rsync -r"
        hint = f"copy it here first: {tool} {location} ./{name}, then --data {name}=./{name}"
        raise BadInput(f"--data {name}={shown(location)}: a local run reads folders, not {scheme}://", hint=hint)
    if "://" in location or scheme == "torchvision":
        hint = (
            "a folder, or sample:mnist" if scheme != "torchvision" else f"give it to the script: -- --data {location}"
        )
        raise BadInput(f"--data {name}={shown(location)} is not a place that a channel can be filled from", hint=hint)
    try:
        path = (folder / Path(location).expanduser()).resolve()
        kind = "folder" if path.is_dir() else "file" if path.exists() else "nothing"
    except (OSError, RuntimeError, ValueError):
        kind = "nothing"
    if kind == "nothing":
        raise BadInput(f"--data {name}: no such folder {shown(location)}", hint=_near_folder(name, location, folder))
    if kind == "file":
        raise BadInput(
            f"--data {name}: {shown(location)} is a file; a channel is a folder", hint=f"--data {name}={path.parent}"
        )
    if not any(path.iterdir()):
        raise BadInput(f"--data {name}: {shown(location)} is empty", hint="fill it, or name another folder")
    return str(path)


def _s3_place(name: str, location: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9](/[^\x00-\x1f]*)?", location):
        raise BadInput(f"--data {name}={shown(location)} is not a valid s3:// address", hint="s3://BUCKET/FOLDER")
    return location


def _near_folder(name: str, location: str, folder: Path) -> str:
    import difflib

    if location == "mnist":
        return f"--data {name}=sample:mnist"
    folders = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    near = difflib.get_close_matches(location, folders, n=1, cutoff=0.5)
    return f"did you mean --data {name}={near[0]}?" if near else f"--data {name}=FOLDER, or sample:mnist"


def job_file(plan: Plan) -> dict[str, Any]:
    """job.json of docs/design.md, the same in every place: every string of it arrives byte for byte."""
    spec = plan.spec
    return {
        "version": 1,
        "run_id": plan.run_id,
        "script": plan.entrypoint.script,
        "arguments": list(spec.arguments),
        "hyperparameters": dict(spec.hyperparameters),
        "environment": dict(spec.environment),
        "package_digest": plan.package_digest,
        "processes": spec.processes,
        "grace_seconds": plan.grace_seconds,
    }


def as_json(plan: Plan) -> dict[str, Any]:
    """*plan* as plain data, for the ledger and for --json."""
    machine = plan.machine
    return {
        "run_id": plan.run_id,
        "name": plan.name,
        "backend": plan.spec.backend,
        "script": plan.entrypoint.script,
        "chosen": plan.entrypoint.chosen,
        "source_dir": str(plan.entrypoint.source_dir),
        "package": {"digest": plan.package_digest, "files": plan.package_files, "size_bytes": plan.package_bytes},
        "machine": None if machine is None else {"name": machine.name, "cloud": machine.cloud, "what": machine.label},
        "count": plan.spec.count,
        "processes": plan.spec.processes,
        "channels": dict(plan.channels),
        "limits": {
            "max_hours": None if plan.spec.max_hours is None else str(plan.spec.max_hours),
            "budget_usd": None if plan.spec.budget_usd is None else str(plan.spec.budget_usd),
            "grace_seconds": plan.grace_seconds,
        },
        "checkpoints_from": plan.checkpoints_from,
        "price": _price_json(plan),
        "seconds": plan.seconds,
        "seconds_from": plan.seconds_from,
        "notes": list(plan.notes),
        **({} if plan.cloud is None else {"cloud": _cloud_json(plan, plan.cloud)}),
    }


def _price_json(plan: Plan) -> dict[str, str | bool | None] | None:
    if plan.machine is None or plan.spec.backend not in CLOUDS:
        return None
    return price_json(*cost.prices_of(plan.machine, plan.region, spot=plan.spec.spot))


def price_json(price: catalog.Price | None, listed: catalog.Price | None) -> dict[str, str | bool | None] | None:
    """The price that the user pays, as a run's row keeps it: what a run has cost does not change with the catalog.

    listed: the same without the user's own terms.
    """
    if price is None:
        return None
    return {
        "usd_per_hour": str(price.usd_per_hour),
        "as_of": price.dated,
        "source": price.source,
        "region": price.region,
        "published": price.published,
        "formula": price.formula,
        "list_usd_per_hour": None if listed is None else str(listed.usd_per_hour),
    }


def _cloud_json(plan: Plan, place: AwsPlace) -> dict[str, Any]:
    from orchestrator.aws.place import as_json as place_json

    return {**place_json(place), "data": dict(plan.data_uris)}
