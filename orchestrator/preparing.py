"""Every choice of a submit, made and checked before anything is written: script, machine, place, data, package, request."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimates import catalog
from orchestrator import backends, crashpoints, history, package, plan, settings, state
from orchestrator import entrypoint as entrypoints
from orchestrator import spec as specs
from orchestrator.aws.place import PREFIX, AwsPlace
from orchestrator.backends import Backend, Progress
from orchestrator.entrypoint import Entrypoint
from orchestrator.errors import BadInput, OrchestrateError, flatten, raise_all
from orchestrator.finding import find
from orchestrator.history import Earlier
from orchestrator.package import Manifest
from orchestrator.plan import Plan
from orchestrator.runs import Ledger, Run, utc_now
from orchestrator.spec import Pairs, TrainingSpec
from orchestrator.staging import Stage
from orchestrator.tree import limited

ASK_OVER_BYTES = 100_000_000
Confirm = Callable[[str], bool]


@dataclass(frozen=True)
class Prepared:
    """All that is decided before anything is written: the plan, the files that go along, and the exact request."""

    plan: Plan
    manifest: Manifest
    request: dict[str, Any]
    backend: Backend
    channels: Mapping[str, Path]  # the folder of each that lies here; empty before a dry run, which fetches nothing
    asked_at: str = "9999"  # UTC: the same thing, made since then, was asked for at the same time

    @property
    def launch_key(self) -> str | None:
        """What was asked for: the same key, the same thing. None for a local run, which ends with its command."""
        key: str | None = self.request.get("Environment", {}).get("ORCHESTRATE_LAUNCH_KEY") if self.plan.cloud else None
        return key


def read_spec(flags: settings.Flags, folder: Path, config: Path | None = None) -> TrainingSpec:
    """The spec of *flags* and of the folder's orchestrate.toml (or of *config*)."""
    spec = settings.load(flags, config or settings.find_file(folder))
    crashpoints.reached("flags read")
    return spec


def prepare(
    spec: TrainingSpec, folder: Path, *, confirm: Confirm, progress: Progress | None = None, fetch: bool = True
) -> Prepared:
    """Make every choice and check it. Raises all that is wrong with script, machine, data and budget at once.

    fetch: then download sample data that is not cached, and start the cloud of a rehearsal. Nothing else is written.
    """
    return prepare_all(spec, folder, confirm=confirm, progress=progress, fetch=fetch)[0]


def prepare_all(
    spec: TrainingSpec,
    folder: Path,
    *,
    confirm: Confirm,
    progress: Progress | None = None,
    fetch: bool = True,
    faults: Sequence[str] = (),
    asked_at: str | None = None,
) -> tuple[Prepared, ...]:
    """What to try, in order: a run for each machine of --instance, then, with `--fallback local`, one here. See prepare.

    faults: what a rehearsed cloud is to do wrong. asked_at: when this was asked for, UTC; None is now.
    """
    asked_at = asked_at or utc_now()
    found: list[tuple[TrainingSpec, _Checked]] = []
    problems: list[OrchestrateError] = []
    for one in candidates(spec):
        try:
            found.append((one, _checked(one, folder)))
        except OrchestrateError as error:
            problems += [fault for fault in flatten([error]) if fault.what not in {known.what for known in problems}]
    raise_all(problems)
    backend_of = {one.backend: backends.load(one.backend) for one, _ in found}
    stage = Stage(found[0][1].place, fetch=fetch, faults=faults)
    folders = stage.data_folders(found[0][1].channels) if fetch else {}
    crashpoints.reached("data ready")
    manifest = make_manifest(found[0][1].entrypoint, spec, confirm=confirm, progress=progress)
    made = []
    for one, checked in found:
        uris = stage.data_uris(checked.place, checked.channels, progress) if checked.place else ()
        decided = _plan(one, checked, manifest, stage, uris)
        backend = backend_of[one.backend]
        here = {name: folders[name] for name, place in decided.channels if name in folders}
        made.append(Prepared(decided, manifest, backend.request(decided), backend, here, asked_at))
    crashpoints.reached("plan made")
    return tuple(made)


