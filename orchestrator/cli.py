"""The command line: flags in, one clear line out. Everything heavier than Typer is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from orchestrator.launch import Launched, Prepared
    from orchestrator.settings import Flags

app = typer.Typer(
    name="orchestrate",
    help="Train a PyTorch script here or in the cloud, with the bill known first.",
    epilog="Begin with: orchestrate submit mlp --data sample:mnist",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _entrypoint_names() -> list[str]:
    from orchestrator.bundled import entrypoint_names

    return list(entrypoint_names())


def _run_ids() -> list[str]:
    from orchestrator import state
    from orchestrator.runs import Ledger

    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return [run.id for run in ledger.newest(50)]


Script = Annotated[
    str | None,
    typer.Argument(
        metavar="SCRIPT",
        help="A .py file or a shipped entrypoint (mlp). Default: orchestrate.toml, else ./train.py, else mlp.",
    ),
]
RunId = Annotated[
    str | None,
    typer.Argument(metavar="RUN", autocompletion=_run_ids, help="A run's id or its beginning. Default: the newest."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file instead of ./orchestrate.toml.")
]
SourceDir = Annotated[
    str | None, typer.Option("--source-dir", metavar="FOLDER", help="Folder to take along. Default: the script's own.")
]
AllowFile = Annotated[
    list[str] | None,
    typer.Option("--allow-file", metavar="FILE", help="Take this file along although it looks like a secret."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to every question.")]


def _version(wanted: bool) -> None:
    if wanted:
        from orchestrator import __version__

        print(f"orchestrate {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def submit(
    context: typer.Context,
    script: Script = None,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="local (default), sagemaker or vertex.")] = None,
    instance: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Machine. A local run is capped to its vCPUs and memory.")
    ] = None,
    region: Annotated[str | None, typer.Option(metavar="REGION", help="Cloud region, for prices.")] = None,
    count: Annotated[str | None, typer.Option(metavar="N", help="Machines.")] = None,
    processes: Annotated[
        str | None, typer.Option(metavar="N", help="Processes on each machine, under torchrun.")
    ] = None,
    spot: Annotated[
        bool | None, typer.Option("--spot/--no-spot", help="Cheaper machines that can be taken away.")
    ] = None,
    hp: Annotated[
        list[str] | None,
        typer.Option(
            "--hp", metavar="NAME=VALUE", help="Hyperparameter name=value; reaches the script as --name value."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="[NAME=]PLACE", help="Data channel [NAME=]FOLDER or [NAME=]sample:mnist."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="Environment variable NAME=VALUE for the script."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call the run.")] = None,
    max_hours: Annotated[str | None, typer.Option(metavar="HOURS", help="Hard stop in hours.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="USD", help="Most that a cloud run may cost, in USD.")] = None,
    grace_seconds: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="Time to save after SIGTERM. Default 30.")
    ] = None,
    resume_from: Annotated[
        str | None, typer.Option(metavar="RUN", help="Begin with the checkpoints that this run left.")
    ] = None,
    source_dir: SourceDir = None,
    allow_file: AllowFile = None,
    config: Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, the package, the request and the cost; do nothing.")
    ] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="First run a few steps in a scratch folder.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as the script has started.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Train SCRIPT. What stands behind -- reaches it untouched: orchestrate submit train.py -- --epochs 3"""
    from orchestrator import launch, render
    from orchestrator import smoke as smoke_run
    from orchestrator.settings import Flags

    _tell_news()
    flags = Flags(
        script=script, arguments=context.obj, hyperparameters=tuple(hp or ()), data=tuple(data or ()),
        environment=tuple(env or ()), allow_files=tuple(allow_file or ()), backend=backend, instance=instance,
        region=region, count=count, processes=processes, spot=spot, source_dir=source_dir, name=name,
        max_hours=max_hours, budget_usd=budget, grace_seconds=grace_seconds,
        resume_from=resume_from,
    )  # fmt: skip
    prepared = _prepare(flags, config, yes=yes, fetch=not dry_run)
    if dry_run:
        _show_dry_run(prepared, as_json=as_json)
        return
    if smoke:
        smoke_run.run(prepared, lambda line: print(line, file=sys.stderr))
    with render.progress_bar() as progress:
        launched = launch.submit(prepared, progress=progress)
    _say_start(prepared)  # not before: what `2>&1 | tee train.log` writes here must not change what is being packed
    if detach:
        _detached(launched, as_json=as_json)
    else:
        _attached(prepared, launched, as_json=as_json)


def _prepare(flags: Flags, config: Path | None, *, yes: bool, fetch: bool) -> Prepared:
    from orchestrator import launch, render

    folder = Path.cwd()
    spec = launch.read_spec(flags, folder, config)
    with render.progress_bar() as progress:
        return launch.prepare(spec, folder, confirm=partial(_confirmed, yes=yes), progress=progress, fetch=fetch)


