"""The command line: flags in, one clear line out. Everything heavier than Typer is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from orchestrator import cli_costs
from orchestrator import options as o

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
    script: o.Script = None,
    backend: o.Backend = None,
    instance: o.Instance = None,
    region: o.Region = None,
    count: o.Count = None,
    processes: o.Processes = None,
    spot: o.Spot = None,
    hp: o.Hp = None,
    data: o.Data = None,
    env: o.Env = None,
    name: o.Name = None,
    max_hours: o.MaxHours = None,
    budget: o.Budget = None,
    grace_seconds: o.GraceSeconds = None,
    resume_from: o.ResumeFrom = None,
    fallback: o.Fallback = None,
    role: o.Role = None,
    bucket: o.Bucket = None,
    profile: o.Profile = None,
    image: o.Image = None,
    torch: o.Torch = None,
    volume: o.Volume = None,
    max_wait: o.MaxWait = None,
    subnet: o.Subnet = None,
    security_group: o.SecurityGroup = None,
    kms_key: o.KmsKey = None,
    tag: o.Tag = None,
    keep_alive: o.KeepAlive = None,
    network_isolation: o.NetworkIsolation = None,
    encrypt_traffic: o.EncryptTraffic = None,
    tensorboard: o.TensorBoard = None,
    metric: o.Metric = None,
    source_dir: o.SourceDir = None,
    allow_file: o.AllowFile = None,
    config: o.Config = None,
    rehearse: o.Rehearse = None,
    fault: o.Fault = None,
    dry_run: o.DryRun = False,
    smoke: o.Smoke = False,
    detach: o.Detach = False,
    again: o.Again = False,
    cancel_on_interrupt: o.CancelOnInterrupt = False,
    yes: o.Yes = False,
    as_json: o.Json = False,
) -> None:
    """Train SCRIPT. What stands behind -- reaches it untouched: orchestrate submit train.py -- --epochs 3"""
    from orchestrator import submit_command
    from orchestrator.settings import Flags

    _tell_news()
    flags = Flags(
        script=script, arguments=context.obj, hyperparameters=tuple(hp or ()), data=tuple(data or ()),
        environment=tuple(env or ()), allow_files=tuple(allow_file or ()), backend=backend, instance=instance,
        region=region, count=count, processes=processes, spot=spot, source_dir=source_dir, name=name,
        max_hours=max_hours, budget_usd=budget, grace_seconds=grace_seconds, resume_from=resume_from, fallback=fallback,
        role=role, bucket=bucket, profile=profile, image=image, torch=torch, volume_gb=volume, max_wait_hours=max_wait,
        subnets=tuple(subnet or ()), security_groups=tuple(security_group or ()), kms_key=kms_key, tags=tuple(tag or ()),
        keep_alive_minutes=keep_alive, network_isolation=network_isolation, encrypt_traffic=encrypt_traffic,
        tensorboard=tensorboard, metrics=tuple(metric or ()), rehearse=rehearse,
    )  # fmt: skip
    how = submit_command.How(
        config=config, faults=tuple(fault or ()), dry_run=dry_run, smoke=smoke, detach=detach, again=again,
        cancel_on_interrupt=cancel_on_interrupt, yes=yes, as_json=as_json,
    )  # fmt: skip
    submit_command.run(flags, how)


@app.command()
def resume(run_id: o.RunId = None, detach: o.Detach = False, as_json: o.Json = False) -> None:
    """Go on with a run whose submit was cut short, or follow one again. Nothing is launched twice."""
    from orchestrator import finding, launch, render, submit_command, watch
    from orchestrator.errors import BadInput

    run = finding.find(run_id)
    if run.state == "abandoned":
        raise BadInput(f"{run.id} was never launched: {run.reason}", hint="submit it again: that is a new run")
    if run.ended:
        submit_command.tell_end(None, run, as_json=as_json)
        return
    if run.backend == "local":
        print(f"{run.id} runs on this machine: following it", file=sys.stderr)
        watch.show_output(run, sys.stderr if as_json else sys.stdout, to_its_end=True)
        submit_command.tell_end(None, finding.find(run.id), as_json=as_json)
        return
    with render.progress_bar() as progress:
        launched = launch.resume(run, progress=progress)
    if detach:
        print(f"{run.id} is {launched.run.state}\nnext: orchestrate logs {run.id} --follow")
        finding.mark_told(launched.run)
        return
    from orchestrator import submitting

    shown = sys.stderr if as_json else sys.stdout
    ended = submitting.followed(lambda held: watch.until_the_end(held, shown), launched, submit_command.say)
    submit_command.tell_end(None, ended, as_json=as_json)


@app.command(name="rehearse-cloud")
def rehearse_cloud(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1. Default: a free one.")] = 0,
    region: o.Region = None,
    fault: o.Fault = None,
) -> None:
    """Stand in for AWS on this machine, for any AWS client: S3, IAM, STS, Logs, and training jobs that really run."""
    from orchestrator import state
    from orchestrator.staging import stand_in

    stand_in(state.home() / "rehearse-cloud", port=port, region=region, faults=fault or [])


@app.command()
def package(
    script: o.Script = None,
    why: Annotated[
        str | None, typer.Option("--why", metavar="PATH", help="Name the rule that takes PATH in or leaves it out.")
    ] = None,
    source_dir: o.SourceDir = None,
    allow_file: o.AllowFile = None,
    config: o.Config = None,
    yes: o.Yes = False,
    as_json: o.Json = False,
) -> None:
    """Make the package and list what goes in, what stays out and by which rule, the sizes and the digest."""
    from orchestrator import entrypoint, preparing, render, state, submit_command
    from orchestrator import package as packages
    from orchestrator.settings import Flags

    folder = Path.cwd()
    flags = Flags(script=script, source_dir=source_dir, allow_files=tuple(allow_file or ()))
    spec = preparing.read_spec(flags, folder, config)
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
        manifest = preparing.make_manifest(
            found, spec, confirm=partial(submit_command.confirmed, yes=yes), progress=progress
        )
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
    as_json: o.Json = False,
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
    sync: Annotated[
        bool, typer.Option("--sync", help="First bring in runs that were made elsewhere, from SageMaker.")
    ] = False,
    region: o.Region = None,
    profile: o.Profile = None,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="With --sync: from the rehearsed cloud.")] = False,
    as_json: o.Json = False,
) -> None:
    """List runs, newest first."""
    from orchestrator import render, state
    from orchestrator.runs import Ledger

    if sync:
        from orchestrator.staging import bring_in

        where, brought = bring_in(region, profile, rehearse=rehearse)
        for run_id in brought:
            print(f"note: {run_id} was made elsewhere and is in the list now", file=sys.stderr)
        print(f"note: looked in {where}: {len(brought) or 'no'} new", file=sys.stderr)
    _tell_news(clouds=True)
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
def status(run_id: o.RunId = None, as_json: o.Json = False) -> None:
    """Show one run: state, metrics, cost, and how it came there."""
    from orchestrator import finding, render, state, watch
    from orchestrator.runs import Ledger

    _tell_news()
    run = finding.find(run_id, lines=True)
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        events, metrics = ledger.events(run.id), ledger.last_metrics(run.id)
    if as_json:
        render.print_json(render.run_json(run, metrics, events))
    else:
        lines = watch.error_lines(run) if run.state == "failed" else None
        render.show_status(run, events, metrics, lines, watch.explanation(run).get("hint"))
    if run.ended:
        finding.mark_told(run)


@app.command()
def logs(
    run_id: o.RunId = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the run has ended.")] = False,
    as_json: o.Json = False,
) -> None:
    """Show a run's output, from its beginning. Ctrl-C leaves; the run goes on."""
    from orchestrator import backends, finding, render, watch
    from orchestrator.errors import Interrupted

    _tell_news()
    run = finding.find(run_id)
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
    run_id: o.RunId = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="Bring them into this folder.")] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="With --to: the checkpoints of a cloud run too.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """List the files that a run left, or bring them here with --to DIR: verified, and unpacked."""
    from orchestrator import backends, finding, render

    _tell_news()
    run = finding.find(run_id)
    backend = backends.load(run.backend)
    if to is None:
        found = backend.artifacts(run)
        if as_json:
            files = [{"path": a.path, "size_bytes": a.size_bytes, "place": a.place} for a in found]
            render.print_json({"id": run.id, "files": files})
        else:
            render.show_artifacts(run, found)
        return
    with render.progress_bar() as progress:
        made = backend.collect(run, to, checkpoints=checkpoints, progress=progress)
    if as_json:
        files = [
            {"path": path.relative_to(to).as_posix(), "size_bytes": path.stat().st_size, "place": str(path)}
            for path in made
        ]
        render.print_json({"id": run.id, "files": files})
    else:
        print("\n".join(f"copied {render.shown_name(path)}" for path in made) if made else f"{run.id} left no files")


@app.command()
def cancel(
    run_id: o.RunId = None,
    grace_seconds: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="Time to save before it is killed. Default: the run's own.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Stop a run: SIGTERM, time to save, then its whole process group is killed."""
    from orchestrator import finding, launch, render, watch
    from orchestrator.errors import OutcomeUnknown
    from orchestrator.spec import whole_number

    _tell_news()
    run = finding.find(run_id, own=True)
    if not run.ended:
        grace = own = int(run.plan["limits"]["grace_seconds"])
        if grace_seconds is not None:
            grace = whole_number("--grace-seconds", grace_seconds, low=0, high=3600)
        if run.backend != "local" and grace != own:
            print(f"note: --grace-seconds has no effect: {run.backend} gives its own time to save", file=sys.stderr)
            grace = own
        launch.cancel(run, grace_seconds=grace, reason="cancelled by orchestrate cancel")
        print(f"stopping {run.id}: up to {grace} s to save", file=sys.stderr)
        run = watch.wait_for_end(run, grace + 30)
    taken = run.backend != "local" and run.state == "stopping"  # it uploads, for as long as that takes
    if not run.ended and not taken:
        raise OutcomeUnknown(f"{run.id} has not ended yet", hint=f"orchestrate status {run.id}")
    if as_json:
        render.print_json(render.run_json(run, watch.last_metrics(run)))
    elif not run.ended:
        print(f"{run.id} is stopping: {run.backend} has taken it, and uploads\nnext: orchestrate status {run.id}")
    else:
        print(f"{run.id} {run.state}: {run.reason or 'it had ended by itself'}")


cli_costs.add_to(app)


def _tell_news(*, clouds: bool = False) -> None:
    """Say, once, what happened to runs while nobody looked."""
    from orchestrator import finding

    for run_id, note in finding.reconcile(clouds=clouds):
        print(f"note: {run_id}: {note} (orchestrate status {run_id})", file=sys.stderr)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit. What stands behind the first `--` is kept out of Typer's sight."""
    words = sys.argv[1:] if argv is None else argv
    own, passed = words, None
    if "--" in words:
        place = words.index("--")
        own, passed = words[:place], tuple(words[place + 1 :])
    from orchestrator.faults import exit_code_of, ready_streams
    from orchestrator.quick import hastened

    ready_streams()
    completing = "_ORCHESTRATE_COMPLETE" in os.environ
    wanted = app if completing else hastened(app, own[0] if own else None)
    sys.exit(exit_code_of(lambda: _run(wanted, own, passed), as_json="--json" in own))


def _run(wanted: typer.Typer, own: list[str], passed: tuple[str, ...] | None) -> Any:
    return wanted(args=own, obj=passed, prog_name="orchestrate", standalone_mode=False)