def candidates(spec: TrainingSpec) -> tuple[TrainingSpec, ...]:
    """*spec* once for each machine that it names, and once for this machine if it may fall back to it."""
    names = spec.instances if spec.backend != "local" else ()
    several = tuple(dataclasses.replace(spec, instance=name) for name in names) or (spec,)
    if spec.fallback is None or spec.backend == "local":
        return several
    here = dataclasses.replace(
        spec, backend="local", instance=None, count=1, spot=False, rehearse=False, fallback=None, region=None
    )
    return (*several, here)


def _plan(spec: TrainingSpec, checked: _Checked, manifest: Manifest, stage: Stage, data_uris: Pairs) -> Plan:
    found = checked.entrypoint
    expected = _expected_seconds(spec, found, checked.place)
    return Plan(
        run_id=checked.run_id,
        name=spec.name or found.name,
        spec=spec,
        entrypoint=found,
        package_digest=manifest.digest,
        package_files=len(manifest.files),
        package_bytes=manifest.size_bytes,
        run_dir=state.run_dir(checked.run_id),
        machine=checked.machine,
        channels=checked.channels,
        seconds=expected.seconds,
        seconds_from=expected.source,
        **_of_earlier(expected.earlier),
        notes=_notes(spec, checked.machine, checked.place, stage.level),
        checkpoints_from=_checkpoints_of(spec.resume_from, spec),
        cloud=stage.set(checked.place),
        data_uris=data_uris,
    )


@dataclass(frozen=True)
class _Checked:
    """What one candidate was found to mean."""

    run_id: str
    entrypoint: Entrypoint
    machine: catalog.Machine | None
    channels: Pairs
    place: AwsPlace | None


def _checked(spec: TrainingSpec, folder: Path) -> _Checked:
    problems: list[OrchestrateError] = []
    found: Entrypoint | None = None
    machine: catalog.Machine | None = None
    channels: Pairs = ()
    place: AwsPlace | None = None
    run_id = plan.new_run_id()
    try:
        found = entrypoints.find(spec.script, spec.source_dir, folder)
        missing = entrypoints.missing_imports(found) if spec.backend == "local" or spec.rehearse else ()
        if missing:
            problems.append(entrypoints.missing_import_error(found, missing))
    except OrchestrateError as error:
        problems.append(error)
    try:
        machine, channels = plan.check(spec, folder)
    except OrchestrateError as error:
        problems.append(error)
    if spec.backend == "sagemaker":
        from orchestrator.aws import place as places
        from orchestrator.staging import loopback_account

        name = spec.name or (found.name if found else "run")
        theatre = loopback_account(spec.region) if spec.rehearse else None
        place = places.decide(spec, machine, run_id=run_id, name=name, stage=theatre, problems=problems)
    raise_all(problems)
    assert found is not None
    crashpoints.reached("script found")
    return _Checked(run_id, found, machine, channels, place)


def make_manifest(
    found: Entrypoint, spec: TrainingSpec, *, confirm: Confirm, progress: Progress | None = None
) -> Manifest:
    """The files that go along with *found*, hashed. Over 100 MB it asks first, naming the five largest."""
    listing = package.walk(found.source_dir, script=found.script, allow_files=spec.allow_files)
    if listing.size_bytes > ASK_OVER_BYTES:
        raise_all(limited(listing.problems))  # before the question: who says yes to it wants no refusal afterwards
        largest = ", ".join(f"{file.path} ({megabytes(file.size_bytes)})" for file in listing.largest(5))
        question = f"the package has {megabytes(listing.size_bytes)}, the largest: {largest}"
        if not confirm(question):
            hint = "leave data out in .orchestrateignore and give it as --data, or --yes to take it all along"
            raise BadInput(question, hint=hint)
    manifest = package.hash_files(listing, packages_dir=state.packages_dir(), progress=progress)
    crashpoints.reached("package hashed")
    return manifest


def megabytes(size_bytes: int) -> str:
    """*size_bytes* for people: `412 bytes`, `18.2 kB`, `3.4 MB`."""
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    return f"{size_bytes / 1e3:,.1f} kB" if size_bytes < 1e6 else f"{size_bytes / 1e6:,.1f} MB"


