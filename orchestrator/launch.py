"""The story of a submit after all is decided: write the intent, package, start; and go on with one that was cut short."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import backends, books, crashpoints, package, plan, planned_cost, spending, state
from orchestrator import entrypoint as entrypoints
from orchestrator import samples as sample_data
from orchestrator import spec as specs
from orchestrator.backends import Backend, Progress, Started
from orchestrator.errors import BadInput, Conflict, Interrupted, OrchestrateError, OutcomeUnknown, StateError
from orchestrator.finding import find
from orchestrator.package import Manifest
from orchestrator.plan import Plan
from orchestrator.preparing import Prepared
from orchestrator.runs import ENDED, Ledger, Run, RunState, utc_now


@dataclass(frozen=True)
class Launched:
    """A run that has started, and this command's hold on it. joined: it was there already, and was gone on with."""

    run: Run
    started: Started
    package: package.Package | None = None
    joined: bool = False


def submit(prepared: Prepared, *, progress: Progress | None = None, again: bool = False) -> Launched:
    """Write the intent, make the package, start the run. After the first of these the run is never lost.

    A cloud's run that was asked for in the very same words, and that has not ended, or whose end nobody was told of, is gone
    on with, unless *again*: then Launched.joined says so.
    """
    key = prepared.launch_key
    if key is None:
        return _submit_new(prepared, progress)
    with state.locked(state.launch_lock(key)):
        crashpoints.reached("launch lock held")
        known = None if again else _same([key], prepared.asked_at)
        return _submit_new(prepared, progress) if known is None else _go_on(known, prepared, progress)


def join(prepared: Sequence[Prepared]) -> Launched | None:
    """The run that was asked for in the very same words as one of *prepared* and is not over, gone on with; see submit."""
    keys = [one.launch_key for one in prepared if one.launch_key is not None]
    known = _same(keys, prepared[0].asked_at) if keys else None
    if known is None:
        return None
    with state.locked(state.launch_lock(str(known.launch_key))):
        again = _same([str(known.launch_key)], prepared[0].asked_at)  # as it is now that nobody else is at it
        if again is None:
            return None
        return _go_on(again, next(one for one in prepared if one.launch_key == again.launch_key), None)


def resume(run: Run, *, progress: Progress | None = None) -> Launched:
    """Go on with a run whose submit was killed, or whose create call got no answer: nothing is launched twice."""
    if run.launch_key is None or run.ended:
        return Launched(run, backends.load(run.backend).hold(run), joined=True)
    with state.locked(state.launch_lock(run.launch_key)):
        return _go_on(_get(run.id), None, progress)


def _same(keys: Sequence[str], asked_at: str) -> Run | None:
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return ledger.same(keys, asked_at)


def _get(run_id: str) -> Run:
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return ledger.get(run_id)


def _go_on(run: Run, prepared: Prepared | None, progress: Progress | None) -> Launched:
    """Take *run* up where it was left; whoever calls this holds the launch lock of it."""
    backend = backends.load(run.backend)
    if run.state in (RunState.CREATED, RunState.PACKAGED, RunState.UPLOADED, RunState.STARTING):
        with state.locked(Path(run.run_dir) / state.SUBMIT_LOCK), Ledger.open(state.ledger_file()) as ledger:
            manifest = prepared.manifest if prepared else None
            channels = prepared.channels if prepared else _folders_of(run)
            started = _start(run, backend, manifest, channels, ledger, progress)
        return dataclasses.replace(started, joined=True)
    return Launched(find(run.id), backend.hold(run), joined=True)


def _folders_of(run: Run) -> dict[str, Path]:
    return {name: _channel_folder(place) for name, place in run.plan["channels"].items() if "s3://" not in place}


