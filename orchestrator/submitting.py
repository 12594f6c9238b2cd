"""Try what was prepared, in order: the first machine that can be had gets the run, and every step to it is said and kept."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from orchestrator import backends, launch, state
from orchestrator.backends import Progress
from orchestrator.errors import CloudRefused, LoginNeeded, OrchestrateError
from orchestrator.launch import Launched
from orchestrator.preparing import Prepared
from orchestrator.runs import Run, RunState

ELSEWHERE = ("quota", "capacity")
Follow = Callable[[Prepared, Launched], Run]
Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Sent:
    """What became of a submit: the attempt that got a machine, this command's hold on it, and the run as it now stands."""

    prepared: Prepared
    launched: Launched
    run: Run


def send(
    attempts: Sequence[Prepared],
    follow: Follow,
    *,
    tell: Tell,
    again: bool = False,
    confirm: Callable[[], None] = lambda: None,
    progress: Callable[[], AbstractContextManager[Progress | None]] = contextlib.nullcontext,
) -> Sent:
    """Launch the first of *attempts* that quota and capacity allow, and *follow* it. Raises what stopped the last one.

    A run that was asked for in the same words and is not over is gone on with instead, unless *again*: it has been paid for.
    Else *confirm* is asked before anything is sent, and raises where nobody says yes.
    """
    joined = None if again else launch.join(attempts)
    if joined is not None:
        prepared = next(one for one in attempts if one.launch_key == joined.run.launch_key)
        tell(_joined_words(joined.run))
        return Sent(prepared, joined, followed(partial(follow, prepared), joined, tell))
    confirm()
    rest, why = list(attempts), list[str]()
    while True:
        prepared = _explained(rest.pop(0), why)
        try:
            with progress() as bar:
                launched = launch.submit(prepared, progress=bar, again=again)
        except (CloudRefused, LoginNeeded) as error:
            rest = [other for other in rest if _may_replace(error, other)]
            if not rest:
                raise
            reason = error.what
        else:
            run = followed(partial(follow, prepared), launched, tell)
            if not rest or not _refused_later(run):
                return Sent(prepared, launched, run)
            reason = f"{run.id} {run.reason}"
        why.append(f"{_machine(prepared)}: {reason}")
        tell(f"{why[-1]}; trying {_machine(rest[0])}")


def _joined_words(run: Run) -> str:
    how = f"already {run.state}" if run.ended else "not over"
    return (
        f"{run.id} is the same submit, and {how}: going on with it, nothing is launched twice (--again starts another)"
    )


def _explained(prepared: Prepared, why: Sequence[str]) -> Prepared:
    """*prepared*, with what came before it among its notes: they stand in the ledger."""
    notes = (*prepared.plan.notes, *(f"before this: {reason}" for reason in why))
    return dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, notes=notes)) if why else prepared


def _machine(prepared: Prepared) -> str:
    machine = prepared.plan.machine
    return "this machine" if prepared.plan.spec.backend == "local" or machine is None else machine.name


def _may_replace(error: OrchestrateError, other: Prepared) -> bool:
    """May *other* be tried after *error*? Another machine for want of quota or capacity; this one also for want of a login."""
    from orchestrator.aws import explain

    if isinstance(error, LoginNeeded):
        return other.plan.spec.backend == "local"
    return error.__cause__ is not None and str(explain.classify(error.__cause__)) in ELSEWHERE


def _refused_later(run: Run) -> bool:
    """Did the job end because no machine could be had, after SageMaker had taken it?"""
    with contextlib.suppress(OSError, ValueError):
        kind = json.loads((Path(run.run_dir) / "explained.json").read_bytes())["kind"]
        return run.state == RunState.FAILED and kind in ELSEWHERE
    return False


def followed(follow: Callable[[Launched], Run], launched: Launched, tell: Tell) -> Run:
    """Follow the run; what a rehearsed cloud keeps is brought here at its end, since it keeps it in memory."""
    run = follow(launched)
    if run.rehearsed and run.ended and run.started_at is not None:
        root = state.make_private(Path(run.run_dir) / "root")
        try:
            backends.load(run.backend).collect(run, root, checkpoints=True)
        except OrchestrateError as error:  # how the run ended stands all the same
            tell(
                f"not all that {run.id} left could be brought here: {error.what}"
                + (f" ({error.hint})" if error.hint else "")
            )
    return run
