"""What people see: plans, tables, receipts. Plain text where no one looks at a terminal, no colour where NO_COLOR is set."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import bill_tree, money, planned_cost
from orchestrator.backends import Artifact, Progress
from orchestrator.comparison import costs_json as costs_json
from orchestrator.comparison import show_costs
from orchestrator.errors import OrchestrateError
from orchestrator.package import Manifest, Package
from orchestrator.plan import Plan
from orchestrator.preparing import megabytes
from orchestrator.runs import Event, Run, RunState, utc_now
from orchestrator.tables import Column, console, duration, print_pairs, print_table
from orchestrator.tables import cell as cell
from orchestrator.tables import clean as clean
from orchestrator.tables import counted as counted

if TYPE_CHECKING:
    from rich.console import Console

SHOWN_LEFT_OUT = 20
_COLOURS: Mapping[str, str] = {
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "red",
    RunState.RUNNING: "cyan",
    RunState.STOPPED: "yellow",
}


def print_json(value: object) -> None:
    """*value* on stdout as one JSON document; numbers that JSON does not have become "nan", "inf" and "-inf"."""
    finite = _finite(value)
    text = json.dumps(finite, ensure_ascii=False, indent=2, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # half a letter of a file's name, or a stdout that knows fewer letters
        text = json.dumps(finite, indent=2, allow_nan=False)
    sys.stdout.write(text + "\n")


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _finite(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return value


def shown_name(path: Path | str) -> str:
    """*path* as it is, or quoted where it holds what cannot be printed."""
    name = str(path)
    return name if name.isprintable() else repr(name)


# Plans


def show_plan(plan: Plan, manifest: Manifest, request: Mapping[str, Any]) -> None:
    """The whole of a dry run: what would be done, what goes along, the request, what it would cost."""
    out = console()
    print_pairs(out, ((name, cell(words)) for name, words in plan_lines(plan)))
    out.print("\n[bold]Package[/]")
    show_manifest(manifest, out)
    out.print("\n[bold]Request[/] (exactly what would be sent; nothing has been sent, uploaded or written)")
    out.out(clean(json.dumps(request, ensure_ascii=False, indent=2)))
    out.print()
    _show_bill(plan, out)
    show_costs(plan, plan.seconds, plan.seconds_from, out)


def _show_bill(plan: Plan, out: Console) -> None:
    bill = planned_cost.bill_of(plan)
    if bill is None:
        return
    out.print("[bold]Bill[/]")
    if planned_cost.at_most(
        plan
    ):  # the parts of a job that runs until its hard stop would be more than it can be billed
        out.print(cell(str(planned_cost.in_words(plan))))
    else:
        out.print(cell(plan.seconds_from))
        bill_tree.show(bill, out)
    old = planned_cost.age_note(plan)
    if old is not None:
        out.print(cell(old))
    out.print()


def plan_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """The plan as (name, words) pairs."""
    spec = plan.spec
    yield "script", f"{plan.entrypoint.script} ({plan.entrypoint.chosen})"
    yield "source", shown_name(plan.entrypoint.source_dir)
    if spec.hyperparameters:
        yield "hyperparameters", " ".join(f"{name}={value}" for name, value in spec.hyperparameters)
    if spec.arguments:
        yield "arguments", " ".join(spec.arguments)
    for name, place in plan.channels:
        yield "data", f"{name} ← {place}"
    if plan.checkpoints_from is not None:
        yield "checkpoints", f"from {plan.checkpoints_from}"
    if spec.environment:
        yield "environment", " ".join(name for name, _ in spec.environment)
    yield "backend", spec.backend
    if plan.machine is not None:
        yield "machine", f"{plan.machine.name}: {plan.machine.label}"
    yield "processes", str(spec.processes)
    yield from _place_lines(plan)
    yield "hard stop", f"{_hard_stop(plan)}; {plan.grace_seconds} s to save after SIGTERM"
    free = "$0 (this machine)" if spec.backend == money.HERE else "$0 (rehearsed)" if spec.rehearse else None
    yield "cost here", free or "see below"
    yield (
        "package",
        f"{plan.package_digest[:16]}…, {counted(plan.package_files, 'file')}, {megabytes(plan.package_bytes)}",
    )
    for note in plan.notes:
        yield "note", note


def _place_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """Where in a cloud the run goes."""
    if plan.cloud is None:
        return
    place = plan.cloud
    yield "training job", place.job_name
    yield "region", place.region
    yield "role", place.role
    yield "bucket", place.bucket
    yield "image", f"{place.image} ({place.image_from})"
    if place.endpoint is not None or place.rehearsed:
        yield "rehearsed", "on this machine, by a stand-in for the cloud; nothing leaves it and nothing is billed"


def _hard_stop(plan: Plan) -> str:
    if plan.cloud is None:
        return "none (a local run)" if plan.spec.max_hours is None else f"{plan.spec.max_hours} h"
    stop = f"{plan.cloud.max_seconds / 3600:.3g} h ({plan.cloud.max_seconds_from})"
    wait = plan.cloud.max_wait_seconds
    return stop if wait is None else f"{stop}, {wait / 3600:.3g} h with the wait for spot machines"


def show_manifest(manifest: Manifest, out: Console | None = None) -> None:
    """What goes in, what stays out and by which rule, sizes and digest."""
    out = out or console()
    columns = (Column("size", right=True), Column("mode"), Column("file", least=16), Column("rule", least=16))
    rows = [
        [cell(f"{file.size_bytes:,}"), cell(f"{file.mode:o}"), cell(shown_name(file.path)), cell(file.rule)]
        for file in manifest.files
    ]
    print_table(out, columns, rows, dropped_first=("mode",))
    if manifest.left_out:
        out.print(f"[bold]left out[/] ({len(manifest.left_out)})")
        rows = [
            [cell(shown_name(item.path) + ("/" if item.is_dir else "")), cell(item.rule)]
            for item in manifest.left_out[:SHOWN_LEFT_OUT]
        ]
        print_table(out, (Column("path", least=16), Column("rule", least=16)), rows)
        if len(manifest.left_out) > SHOWN_LEFT_OUT:
            out.print(f"… and {len(manifest.left_out) - SHOWN_LEFT_OUT} more: --json lists all")
    out.print(f"{counted(len(manifest.files), 'file')}, {megabytes(manifest.size_bytes)}, digest {manifest.digest}")


def manifest_json(manifest: Manifest, package: Package | None = None) -> dict[str, Any]:
    """The manifest as plain data; with *package*, where its archive lies."""
    files = [
        {"path": f.path, "mode": f"{f.mode:o}", "size_bytes": f.size_bytes, "sha256": f.sha256, "rule": f.rule}
        for f in manifest.files
    ]
    left_out = [{"path": item.path, "rule": item.rule, "folder": item.is_dir} for item in manifest.left_out]
    archive = None
    if package is not None:
        archive = {"path": str(package.path), "compressed_bytes": package.compressed_bytes, "reused": package.reused}
    return {
        "source_dir": str(manifest.source_dir),
        "digest": manifest.digest,
        "size_bytes": manifest.size_bytes,
        "files": files,
        "left_out": left_out,
        "archive": archive,
    }


# Runs

_RUN_COLUMNS = (
    Column("run"),
    Column("state"),
    Column("script", least=12, cut=True),
    Column("backend"),
    Column("machine"),
    Column("created (UTC)"),
    Column("took", right=True),
    Column("cost", right=True),
    Column("metrics", least=20, cut=True),
)


def show_runs(runs: Sequence[Run], metrics: Mapping[str, Mapping[str, float]]) -> None:
    """The ledger as a table, newest first."""
    now = utc_now()
    rows = []
    for run in runs:
        machine = run.plan.get("machine") or {}
        words = (
            run.id,
            run.state,
            shown_name(run.script),
            f"{run.backend}, rehearsed" if run.rehearsed else run.backend,
            machine.get("name", "this one"),
            run.created_at[:19].replace("T", " "),
            duration(run.seconds(now)),
            money.short(run, now),
            metric_words(metrics.get(run.id, {}), limit=3),
        )
        cells = [cell(text) for text in words]
        cells[1].stylize(_COLOURS.get(run.state, ""))
        rows.append(cells)
    print_table(console(), _RUN_COLUMNS, rows, ("backend", "machine", "created (UTC)", "cost", "took", "metrics"))


def metric_words(values: Mapping[str, float], limit: int | None = None) -> str:
    """`val_accuracy 0.981  val_loss 0.063`: test results first, then validation, then the rest."""
    order = {"test": 0, "val": 1, "train": 3}
    names = sorted(values, key=lambda name: order.get(name.split("_")[0], 2))
    return "  ".join(f"{name} {_number(values[name])}" for name in names[:limit])


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def show_status(
    run: Run,
    events: Sequence[Event],
    metrics: Mapping[str, float],
    error_lines: str | None,
    remedy: str | None = None,
) -> None:
    """One run: how it stands, how it came there, what it measured and cost, and what to type next.

    remedy: what mends the failure, where that is known.
    """
    out = console()
    lines = {
        "run": f"{run.id} ({run.name})",
        "state": run.state + (f": {run.reason}" if run.reason else ""),
        **_cloud_lines(run),
        "script": f"{shown_name(run.script)} from {shown_name(str(run.plan.get('source_dir')))}",
        "package": run.package_digest or "-",
        "took": duration(run.seconds()),
        "cost": money.in_full(run),
        "exit code": "-" if run.exit_code is None else str(run.exit_code),
        "metrics": metric_words(metrics) or "-",
        "folder": shown_name(run.run_dir),
    }
    print_pairs(out, ((name, cell(words)) for name, words in lines.items()))
    for event in events:
        note = f"  {event.note}" if event.note else ""
        out.print(cell(f"  {event.at[:19].replace('T', ' ')}  {event.state}{note}"))
    if error_lines:
        out.print("[bold]its own last lines[/]")
        out.out(clean(error_lines))
    if remedy:
        out.print(cell(f"try: {remedy}"))
    out.print(next_steps(run))


def _cloud_lines(run: Run) -> dict[str, str]:
    """What there is to say of a run that a cloud has, or that a rehearsal of it had."""
    if run.backend == money.HERE:
        return {}
    machine = run.plan.get("machine") or {}
    count = int(run.plan.get("count") or 1)
    lines = {
        "in the cloud": run.remote_status or "-",
        "training job": run.remote_id or "-",
        "machine": (f"{count} × " if count > 1 else "") + machine.get("name", "-"),
        "region": run.region or "-",
        "elapsed": f"{duration(run.age())} since it was asked for",
    }
    return lines | ({"rehearsed": f"on this machine, at {run.endpoint}"} if run.rehearsed else {})


def show_receipt(plan: Plan | None, run: Run, metrics: Mapping[str, float]) -> None:
    """What a successful run leaves behind: time, cost, metrics, model, and what the same run would cost elsewhere."""
    from orchestrator import backends

    out = console()
    here = run.backend == money.HERE
    cost_words = "$0 (this machine)" if here else money.in_full(run)
    out.print(f"\n[bold green]{run.id} succeeded[/] in {duration(run.seconds())}, cost {cost_words}")
    if metrics:
        out.print(cell(f"  {metric_words(metrics)}"))
    try:
        found = backends.load(run.backend).artifacts(run)
    except OrchestrateError as error:  # of a listing that is refused; the run succeeded all the same
        found = []
        out.print(cell(f"  its files cannot be listed: {error.what}"))
    for folder, files in _by_folder(found).items():
        size = megabytes(sum(file.size_bytes for file in files))
        line = cell(f"  {shown_name(folder)}: {counted(len(files), 'file')}, {size}  {_place_of(folder, files)}")
        out.print(line, soft_wrap=True)  # the terminal breaks the path, so that it is copied whole
    out.print()
    if plan is not None:
        seconds = run.seconds() if run.billable_seconds is None else run.billable_seconds
        took = "here" if here or run.rehearsed else "in the cloud"
        show_costs(plan, seconds, f"as long as it took {took}", out)
    out.print(f"{next_steps(run)}   or: orchestrate status {run.id}")


def _by_folder(found: Sequence[Artifact]) -> dict[str, list[Artifact]]:
    folders: dict[str, list[Artifact]] = {}
    for artifact in found:
        folders.setdefault(artifact.path.partition("/")[0], []).append(artifact)
    return folders


def _place_of(folder: str, files: Sequence[Artifact]) -> str:
    """Where *folder* lies, in the words of its first file's place."""
    first = files[0]
    place = first.place.removesuffix(first.path) + folder
    return shown_name(place) if "://" in place else shown_path(place)


