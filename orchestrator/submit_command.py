"""What `orchestrate submit` does behind its flags: prepare, send, follow, and tell how it ended."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import typer

from orchestrator import (
    books,
    crashpoints,
    finding,
    plan,
    planned_cost,
    preparing,
    render,
    spending,
    staging,
    state,
    submitting,
    watch,
)
from orchestrator import smoke as smoke_run
from orchestrator.errors import BadInput, OverBudget
from orchestrator.launch import Launched
from orchestrator.preparing import Prepared
from orchestrator.runs import Ledger, Run
from orchestrator.settings import Flags
from orchestrator.spec import TrainingSpec


@dataclass(frozen=True)
class How:
    """The flags of `submit` that are about the command, not about the run."""

    config: Path | None
    faults: tuple[str, ...]
    dry_run: bool
    smoke: bool
    detach: bool
    again: bool
    cancel_on_interrupt: bool
    yes: bool
    as_json: bool


def run(flags: Flags, how: How) -> None:
    """Do what *flags* ask for. Raises whatever is to be told, the script's own failure included."""
    spec = _stopped(preparing.read_spec(flags, Path.cwd(), how.config), how)
    with books.prices_of(spec):
        _run(spec, how)


def _run(spec: TrainingSpec, how: How) -> None:
    attempts = _prepare(spec, how)
    if how.dry_run:
        _show_dry_run(attempts, as_json=how.as_json)
        return
    for prepared in attempts:
        prepared.backend.cancel_on_interrupt = how.cancel_on_interrupt
    if how.smoke:
        smoke_run.run(attempts[0], lambda line: print(line, file=sys.stderr))
    if how.detach and len(attempts) > 1:
        say("detached: the next machine is tried where one is refused at once, not where capacity fails later")
    follow = partial(_detached if how.detach else _attached, as_json=how.as_json)
    try:
        confirm = partial(_confirm_cost, attempts, yes=how.yes)
        sent = submitting.send(
            attempts, follow, tell=say, again=how.again, confirm=confirm, progress=render.progress_bar
        )
    finally:
        if how.faults and not how.detach:
            staging.disarm()
    if not how.detach:
        tell_end(sent.prepared, sent.run, as_json=how.as_json)


def say(line: str) -> None:
    print(f"note: {render.clean(line)}", file=sys.stderr)


def _stopped(spec: TrainingSpec, how: How) -> TrainingSpec:
    """*spec* with a hard stop: asked for at a terminal where none was given; else the cloud's own, which the plan says aloud."""
    question = spending.hard_stop_question(spec)
    if question is None or how.yes or how.dry_run or not sys.stdin.isatty():
        return spec
    print(f"{question} ", end="", file=sys.stderr, flush=True)
    return spending.with_hard_stop(spec, sys.stdin.readline())


def _confirm_cost(attempts: tuple[Prepared, ...], *, yes: bool) -> None:
    """Show what a cloud run is thought to cost, and ask where that is over confirm_above_usd. Raises OverBudget at a no."""
    plans = [prepared.plan for prepared in attempts]
    for words in (planned_cost.in_words(plans[0]), planned_cost.age_note(plans[0])):
        if words is not None:
            say(words)
    question = spending.confirmation(plans)
    if question is not None and not confirmed(question, yes=yes):
        raise spending.unconfirmed(question)


def _prepare(spec: TrainingSpec, how: How) -> tuple[Prepared, ...]:
    folder = Path.cwd()
    if how.faults and not spec.rehearse:
        raise BadInput("--fault is for a rehearsed cloud: the real one has faults of its own", hint="add --rehearse")
    confirm = partial(confirmed, yes=how.yes)
    fetch = not how.dry_run
    with render.progress_bar() as progress:
        return preparing.prepare_all(
            spec, folder, confirm=confirm, progress=progress, fetch=fetch, faults=how.faults, asked_at=_typed_at()
        )


def _typed_at() -> str:
    """When this command was typed: before anything was imported, which can take long where many begin at once.

    Not a second too early: a run that was over before this was typed is not what it asks for. psutil reckons from Linux's
    boot time, which is told in whole seconds, so there the age is read from the same clock that the kernel stamps starts with.
    """
    return (datetime.now(UTC) - timedelta(seconds=_age_seconds())).isoformat(timespec="milliseconds")


def _age_seconds() -> float:
    """For how long this process has been there."""
    if sys.platform == "linux":
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        started = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")  # field 22: ticks since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    import psutil

    return time.time() - psutil.Process().create_time()


def confirmed(question: str, *, yes: bool) -> bool:
    if yes or not sys.stdin.isatty():
        return yes
    return typer.confirm(f"{question}. Go on?", err=True)


def _show_dry_run(attempts: tuple[Prepared, ...], *, as_json: bool) -> None:
    for prepared in attempts[: 1 if as_json else None]:
        decided = prepared.plan
        if as_json:
            render.print_json(
                {
                    "plan": plan.as_json(decided),
                    "package": render.manifest_json(prepared.manifest),
                    "request": prepared.request,
                    "costs": render.costs_json(decided, decided.seconds),
                    "next_attempts": [other.request for other in attempts[1:]],
                }
            )
        else:
            render.show_plan(decided, prepared.manifest, prepared.request)
    refusal = _refusal(attempts[0].plan)
    if refusal is not None:
        say(f"without --dry-run this would be refused: {refusal.what} ({refusal.hint})")


def _refusal(decided: plan.Plan) -> OverBudget | None:
    """What the month's limit would say to this run."""
    try:
        admit = spending.admission(decided)
        if admit is not None:
            with Ledger.open_to_read(state.ledger_file()) as ledger:
                admit(ledger.billed_since)
    except OverBudget as error:
        return error
    return None


def _say_start(prepared: Prepared, run: Run) -> None:
    decided = prepared.plan
    script = render.shown_name(decided.entrypoint.script)
    print(f"run {run.id}: {script} ({decided.entrypoint.chosen})", file=sys.stderr)
    for note in decided.notes:
        print(f"note: {note}", file=sys.stderr)


def _detached(prepared: Prepared, launched: Launched, *, as_json: bool) -> Run:
    _say_start(prepared, launched.run)
    launched.started.let_go()
    crashpoints.reached("let go")
    run = launched.run
    if as_json:
        render.print_json(render.run_json(run, {}))
    else:
        print(f"{run.id} goes on by itself\nnext: orchestrate logs {run.id} --follow   or: orchestrate cancel {run.id}")
    sys.stdout.flush()
    finding.mark_told(run)
    return run


def _attached(prepared: Prepared, launched: Launched, *, as_json: bool) -> Run:
    # Not before the start: what `2>&1 | tee train.log` writes here must not change what is being packed.
    _say_start(prepared, launched.run)
    return watch.until_the_end(launched, sys.stderr if as_json else sys.stdout)


def tell_end(prepared: Prepared | None, run: Run, *, as_json: bool) -> None:
    """The receipt, or what went wrong: and from here on the same command is another run."""
    metrics = watch.last_metrics(run)
    fault = watch.fault(run)
    if as_json:
        told = {} if fault is None else {"error": fault.what, "hint": fault.hint}
        costs = {"costs": render.costs_json(prepared.plan, run.billable_seconds or run.seconds())} if prepared else {}
        render.print_json({**render.run_json(run, metrics), **told, **costs})
    elif fault is None:
        render.show_receipt(prepared.plan if prepared else None, run, metrics)
    sys.stdout.flush()
    crashpoints.reached("receipt printed")
    finding.mark_told(run)
    if fault is not None:
        if as_json:  # it stands in the run's own document
            raise typer.Exit(fault.exit_code)
        raise fault
