"""The story of a submit, step by step: find, check, package, write the intent, start. And of finding it again afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimates import catalog
from orchestrator import backends, crashpoints, package, plan, settings, state
from orchestrator import entrypoint as entrypoints
from orchestrator import samples as sample_data
from orchestrator import spec as specs
from orchestrator.backends import Backend, Started
from orchestrator.entrypoint import Entrypoint
from orchestrator.errors import BadInput, OrchestrateError, StateError, raise_all
from orchestrator.package import Manifest
from orchestrator.plan import Plan
from orchestrator.runs import Ledger, Run, RunState, utc_now
from orchestrator.spec import Pairs, TrainingSpec
from orchestrator.tree import limited

ASK_OVER_BYTES = 100_000_000
Progress = Callable[[str, int, int], None]
Confirm = Callable[[str], bool]


@dataclass(frozen=True)
class Prepared:
    """All that is decided before anything is written: the plan, the files that go along, and the exact request."""

    plan: Plan
    manifest: Manifest
    request: dict[str, Any]
    backend: Backend
    channels: Mapping[str, Path]  # the folder of each; empty before a dry run, which fetches nothing


@dataclass(frozen=True)
class Launched:
    """A run that has started, and this command's hold on it."""

    run: Run
    started: Started
    package: package.Package


def read_spec(flags: settings.Flags, folder: Path, config: Path | None = None) -> TrainingSpec:
    """The spec of *flags* and of the folder's orchestrate.toml (or of *config*)."""
    spec = settings.load(flags, config or settings.find_file(folder))
    crashpoints.reached("flags read")
    return spec


def prepare(
    spec: TrainingSpec, folder: Path, *, confirm: Confirm, progress: Progress | None = None, fetch: bool = True
) -> Prepared:
    """Make every choice and check it. Raises all that is wrong with script, machine, data and budget at once.

    fetch: then download sample data that is not cached. Nothing else is written.
    """
    found, machine, channels = _checked(spec, folder)
    backend = backends.load(spec.backend)
    folders = {name: _channel_folder(place) for name, place in channels} if fetch else {}
    crashpoints.reached("data ready")
    manifest = make_manifest(found, spec, confirm=confirm, progress=progress)
    run_id = plan.new_run_id()
    seconds, seconds_from = _expected_seconds(spec, found)
    decided = Plan(
        run_id=run_id,
        name=spec.name or found.name,
        spec=spec,
        entrypoint=found,
        package_digest=manifest.digest,
        package_files=len(manifest.files),
        package_bytes=manifest.size_bytes,
        run_dir=state.run_dir(run_id),
        machine=machine,
        channels=channels,
        seconds=seconds,
        seconds_from=seconds_from,
        notes=_notes(spec, machine),
        checkpoints_from=_checkpoints_of(spec.resume_from),
    )
    crashpoints.reached("plan made")
    return Prepared(decided, manifest, backend.request(decided), backend, folders)


def _checked(spec: TrainingSpec, folder: Path) -> tuple[Entrypoint, catalog.Machine | None, Pairs]:
    problems: list[OrchestrateError] = []
    found: Entrypoint | None = None
    machine: catalog.Machine | None = None
    channels: Pairs = ()
    try:
        found = entrypoints.find(spec.script, spec.source_dir, folder)
        missing = entrypoints.missing_imports(found) if spec.backend == "local" else ()
        if missing:
            problems.append(entrypoints.missing_import_error(found, missing))
    except OrchestrateError as error:
        problems.append(error)
    try:
        machine, channels = plan.check(spec, folder)
    except OrchestrateError as error:
        problems.append(error)
    raise_all(problems)
    assert found is not None
    crashpoints.reached("script found")
    return found, machine, channels


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


def _expected_seconds(spec: TrainingSpec, found: Entrypoint) -> tuple[float | None, str]:
    asked = specs.as_json(spec)
    same = {key: asked[key] for key in ("arguments", "hyperparameters", "data", "instance", "processes")}
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        seconds = ledger.earlier_seconds(plan.script_key(found), same)
    if seconds is not None:
        return seconds, "as long as the same script with the same arguments last took on this machine"
    if spec.max_hours is not None:
        return float(spec.max_hours * 3600), "the most that --max-hours allows"
    return None, "not known: it has not run here yet, and there is no --max-hours"


