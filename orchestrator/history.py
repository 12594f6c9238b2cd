"""How long this script's earlier runs took, and on what: what an estimate can start from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from estimates.bill import Span
from orchestrator import spec as specs
from orchestrator import state
from orchestrator.spec import TrainingSpec

if TYPE_CHECKING:
    from orchestrator.runs import Run

LOOK_BACK = 500  # runs of all scripts
USED = 5  # of one machine
_ALIKE = ("hyperparameters", "data", "processes", "count")


@dataclass(frozen=True)
class Earlier:
    """What earlier runs tell of one machine; billable, around_included and held_seconds are meant as in estimates.bill.Job.

    On this machine the seconds are the script's own.
    """

    machine: str | None  # None: this machine
    seconds: Span
    billable: bool
    words: str
    around_included: bool = False
    held_seconds: Span | None = None

    @property
    def wall_clock(self) -> Span:
        """How long it took from start to end: what stands for another machine, or another market."""
        return self.seconds if self.held_seconds is None else self.held_seconds


def of_script(
    script_key: str, arguments: Sequence[str] | None, *, count: int, spot: bool, like: TrainingSpec | None = None
) -> dict[str | None, Earlier]:
    """By machine, what the newest successful runs of the script took; {} if it has never run.

    arguments: only runs with exactly these; None: those of the newest run. like: only runs with its hyperparameters, data
    and processes too. A rehearsal took this machine's time.
    """
    from orchestrator.runs import Ledger, RunState  # an estimate with --hours needs no ledger

    with Ledger.open_to_read(state.ledger_file()) as ledger:
        runs = [run for run in ledger.newest(LOOK_BACK) if run.script_key == script_key]
    runs = [run for run in runs if run.state == RunState.SUCCEEDED and run.seconds() is not None]
    if arguments is None and runs:
        arguments = runs[0].spec["arguments"]
    runs = [run for run in runs if list(run.spec["arguments"]) == list(arguments or ())]
    if like is not None:
        asked = specs.as_json(like)
        runs = [run for run in runs if all(run.spec.get(key) == asked[key] for key in _ALIKE)]
    found: dict[str | None, list[Run]] = {}
    for run in runs:
        found.setdefault(_where(run), []).append(run)
    return {machine: _told(machine, several[:USED], count, spot) for machine, several in found.items()}


def newest(known: Mapping[str | None, Earlier]) -> Earlier | None:
    """What stands for machines on which it has not run: this machine's time, else that of the machine used last."""
    return known.get(None) or next(iter(known.values()), None)


def _where(run: Run) -> str | None:
    machine = run.plan.get("machine")
    return machine["name"] if machine and run.backend != "local" and not run.rehearsed else None


def _told(machine: str | None, runs: list[Run], count: int, spot: bool) -> Earlier:
    # A spot run's billable seconds have the discount in them, and one of other hosts another share of the work.
    same = [run for run in runs if run.billable_seconds is not None and _spot(run) == spot and _count(run) == count]
    billable = machine is not None and bool(same)
    used = same if billable else runs
    many = "the last run" if len(used) == 1 else f"the last {len(used)} runs"
    where = "here" if machine is None else f"on {machine}"
    hosts = {_count(run) for run in used}
    other = "" if hosts == {count} else f", with {', '.join(map(str, sorted(hosts)))} machines"
    clock = _span([_exact(run) for run in used])
    return Earlier(
        machine,
        seconds=_span([_trained(run) for run in used]) if billable else clock,
        billable=billable,
        words=f"{many} {where}{', as billed' if billable else ''}{other}",
        around_included=machine is not None and not (billable and spot),
        held_seconds=clock if billable and spot else None,
    )


def _span(seconds: list[Decimal]) -> Span:
    from statistics import median

    return Span(min(seconds), Decimal(median(seconds)), max(seconds))


def _trained(run: Run) -> Decimal:
    """What was billed for the job itself: more than its wall clock, in begun seconds, is the warm pool's after it."""
    return min(Decimal(run.billable_seconds or 0), Decimal(math.ceil(_exact(run))))


def _exact(run: Run) -> Decimal:
    return Decimal(str(run.seconds() or 0))


def _spot(run: Run) -> bool:
    return bool(run.spec.get("spot"))


def _count(run: Run) -> int:
    return int(run.spec.get("count") or 1)
