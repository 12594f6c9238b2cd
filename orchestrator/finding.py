"""Runs as they now stand: the ledger, brought up to date with what really runs, here and in the clouds."""

from __future__ import annotations

import contextlib
import sys

from orchestrator import backends, state
from orchestrator.errors import BadInput, CloudRefused, LoginNeeded, OutcomeUnknown, StateError
from orchestrator.runs import Ledger, Run


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


def find(reference: str | None) -> Run:
    """The run that *reference* means (an id or its beginning; None: the newest), as it stands now, as far as can be asked."""
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return _refreshed(ledger.get(reference), ledger)


def _refreshed(run: Run, ledger: Ledger) -> Run:
    if run.ended:
        return run
    try:
        return backends.load(run.backend).refresh(run, ledger)
    except (LoginNeeded, CloudRefused, OutcomeUnknown, BadInput) as error:
        if run.backend == "local":
            raise
        words = f"{error.what} ({error.hint})" if error.hint else error.what
        print(f"note: {run.id} is shown as it was last known: {words}", file=sys.stderr)
        return run


def mark_told(run: Run) -> None:
    """Somebody has been told how this run stands: the same command is a new run from now on, once it has ended."""
    with contextlib.suppress(StateError), Ledger.open_to_read(state.ledger_file()) as ledger:
        if ledger.writable:
            ledger.mark_told(run.id)