def _confirmed(question: str, *, yes: bool) -> bool:
    if yes or not sys.stdin.isatty():
        return yes
    return typer.confirm(f"{question}. Go on?", err=True)


def _show_dry_run(prepared: Prepared, *, as_json: bool) -> None:
    from orchestrator import plan, render

    decided = prepared.plan
    if as_json:
        render.print_json(
            {
                "plan": plan.as_json(decided),
                "package": render.manifest_json(prepared.manifest),
                "request": prepared.request,
                "costs": render.costs_json(decided, decided.seconds),
            }
        )
    else:
        render.show_plan(decided, prepared.manifest, prepared.request)


def _say_start(prepared: Prepared) -> None:
    from orchestrator.render import shown_name

    decided = prepared.plan
    script = shown_name(decided.entrypoint.script)
    print(f"run {decided.run_id}: {script} ({decided.entrypoint.chosen})", file=sys.stderr)
    for note in decided.notes:
        print(f"note: {note}", file=sys.stderr)


def _detached(launched: Launched, *, as_json: bool) -> None:
    from orchestrator import crashpoints, render

    launched.started.let_go()
    crashpoints.reached("let go")
    run = launched.run
    if as_json:
        render.print_json(render.run_json(run, {}))
    else:
        print(f"{run.id} goes on by itself\nnext: orchestrate logs {run.id} --follow   or: orchestrate cancel {run.id}")


def _attached(prepared: Prepared, launched: Launched, *, as_json: bool) -> None:
    from orchestrator import crashpoints, render, watch

    run = watch.until_the_end(launched, sys.stderr if as_json else sys.stdout)
    metrics = watch.last_metrics(run)
    fault = watch.fault(run)
    if as_json:
        told = {} if fault is None else {"error": fault.what, "hint": fault.hint}
        costs = render.costs_json(prepared.plan, run.seconds())
        render.print_json({**render.run_json(run, metrics), **told, "costs": costs})
    elif fault is None:
        render.show_receipt(prepared.plan, run, metrics)
    crashpoints.reached("receipt printed")
    if fault is not None:
        if as_json:  # it stands in the run's own document
            raise typer.Exit(fault.exit_code)
        raise fault


@app.command()
def package(
    script: Script = None,
    why: Annotated[
        str | None, typer.Option("--why", metavar="PATH", help="Name the rule that takes PATH in or leaves it out.")
    ] = None,
    source_dir: SourceDir = None,
    allow_file: AllowFile = None,
    config: Config = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make the package and list what goes in, what stays out and by which rule, the sizes and the digest."""
    from orchestrator import entrypoint, launch, render, state
    from orchestrator import package as packages
    from orchestrator.settings import Flags

    folder = Path.cwd()
    flags = Flags(script=script, source_dir=source_dir, allow_files=tuple(allow_file or ()))
    spec = launch.read_spec(flags, folder, config)
    found = entrypoint.find(spec.script, spec.source_dir, folder)
    if why is not None:
        answer = packages.explain(
            found.source_dir, _beneath(why, folder, found.source_dir), allow_files=spec.allow_files
        )
        if as_json:
            render.print_json({"path": answer.path, "included": answer.included, "rule": answer.rule})
        else:
            print(
                render.clean(f"{render.shown_name(answer.path)}: {'in' if answer.included else 'out'} ({answer.rule})")
            )
        return
    with render.progress_bar() as progress:
        manifest = launch.make_manifest(found, spec, confirm=partial(_confirmed, yes=yes), progress=progress)
        built = packages.build(manifest, state.packages_dir(), progress=progress)
    if as_json:
        render.print_json(render.manifest_json(manifest, built))
        return
    render.show_manifest(manifest)
    words = "was there already" if built.reused else "made"
    print(
        f"{render.shown_path(built.path)}: {built.compressed_bytes:,} bytes, {words}\nnext: orchestrate submit --dry-run"
    )


def _beneath(path: str, folder: Path, source_dir: Path) -> str:
    """*path* as typed in *folder*, seen from *source_dir*; as it is where it does not lie there."""
    with suppress(ValueError):
        return Path(os.path.normpath(folder / path)).relative_to(source_dir).as_posix()
    return path


@app.command()
def copy(
    name: Annotated[
        str, typer.Argument(metavar="NAME", autocompletion=_entrypoint_names, help="A shipped entrypoint: mlp.")
    ],
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to copy it into.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Copy a shipped entrypoint, with the files that it needs, to edit."""
    from orchestrator import copying, render

    made = copying.copy_entrypoint(name, to, force=force)
    if as_json:
        render.print_json({"files": [str(path) for path in made]})
    else:
        print(
            "\n".join(f"copied {render.shown_name(path)}" for path in made)
            + f"\nnext: orchestrate submit {made[0]} --data sample:mnist"
        )


@app.command(name="list")
def list_(
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1_000_000, metavar="N", help="How many, newest first.")
    ] = 20,
    all_: Annotated[bool, typer.Option("--all", "-a", help="All of them.")] = False,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    from orchestrator import render, state
    from orchestrator.runs import Ledger

    _tell_news()
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        runs = ledger.newest(None if all_ else limit)
        metrics = {run.id: ledger.last_metrics(run.id) for run in runs}
    if as_json:
        render.print_json([render.run_json(run, metrics[run.id]) for run in runs])
    elif runs:
        render.show_runs(runs, metrics)
        print(f"next: orchestrate status {runs[0].id}")
    else:
        print("no runs yet\nnext: orchestrate submit mlp --data sample:mnist")


