"""The commands as functions, for notebooks and programs: the same verbs, the same ledger, errors as exceptions.

import orchestrator
run = orchestrator.submit("train.py", arguments=["--epochs", "3"], data={"training": "sample:mnist"})
orchestrator.last_metrics(run.id)["val_accuracy"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import backends, books, finding, launch, plan, preparing, spending, state, submitting
from orchestrator import smoke as smoke_run
from orchestrator.backends import Artifact
from orchestrator.errors import BadInput
from orchestrator.launch import Launched
from orchestrator.preparing import Prepared
from orchestrator.runs import Ledger, Run
from orchestrator.settings import Flags
from orchestrator.spec import TrainingSpec


def dry_run(script: str | Path | None = None, *, folder: Path | None = None, **options: Any) -> dict[str, Any]:
    """The plan and the exact request of a submit with the same arguments; nothing is sent or written."""
    prepared = _prepare(script, folder, options, fetch=False)[0]
    return {"plan": plan.as_json(prepared.plan), "request": prepared.request}


def estimate(script: str | Path | None = None, *, folder: Path | None = None, **options: Any) -> dict[str, Any]:
    """What *script* would cost, as `orchestrate estimate --json` has it: amounts as decimal strings, unknown as None.

    options are the command's: hours, instance, backend, regions (a sequence), gpu, max_usd, arguments, count, spot, data,
    data_gb, data_region, results_gb, volume_gb, keep_alive_minutes, free_hours. Raises OrchestrateError.
    """
    from orchestrator import estimate_command, estimate_view

    own = {name: options.pop(name) for name in tuple(options) if name in estimate_command.Asked.__dataclass_fields__}
    regions = tuple(own.pop("regions", None) or ())
    words: dict[str, Any] = {
        name: value if isinstance(value, bool) else str(value) for name, value in own.items() if value is not None
    }
    asked = estimate_command.Asked(regions=regions, **words)
    answer = estimate_command.reckon(_flags(script, options), asked, Path(folder) if folder else Path.cwd())
    return estimate_view.document(answer.question, answer.rows)


def submit(
    script: str | Path | None = None,
    *,
    folder: Path | None = None,
    detach: bool = False,
    smoke: bool = False,
    again: bool = False,
    yes: bool = False,
    **options: Any,
) -> Run:
    """Train *script* as `orchestrate submit` would if typed in *folder* (default: the current one).

    options are the command's: arguments (a sequence), hyperparameters, data and environment (mappings), backend, instance,
    region, count, processes, spot, source_dir, name, max_hours, budget_usd, grace_seconds, resume_from, allow_files,
    fallback, rehearse, role, bucket, profile, image, torch, volume_gb, max_wait_hours, subnets, security_groups, kms_key,
    tags, keep_alive_minutes, network_isolation, encrypt_traffic, tensorboard, metrics.

    Waits for the end, unless detach, and gives the run as it then stands: a script that failed is a run whose state is
    `failed`, not an exception. A local run ends if this process ends first, unless detach; a cloud's goes on, and the same
    submit finds it again, unless again. A cloud run that costs over confirm_above_usd is refused unless yes.

    Raises OrchestrateError, with all that is wrong at once, before anything is started.
    """
    place, spec = _spec(script, folder, options)
    with books.prices_of(spec):
        attempts = preparing.prepare_all(spec, place, confirm=lambda _: yes)
        if smoke:
            smoke_run.run(attempts[0])
        follow = _let_go if detach else _to_its_end
        confirm = partial(_confirm, [prepared.plan for prepared in attempts], yes=yes)
        run = submitting.send(attempts, follow, tell=lambda _: None, again=again, confirm=confirm).run
    finding.mark_told(run)
    return run


def _confirm(plans: Sequence[plan.Plan], *, yes: bool) -> None:
    question = None if yes else spending.confirmation(plans)
    if question is not None:
        raise spending.unconfirmed(question)


def _let_go(_: Prepared, launched: Launched) -> Run:
    launched.started.let_go()
    return launched.run


def _to_its_end(_: Prepared, launched: Launched) -> Run:
    return _watched(launched)


def _watched(launched: Launched) -> Run:
    try:
        for _data in backends.load(launched.run.backend).logs(launched.run, follow=True):
            pass
    finally:
        launched.started.close()
    return finding.find(launched.run.id)


def _spec(script: str | Path | None, folder: Path | None, options: Mapping[str, Any]) -> tuple[Path, TrainingSpec]:
    place = Path(folder) if folder is not None else Path.cwd()
    return place, preparing.read_spec(_flags(script, options), place)


def _prepare(
    script: str | Path | None, folder: Path | None, options: Mapping[str, Any], *, fetch: bool
) -> tuple[Prepared, ...]:
    place, spec = _spec(script, folder, options)
    with books.prices_of(spec):
        return preparing.prepare_all(spec, place, confirm=lambda _: False, fetch=fetch)


def prepare(script: str | Path | None, options: Mapping[str, Any], *, fetch: bool) -> Prepared:
    """What a submit with *options* comes to, before anything is sent: the first of what would be tried."""
    return _prepare(script, None, options, fetch=fetch)[0]


def _flags(script: str | Path | None, options: Mapping[str, Any]) -> Flags:
    words: dict[str, Any] = {"script": None if script is None else str(script)}
    for name, value in options.items():
        if name not in Flags.__dataclass_fields__:
            raise BadInput(f"submit has no option {name!r}", hint="see help(orchestrator.submit)")
        if name in ("arguments", "allow_files") and isinstance(value, str):
            raise BadInput(f"{name} must be a list of texts, not {value!r}", hint=f"{name}={value.split()!r}")
        if isinstance(value, Mapping):
            words[name] = tuple(f"{key}={item}" for key, item in value.items())
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words[name] = tuple(str(item) for item in value)
        elif value is not None:
            words[name] = value if isinstance(value, bool) else str(value)
    return Flags(**words)


def status(run_id: str | None = None) -> Run:
    """One run as it stands now; None means the newest."""
    return finding.find(run_id, lines=True)


def resume(run_id: str | None = None) -> Run:
    """Go on with a run whose submit was cut short, to its end. Nothing is launched twice."""
    run = finding.find(run_id)
    if run.ended or run.backend == "local":
        return run
    ended = submitting.followed(_watched, launch.resume(run), lambda _: None)
    finding.mark_told(ended)
    return ended


def list_runs(limit: int | None = None) -> list[Run]:
    """Runs, newest first, each as it stands now."""
    finding.reconcile(clouds=True)
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return ledger.newest(limit)


def last_metrics(run_id: str | None = None) -> dict[str, float]:
    """The newest value of every metric of a run."""
    run = finding.find(run_id)
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return ledger.last_metrics(run.id)


def logs(run_id: str | None = None, *, follow: bool = False) -> Iterator[bytes]:
    """A run's output in pieces; an empty piece is a pause."""
    run = finding.find(run_id)
    return backends.load(run.backend).logs(run, follow=follow)


def artifacts(run_id: str | None = None, to: Path | None = None, *, checkpoints: bool = False) -> list[Artifact]:
    """The files that a run left, brought into *to* if it is given: verified, and unpacked."""
    run = finding.find(run_id)
    backend = backends.load(run.backend)
    if to is None:
        return backend.artifacts(run)
    made = backend.collect(run, to, checkpoints=checkpoints)
    return [Artifact(path.relative_to(to).as_posix(), path.stat().st_size, str(path)) for path in made]


def cancel(run_id: str | None = None, *, grace_seconds: int | None = None) -> None:
    """Ask a run to stop. It may take up to its grace time: status() tells."""
    run = finding.find(run_id, own=True)
    if not run.ended:
        own = int(run.plan["limits"]["grace_seconds"])
        launch.cancel(
            run, grace_seconds=own if grace_seconds is None else grace_seconds, reason="cancelled from Python"
        )
