"""What people see: plans, tables, receipts. Plain text where no one looks at a terminal, no colour where NO_COLOR is set."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimates import cost
from orchestrator.backends import Artifact
from orchestrator.launch import Progress, megabytes
from orchestrator.package import Manifest, Package
from orchestrator.plan import Plan
from orchestrator.runs import Event, Run, RunState

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHOWN_LEFT_OUT = 20
_COLOURS: Mapping[str, str] = {
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "red",
    RunState.RUNNING: "cyan",
    RunState.STOPPED: "yellow",
}


def console(*, stderr: bool = False) -> Console:
    """A console that keeps lines whole where it is not a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 160
    return Console(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty())


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in right
        )
    return table


def print_json(value: object) -> None:
    """*value* on stdout as one JSON document."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def clean(text: str) -> str:
    """*text* without control codes: what came from elsewhere must not move the cursor or colour the screen."""
    return "".join(letter if letter in "\n\t" or letter.isprintable() or letter == " " else "\ufffd" for letter in text)


def duration(seconds: float | None) -> str:
    """`3.2 s`, `4 min 05 s`, `2 h 03 min`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


# Plans


def show_plan(plan: Plan, manifest: Manifest, request: Mapping[str, Any]) -> None:
    """The whole of a dry run: what would be done, what goes along, the request, what it would cost."""
    from rich.markup import escape

    out = console()
    rows = _table("", "")
    rows.show_header = False
    for name, value in plan_lines(plan):
        rows.add_row(f"[bold]{name}[/]", escape(clean(value)))
    out.print(rows)
    out.print("\n[bold]Package[/]")
    show_manifest(manifest, out)
    out.print("\n[bold]Request[/] (exactly what would be sent; nothing has been sent, uploaded or written)")
    out.out(json.dumps(request, ensure_ascii=False, indent=2))
    out.print()
    show_costs(plan, plan.seconds, plan.seconds_from, out)


def plan_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """The plan as (name, words) pairs."""
    spec = plan.spec
    yield "script", f"{plan.entrypoint.script} ({plan.entrypoint.chosen})"
    yield "source", str(plan.entrypoint.source_dir)
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
    stop = "none (a local run)" if spec.max_hours is None else f"{spec.max_hours} h"
    yield "hard stop", f"{stop}; {spec.grace_seconds} s to save after SIGTERM"
    yield "cost here", "$0 (this machine)" if spec.backend == "local" else "see below"
    yield (
        "package",
        f"{plan.package_digest[:16]}…, {counted(plan.package_files, 'file')}, {megabytes(plan.package_bytes)}",
    )
    for note in plan.notes:
        yield "note", note


def show_manifest(manifest: Manifest, out: Console | None = None) -> None:
    """What goes in, what stays out and by which rule, sizes and digest."""
    from rich.markup import escape

    out = out or console()
    table = _table("size", "mode", "file", "rule", right=("size",))
    for file in manifest.files:
        table.add_row(
            f"{file.size_bytes:,}", f"{file.mode:o}", escape(clean(repr_name(file.path))), escape(clean(file.rule))
        )
    out.print(table)
    if manifest.left_out:
        out.print(f"[bold]left out[/] ({len(manifest.left_out)})")
        table = _table("path", "rule")
        for item in manifest.left_out[:SHOWN_LEFT_OUT]:
            table.add_row(escape(clean(repr_name(item.path) + ("/" if item.is_dir else ""))), escape(clean(item.rule)))
        out.print(table)
        if len(manifest.left_out) > SHOWN_LEFT_OUT:
            out.print(f"… and {len(manifest.left_out) - SHOWN_LEFT_OUT} more: --json lists all")
    out.print(f"{counted(len(manifest.files), 'file')}, {megabytes(manifest.size_bytes)}, digest {manifest.digest}")


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def repr_name(name: str) -> str:
    """*name* as it is, or quoted where it holds what cannot be printed."""
    return name if name.isprintable() else repr(name)


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


# Costs


def show_costs(plan: Plan, seconds: float | None, seconds_from: str, out: Console | None = None) -> None:
    """What the same run would cost in both clouds: the machine that was named, then the cheapest of each kind."""
    from rich.markup import escape

    out = out or console()
    rows = plan.cost_rows(seconds)
    how_long = f"{duration(seconds)} ({seconds_from})" if seconds is not None else seconds_from
    out.print("[bold]The same run in the cloud[/]", highlight=False)
    out.print(f"for {escape(how_long)}; how fast each machine would be is not predicted yet")
    table = _table("cloud", "machine", "what", "region", "$/hour", "this run", "price of", right=("$/hour", "this run"))
    own = plan.machine_row(seconds)
    for row in ([own] if own else []) + [
        row for row in cheapest_of_each_kind(rows) if own is None or row.machine != own.machine
    ]:
        table.add_row(*_cost_cells(row))
    out.print(table)
    out.print(
        f"{len(rows)} machines have a published price here (all with --json); of the others it is unknown."
        " Machine time only: no storage, no transfer, no start-up."
    )


def _cost_cells(row: cost.CostRow) -> tuple[str, ...]:
    price = row.price
    hourly = "unknown" if price is None else f"${price.usd_per_hour * row.count:,.4f}"
    cost_text = cost.format_usd(row.usd) if row.hours is not None else "-"
    machine = row.machine.name if row.count == 1 else f"{row.count} × {row.machine.name}"
    return row.machine.cloud, machine, row.machine.label, row.region, hourly, cost_text, price.dated if price else "-"