def _checkpoints_of(reference: str | None) -> Path | None:
    """The folder of checkpoints that the run called *reference* left. Raises where there is no such run, or none in it."""
    if reference is None:
        return None
    run = find(reference)
    folder = Path(run.run_dir) / "root" / "checkpoints"
    if not run.ended:
        raise BadInput(f"--resume-from {run.id}: it has not ended", hint=f"orchestrate cancel {run.id}")
    if not folder.is_dir() or not any(folder.iterdir()):
        hint = "the script saves them in $AIP_CHECKPOINT_DIR"
        raise BadInput(f"--resume-from {run.id}: it left no checkpoints", hint=hint)
    return folder


def _notes(spec: TrainingSpec, machine: catalog.Machine | None) -> tuple[str, ...]:
    notes = []
    if spec.backend == "local":
        if machine is not None:
            notes.append(f"capped to {machine.name}: {machine.label}")
            have = _cpus_here()
            if machine.vcpus and machine.vcpus > have:
                notes.append(
                    f"this machine has {have} CPUs, {machine.name} has {machine.vcpus}: expect it to be faster there"
                )
            if machine.gpu_count:
                notes.append(f"the {machine.gpu} is not rehearsed: the script sees what GPUs this machine has")
        if spec.spot:
            notes.append("--spot has no effect on a local run")
        if spec.budget_usd is not None:
            notes.append("--budget has no effect on a local run, which costs nothing")
    return tuple(notes)


def _cpus_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def submit(prepared: Prepared, *, progress: Progress | None = None) -> Launched:
    """Write the intent, make the package, start the run. After the first of these the run is never lost."""
    decided = prepared.plan
    state.make_private(decided.run_dir)
    lock = state.hold_lock(decided.run_dir / state.SUBMIT_LOCK)
    assert lock is not None, "a new run's folder belongs to nobody else"
    try:
        with Ledger.open(state.ledger_file()) as ledger:
            crashpoints.reached("ledger open")
            ledger.insert(run := _intent(prepared))
            crashpoints.reached("intent written")
            return _start(prepared, run, ledger, progress)
    except OrchestrateError:
        if not (decided.run_dir / "root").exists():
            shutil.rmtree(decided.run_dir, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _start(prepared: Prepared, run: Run, ledger: Ledger, progress: Progress | None) -> Launched:
    try:
        built = package.build(prepared.manifest, state.packages_dir(), progress=progress)
        crashpoints.reached("archive ready")
        ledger.move(run.id, RunState.PACKAGED)
        crashpoints.reached("packaged written")
        ledger.move(run.id, RunState.STARTING)
        crashpoints.reached("starting written")
        started = prepared.backend.submit(run, prepared.request, built.path, prepared.channels)
    except OrchestrateError as error:
        with contextlib.suppress(StateError):  # on a full disk a later command finds that nobody is at it any more
            ledger.move(run.id, RunState.ABANDONED, note=f"not started: {error.what}")
        raise
    crashpoints.reached("started")
    return Launched(ledger.get(run.id), started, built)


def _channel_folder(place: str) -> Path:
    if place.startswith(plan.SAMPLE):
        return sample_data.fetch(place.removeprefix(plan.SAMPLE))
    return Path(place)


def _intent(prepared: Prepared) -> Run:
    decided = prepared.plan
    return Run(
        id=decided.run_id,
        name=decided.name,
        backend=decided.spec.backend,
        state=RunState.CREATED,
        script=decided.entrypoint.script,
        script_key=decided.script_key,
        created_at=utc_now(),
        spec=specs.as_json(decided.spec),
        plan=plan.as_json(decided),
        run_dir=str(decided.run_dir),
        request=prepared.request,
        package_digest=decided.package_digest,
        estimated_usd="0" if decided.spec.backend == "local" else None,
    )


def reconcile() -> list[tuple[str, str]]:
    """Bring the ledger up to date with what really runs; hand out, once, what happened while nobody looked."""
    if not state.ledger_file().exists():
        return []
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        if not ledger.writable:
            return []
        for run in ledger.alive():
            backends.load(run.backend).refresh(run, ledger)
        return ledger.take_untold()


def find(reference: str | None) -> Run:
    """The run that *reference* means (an id or its beginning; None: the newest), as it stands now."""
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        run = ledger.get(reference)
        return run if run.ended else backends.load(run.backend).refresh(run, ledger)


def cancel(run: Run, *, grace_seconds: int, reason: str) -> None:
    """Ask *run* to stop; see Backend.cancel. The run's own end tells whether it did."""
    backends.load(run.backend).cancel(run, grace_seconds=grace_seconds, reason=reason)
