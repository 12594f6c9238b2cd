"""Runs as they now stand: the ledger, brought up to date with what really runs, here and in the clouds."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from orchestrator import backends, state
from orchestrator.aws import logs
from orchestrator.errors import BadInput, CloudRefused, Conflict, LoginNeeded, OutcomeUnknown, StateError
from orchestrator.runs import Ledger, Run

CATCH_UP_SECONDS = 5.0
# What keeps a cloud from telling how a run stands. Conflict: this login is of another account.
_UNTOLD = (LoginNeeded, CloudRefused, OutcomeUnknown, BadInput, Conflict)


def reconcile(*, clouds: bool = False) -> list[tuple[str, str]]:
    """Bring the ledger up to date with what really runs; hand out, once, what happened while nobody looked.

    clouds: ask for the runs there too, as far as they answer.
    """
    if not state.ledger_file().exists():
        return []
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        if not ledger.writable:
            return []
        for run in ledger.alive():
            if run.backend == "local":
                backends.load(run.backend).refresh(run, ledger)
            elif clouds:
                _refreshed(run, ledger)
        return ledger.take_untold()


def find(reference: str | None, *, lines: bool = False, own: bool = False) -> Run:
    """The run that *reference* means (an id or its beginning), as it stands now, as far as can be asked.

    None: the newest that was launched from here; where there is none, the newest of all, or BadInput if it must be one's
    *own*. lines: bring here also what a cloud's run has printed, and with it its metrics, for some seconds at most.
    """
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        run = ledger.get(reference) if reference is not None else _newest(ledger, own=own)
        now, told = _refreshed(run, ledger)
        writable = ledger.writable
    if lines and told and writable:
        _catch_up(now)
    return now


def _newest(ledger: Ledger, *, own: bool) -> Run:
    newest = ledger.get(None)
    if not newest.spec.get("elsewhere"):
        return newest
    found = next((run for run in ledger.newest() if not run.spec.get("elsewhere")), None)
    if found is None and own:
        what = "no run was launched from here: `list --sync` brought in those that there are"
        raise BadInput(what, hint=f"name the run, if it is one that you mean: {newest.id}")
    return found or newest


def _refreshed(run: Run, ledger: Ledger) -> tuple[Run, bool]:
    """*run* as it stands now, or as it was last known; and whether it was told."""
    if run.ended:
        return run, True
    try:
        return backends.load(run.backend).refresh(run, ledger), True
    except _UNTOLD as error:
        if run.backend == "local":
            raise
        words = f"{error.what} ({error.hint})" if error.hint else error.what
        print(f"note: {run.id} is shown as it was last known: {words}", file=sys.stderr)
        return run, False


def _catch_up(run: Run) -> None:
    if run.backend == "local" or run.started_at is None or logs.is_final(Path(run.run_dir)):
        return
    deadline = time.monotonic() + CATCH_UP_SECONDS
    try:
        for _ in backends.load(run.backend).logs(run, follow=False):
            if time.monotonic() > deadline:
                return
    except _UNTOLD as error:
        print(f"note: {run.id}: its last lines could not be fetched: {error.what}", file=sys.stderr)


def mark_told(run: Run) -> None:
    """Somebody has been told how this run stands: the same command is a new run from now on, once it has ended."""
    with contextlib.suppress(StateError), Ledger.open_to_read(state.ledger_file()) as ledger:
        if ledger.writable:
            ledger.mark_told(run.id)