def _submit_new(prepared: Prepared, progress: Progress | None) -> Launched:
    decided = prepared.plan
    state.make_private(decided.run_dir)
    lock = state.hold_lock(decided.run_dir / state.SUBMIT_LOCK)
    assert lock is not None, "a new run's folder belongs to nobody else"
    try:
        with Ledger.open(state.ledger_file()) as ledger:
            crashpoints.reached("ledger open")
            with books.prices_of(decided.spec):
                # In one transaction with the row: what is left of a month is this run's or another's, never both's.
                ledger.insert(run := _intent(prepared), admit=spending.admission(decided))
            crashpoints.reached("intent written")
            return _start(run, prepared.backend, prepared.manifest, prepared.channels, ledger, progress)
    except OrchestrateError:
        if not (decided.run_dir / "root").exists():
            shutil.rmtree(decided.run_dir, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _start(
    run: Run,
    backend: Backend,
    manifest: Manifest | None,
    channels: Mapping[str, Path],
    ledger: Ledger,
    progress: Progress | None,
) -> Launched:
    def advance(state: RunState, *, note: str | None = None) -> None:
        # Never back from `starting`: from then on the job may be there, and only asking for it tells.
        unless = (*ENDED, RunState.STARTING) if state is RunState.UPLOADED else ENDED
        if not ledger.move(run.id, state, note=note, unless=unless) and ledger.get(run.id).ended:
            raise Conflict(
                f"{run.id} was cancelled meanwhile", hint="nothing was launched; submit it again if you want to"
            )

    request = run.request
    assert request is not None
    try:
        built = _package(run, manifest, progress)
        crashpoints.reached("archive ready")
        if run.state == RunState.CREATED:
            advance(RunState.PACKAGED)
        crashpoints.reached("packaged written")
        started = backend.submit(run, request, built.path, channels, advance, progress)
    except OutcomeUnknown:
        raise  # it stays as it is, for `orchestrate resume`
    except KeyboardInterrupt:
        if run.backend == "local":
            raise
        raise _interrupted(ledger.get(run.id), backend) from None
    except OrchestrateError as error:
        _not_started(run, error, ledger)
        raise
    crashpoints.reached("started")
    return Launched(ledger.get(run.id), started, built)


def _interrupted(run: Run, backend: Backend) -> Interrupted:
    """What Ctrl-C in the middle of a submit leaves, and how to go on or to stop it."""
    if run.ended or run.state in (RunState.CREATED, RunState.PACKAGED, RunState.UPLOADED):
        what = f"{run.id} had not been sent yet: nothing runs"
        return Interrupted(what, hint=f"the same command again, or orchestrate resume {run.id}, goes on with it")
    if backend.cancel_on_interrupt:
        backend.cancel(run, grace_seconds=run.plan["limits"]["grace_seconds"], reason="Ctrl-C")
        return Interrupted(f"interrupted, and {run.id} was told to stop", hint=f"orchestrate status {run.id}")
    bill = backend.hold(run).interrupted(1).message.partition(" To stop it:")[0].partition(": ")[2]
    what = f"{run.id} was being sent and may run in the cloud: {bill}"
    hint = f"orchestrate cancel {run.id} ends it; orchestrate resume {run.id} goes on with it"
    return Interrupted(what, hint=hint)


def _not_started(run: Run, error: OrchestrateError, ledger: Ledger) -> None:
    """Write down why nothing was launched, as long as no create call can have left; of what comes later a backend tells."""
    with contextlib.suppress(StateError):  # on a full disk a later command finds that nobody is at it any more
        if ledger.get(run.id).state != RunState.STARTING or run.backend == "local":
            ledger.move(run.id, RunState.ABANDONED, note=f"not started: {error.what}")
        if ledger.get(run.id).ended:
            ledger.mark_told(run.id)


def _package(run: Run, manifest: Manifest | None, progress: Progress | None) -> package.Package:
    """The archive of *run*, made where it is not there yet. Raises BadInput where its source has changed since."""
    if manifest is None:
        digest, place = str(run.package_digest), state.packages_dir() / f"{run.package_digest}.tar.gz"
        if place.exists():
            return package.Package(digest, place, run.plan["package"]["size_bytes"], place.stat().st_size, reused=True)
        found = entrypoints.find(run.spec["script"], run.spec["source_dir"], Path(run.plan["source_dir"]))
        listing = package.walk(found.source_dir, script=found.script, allow_files=tuple(run.spec["allow_files"]))
        manifest = package.hash_files(listing, packages_dir=state.packages_dir(), progress=progress)
        if manifest.digest != digest:
            what = f"the source of {run.id} has changed since it was submitted, and nothing of it had been sent"
            raise BadInput(what, hint="submit it again: that is another run")
    return package.build(manifest, state.packages_dir(), progress=progress)


def _channel_folder(place: str) -> Path:
    if place.startswith(plan.SAMPLE):
        return sample_data.fetch(place.removeprefix(plan.SAMPLE))
    return Path(place)


def _intent(prepared: Prepared) -> Run:
    decided = prepared.plan
    cloud = decided.cloud
    described = plan.as_json(decided)
    if cloud is not None:
        described["job"] = plan.job_file(decided)
    if (most := spending.reservation(decided)) is not None:
        described["ceiling"] = most
    return Run(
        id=decided.run_id,
        name=decided.name,
        backend=decided.spec.backend,
        state=RunState.CREATED,
        script=decided.entrypoint.script,
        script_key=decided.script_key,
        created_at=utc_now(),
        spec=specs.as_json(decided.spec),
        plan=described,
        run_dir=str(decided.run_dir),
        request=prepared.request,
        package_digest=decided.package_digest,
        estimated_usd=_estimate(decided),
        remote_id=None if cloud is None else cloud.job_name,
        launch_key=prepared.launch_key,
        region=None if cloud is None else cloud.region,
        rehearsed=cloud is not None and cloud.rehearsed,
        endpoint=None if cloud is None else cloud.endpoint,
    )


def _estimate(decided: Plan) -> str | None:
    if decided.spec.backend == "local":
        return "0"
    usd = planned_cost.machines_usd(decided)
    return None if usd is None else f"{usd:.6f}"


def cancel(run: Run, *, grace_seconds: int, reason: str) -> None:
    """Ask *run* to stop; see Backend.cancel. The run's own end tells whether it did."""
    backends.load(run.backend).cancel(run, grace_seconds=grace_seconds, reason=reason)