def _of_earlier(earlier: Earlier | None) -> dict[str, Any]:
    """What a plan keeps of the earlier run that its seconds are from."""
    if earlier is None:
        return {}
    held = earlier.held_seconds
    return {
        "seconds_are_billed": earlier.billable,
        "around_included": earlier.around_included,
        "held_seconds": None if held is None else float(held.expected),
    }


@dataclass(frozen=True)
class _Expected:
    """How long a run is thought to take, who thinks so, and what earlier run of a cloud tells it, if one does."""

    seconds: float | None
    source: str
    earlier: Earlier | None = None


def _expected_seconds(spec: TrainingSpec, found: Entrypoint, place: AwsPlace | None) -> _Expected:
    if place is not None and not place.rehearsed:
        key = plan.script_key(found)
        earlier = history.of_script(key, spec.arguments, count=spec.count, spot=spec.spot, like=spec).get(spec.instance)
        if earlier is not None:
            return _Expected(float(earlier.seconds.expected), f"as {earlier.words}", earlier)
    else:
        asked = specs.as_json(spec)
        keys = ("arguments", "hyperparameters", "data", "backend", "instance", "count", "processes")
        with Ledger.open_to_read(state.ledger_file()) as ledger:
            same = {key: asked[key] for key in keys}
            seconds = ledger.earlier_seconds(plan.script_key(found), same, rehearsed=spec.rehearse)
        if seconds is not None:
            return _Expected(seconds, "as long as the same script with the same arguments last took on this machine")
    if place is not None:
        return _Expected(float(place.max_seconds), f"at most; the hard stop is {place.max_seconds_from}")
    if spec.max_hours is not None:
        return _Expected(float(spec.max_hours * 3600), "the most that --max-hours allows")
    return _Expected(None, "not known: it has not run here yet, and there is no --max-hours")


def _checkpoints_of(reference: str | None, spec: TrainingSpec) -> str | None:
    """Where the checkpoints of the run called *reference* lie. Raises where there is no such run, or none in it."""
    if reference is None:
        return None
    run = find(reference)
    if not run.ended:
        raise BadInput(f"--resume-from {run.id}: it has not ended", hint=f"orchestrate cancel {run.id}")
    if run.backend != "local":
        return _checkpoints_in_cloud(run, spec)
    folder = Path(run.run_dir) / "root" / "checkpoints"
    if not folder.is_dir() or not any(folder.iterdir()):
        hint = "the script saves them in $AIP_CHECKPOINT_DIR"
        raise BadInput(f"--resume-from {run.id}: it left no checkpoints", hint=hint)
    return str(folder)


def _checkpoints_in_cloud(run: Run, spec: TrainingSpec) -> str:
    if spec.backend != run.backend or spec.rehearse != run.rehearsed:
        place = "a rehearsal" if run.rehearsed else run.backend
        hint = f"orchestrate artifacts {run.id} --checkpoints --to FOLDER, then give FOLDER to the script"
        raise BadInput(f"--resume-from {run.id}: its checkpoints are in {place}", hint=hint)
    return f"s3://{run.plan['cloud']['bucket']}/{PREFIX}/runs/{run.remote_id}/checkpoints/"


def _notes(
    spec: TrainingSpec, machine: catalog.Machine | None, place: AwsPlace | None, level: str | None
) -> tuple[str, ...]:
    if place is not None:
        from orchestrator.staging import notes

        return notes(spec, machine, place, level)
    notes_here = []
    if machine is not None:
        notes_here.append(f"capped to {machine.name}: {machine.label}")
        have = _cpus_here()
        if machine.vcpus and machine.vcpus > have:
            notes_here.append(
                f"this machine has {have} CPUs, {machine.name} has {machine.vcpus}: expect it to be faster there"
            )
        if machine.gpu_count:
            notes_here.append(f"the {machine.gpu} is not rehearsed: the script sees what GPUs this machine has")
    if spec.spot:
        notes_here.append("--spot has no effect on a local run")
    if spec.budget_usd is not None:
        notes_here.append("--budget has no effect on a local run, which costs nothing")
    return tuple(notes_here)


def _cpus_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