def next_steps(run: Run) -> str:
    if not run.ended:
        return f"next: orchestrate logs {run.id} --follow   or: orchestrate cancel {run.id}"
    if run.state == RunState.SUCCEEDED:
        return f"next: orchestrate artifacts {run.id} --to DIR"
    return f"next: orchestrate logs {run.id}"


def run_json(run: Run, metrics: Mapping[str, float], events: Sequence[Event] = ()) -> dict[str, Any]:
    """One run as plain data."""
    return {
        "id": run.id,
        "name": run.name,
        "backend": run.backend,
        "state": run.state,
        "reason": run.reason,
        "script": run.script,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "seconds": run.seconds(),
        "exit_code": run.exit_code,
        "package_digest": run.package_digest,
        "estimated_usd": run.estimated_usd,
        "actual_usd": run.actual_usd,
        "billable_seconds": run.billable_seconds,
        "region": run.region,
        "remote_id": run.remote_id,
        "remote_status": run.remote_status,
        "launch_key": run.launch_key,
        "rehearsed": run.rehearsed,
        "endpoint": run.endpoint,
        "metrics": dict(metrics),
        "run_dir": run.run_dir,
        "plan": run.plan,
        "events": [{"at": event.at, "state": event.state, "note": event.note} for event in events],
    }


def show_artifacts(run: Run, found: Sequence[Artifact]) -> None:
    out = console()
    if not found:
        out.print(f"{run.id} left no files")
        return
    columns = (Column("size", right=True), Column("file", least=20), Column("place", least=20))
    rows = [
        [cell(megabytes(artifact.size_bytes)), cell(shown_name(artifact.path)), cell(shown_name(artifact.place))]
        for artifact in found
    ]
    print_table(out, columns, rows, dropped_first=("place",))
    out.print(f"next: orchestrate artifacts {run.id} --to DIR")


# Progress


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A progress bar on stderr for what takes over two seconds; None where nobody is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    import time

    from rich.progress import Progress as Bar

    began = time.monotonic()
    bar = Bar(console=console(stderr=True), transient=True)
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total)
        if time.monotonic() - began > 2 and not bar.live.is_started:
            bar.start()

    try:
        yield report
    finally:
        bar.stop()


def shown_path(path: Path | str) -> str:
    """*path* with the home folder as `~`, quoted where it holds what cannot be printed."""
    with contextlib.suppress(ValueError):
        return shown_name("~/" + str(Path(path).relative_to(Path.home())))
    return shown_name(path)