def cheapest_of_each_kind(rows: Iterable[cost.CostRow]) -> list[cost.CostRow]:
    """The first row of every kind of accelerator in each cloud."""
    kinds: dict[tuple[str, str | None], cost.CostRow] = {}
    for row in rows:
        kinds.setdefault((row.machine.cloud, row.machine.gpu), row)
    return list(kinds.values())


def costs_json(plan: Plan, seconds: float | None) -> list[dict[str, Any]]:
    rows = list(plan.cost_rows(seconds))
    own = plan.machine_row(seconds)
    if own is not None and own.price is None:
        rows.append(own)
    return [dict(cost.as_json(row)) for row in rows]


# Runs


def show_runs(runs: Sequence[Run], metrics: Mapping[str, Mapping[str, float]]) -> None:
    """The ledger as a table, newest first."""
    table = _table(
        "run",
        "state",
        "script",
        "backend",
        "machine",
        "created (UTC)",
        "took",
        "cost",
        "metrics",
        right=("took", "cost"),
    )
    for run in runs:
        colour = _COLOURS.get(run.state)
        state = f"[{colour}]{run.state}[/]" if colour else run.state
        machine = run.plan.get("machine") or {}
        table.add_row(
            run.id,
            state,
            clean(run.script),
            run.backend,
            machine.get("name", "this one"),
            run.created_at[:19].replace("T", " "),
            duration(run.seconds()),
            money(run.actual_usd),
            metric_words(metrics.get(run.id, {}), limit=3),
        )
    console().print(table)


def money(usd: str | None) -> str:
    return "-" if usd is None else cost.format_usd(Decimal(usd))


def metric_words(values: Mapping[str, float], limit: int | None = None) -> str:
    """`val_accuracy 0.981  val_loss 0.063`: test results first, then validation, then the rest."""
    order = {"test": 0, "val": 1, "train": 3}
    names = sorted(values, key=lambda name: order.get(name.split("_")[0], 2))
    return "  ".join(f"{name} {_number(values[name])}" for name in names[:limit])


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def show_status(run: Run, events: Sequence[Event], metrics: Mapping[str, float], error_lines: str | None) -> None:
    """One run: how it stands, how it came there, what it measured and cost, and what to type next."""
    from rich.markup import escape

    out = console()
    table = _table("", "")
    table.show_header = False
    estimated = "-" if run.estimated_usd is None else money(run.estimated_usd)
    lines = {
        "run": f"{run.id} ({run.name})",
        "state": run.state + (f": {run.reason}" if run.reason else ""),
        "script": f"{run.script} from {run.plan.get('source_dir')}",
        "package": run.package_digest or "-",
        "took": duration(run.seconds()),
        "cost": f"{money(run.actual_usd)} (estimated {estimated})",
        "exit code": "-" if run.exit_code is None else str(run.exit_code),
        "metrics": metric_words(metrics) or "-",
        "folder": run.run_dir,
    }
    for name, value in lines.items():
        table.add_row(f"[bold]{name}[/]", escape(clean(value)))
    out.print(table)
    for event in events:
        out.print(
            f"  {event.at[:19].replace('T', ' ')}  {event.state}"
            + (f"  {escape(clean(event.note))}" if event.note else "")
        )
    if error_lines:
        out.print("[bold]its own last lines[/]")
        out.out(clean(error_lines))
    out.print(next_steps(run))


def show_receipt(plan: Plan, run: Run, metrics: Mapping[str, float]) -> None:
    """What a successful run leaves behind: time, metrics, model, and what it would have cost in the cloud."""
    from orchestrator import backends

    out = console()
    out.print(f"\n[bold green]{run.id} succeeded[/] in {duration(run.seconds())}, cost $0 (this machine)")
    if metrics:
        out.print(f"  {metric_words(metrics)}")
    for folder, files in _by_folder(backends.load(run.backend).artifacts(run)).items():
        size = megabytes(sum(file.size_bytes for file in files))
        out.print(
            f"  {folder}: {counted(len(files), 'file')}, {size}  {shown_path(Path(run.run_dir) / 'root' / folder)}",
            highlight=False,
        )
    out.print()
    show_costs(plan, run.seconds(), "as long as it took here", out)
    out.print(f"{next_steps(run)}   or: orchestrate status {run.id}")


def _by_folder(found: Sequence[Artifact]) -> dict[str, list[Artifact]]:
    folders: dict[str, list[Artifact]] = {}
    for artifact in found:
        folders.setdefault(artifact.path.partition("/")[0], []).append(artifact)
    return folders


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
        "metrics": dict(metrics),
        "run_dir": run.run_dir,
        "plan": run.plan,
        "events": [{"at": event.at, "state": event.state, "note": event.note} for event in events],
    }


def show_artifacts(run: Run, found: Sequence[Artifact]) -> None:
    table = _table("size", "file", "place", right=("size",))
    for artifact in found:
        table.add_row(megabytes(artifact.size_bytes), clean(repr_name(artifact.path)), clean(artifact.place))
    out = console()
    out.print(table if found else f"{run.id} left no files")
    if found:
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
    """*path* with the home folder as `~`."""
    with contextlib.suppress(ValueError):
        return "~/" + str(Path(path).relative_to(Path.home()))
    return str(path)