@app.command()
def status(run_id: RunId = None, as_json: Json = False) -> None:
    """Show one run: state, metrics, cost, and how it came there."""
    from orchestrator import launch, render, state, watch
    from orchestrator.runs import Ledger

    _tell_news()
    run = launch.find(run_id)
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        events, metrics = ledger.events(run.id), ledger.last_metrics(run.id)
    if as_json:
        render.print_json(render.run_json(run, metrics, events))
    else:
        render.show_status(run, events, metrics, watch.error_lines(run) if run.state == "failed" else None)


@app.command()
def logs(
    run_id: RunId = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Show a run's output, from its beginning. Ctrl-C leaves; the run goes on."""
    from orchestrator import backends, launch, render, watch
    from orchestrator.errors import Interrupted

    _tell_news()
    run = launch.find(run_id)
    if as_json:
        data = b"".join(backends.load(run.backend).logs(run, follow=follow))
        render.print_json({"id": run.id, "lines": data.decode("utf-8", "replace").splitlines()})
        return
    if run.ended and run.started_at is None:
        print(f"{run.id} has no output: {run.reason}", file=sys.stderr)
    try:
        watch.show_output(run, sys.stdout, to_its_end=follow, leave_when_unread=True)
    except KeyboardInterrupt:
        raise Interrupted(f"{run.id} goes on", hint=f"orchestrate cancel {run.id}") from None


@app.command()
def artifacts(
    run_id: RunId = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="Copy them into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """List the files that a run left, or copy them with --to DIR."""
    from orchestrator import backends, copying, launch, render

    _tell_news()
    run = launch.find(run_id)
    found = backends.load(run.backend).artifacts(run)
    copied = copying.copy_artifacts(found, to) if to is not None else ()
    if as_json:
        places = [str(path) for path in copied] or [artifact.place for artifact in found]
        files = [{"path": a.path, "size_bytes": a.size_bytes, "place": p} for a, p in zip(found, places, strict=True)]
        render.print_json({"id": run.id, "files": files})
    elif to is None:
        render.show_artifacts(run, found)
    else:
        print(
            "\n".join(f"copied {render.shown_name(path)}" for path in copied) if copied else f"{run.id} left no files"
        )


@app.command()
def cancel(
    run_id: RunId = None,
    grace_seconds: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="Time to save before it is killed. Default: the run's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Stop a run: SIGTERM, time to save, then its whole process group is killed."""
    from orchestrator import launch, render, watch
    from orchestrator.errors import OutcomeUnknown
    from orchestrator.spec import whole_number

    _tell_news()
    run = launch.find(run_id)
    if not run.ended:
        own = int(run.plan["limits"]["grace_seconds"])
        grace = own if grace_seconds is None else whole_number("--grace-seconds", grace_seconds, low=0, high=3600)
        launch.cancel(run, grace_seconds=grace, reason="cancelled by orchestrate cancel")
        print(f"stopping {run.id}: up to {grace} s to save", file=sys.stderr)
        run = watch.wait_for_end(run, grace + 30)
    if not run.ended:
        raise OutcomeUnknown(f"{run.id} has not ended yet", hint=f"orchestrate status {run.id}")
    if as_json:
        render.print_json(render.run_json(run, watch.last_metrics(run)))
    else:
        print(f"{run.id} {run.state}: {run.reason or 'it had ended by itself'}")


def _tell_news() -> None:
    """Say, once, what happened to runs while nobody looked."""
    from orchestrator import launch

    for run_id, note in launch.reconcile():
        print(f"note: {run_id}: {note} (orchestrate status {run_id})", file=sys.stderr)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit. What stands behind the first `--` is kept out of Typer's sight."""
    words = sys.argv[1:] if argv is None else argv
    own, passed = words, None
    if "--" in words:
        place = words.index("--")
        own, passed = words[:place], tuple(words[place + 1 :])
    from orchestrator.faults import exit_code_of, ready_streams

    ready_streams()
    sys.exit(exit_code_of(lambda: _run(own, passed), as_json="--json" in own))


def _run(own: list[str], passed: tuple[str, ...] | None) -> Any:
    return app(args=own, obj=passed, prog_name="orchestrate", standalone_mode=False)
