"""What `orchestrate estimate` does behind its flags."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from estimates import pricebook
from estimates.bill import Span
from orchestrator import books, choosing, cloudspec, estimate_view, estimating, history, plan, settings
from orchestrator import entrypoint as entrypoints
from orchestrator.choosing import amount
from orchestrator.errors import BadInput, OrchestrateError, flatten, raise_all, shown
from orchestrator.estimating import Question, Row, Typed
from orchestrator.settings import Flags
from orchestrator.spec import CloudOptions, TrainingSpec

BYTES_PER_GB = 10**9


@dataclass(frozen=True)
class Asked:
    """The flags of `estimate` that a submit does not have, unread."""

    hours: str | None = None
    backend: str | None = None
    regions: tuple[str, ...] = ()
    gpu: str | None = None
    max_usd: str | None = None
    data_gb: str | None = None
    data_region: str | None = None
    results_gb: str | None = None
    free_hours: str | None = None
    config: Path | None = None
    all_machines: bool = False
    as_json: bool = False
    as_csv: bool = False
    html: Path | None = None

    @property
    def wants_table(self) -> bool:
        return self.all_machines or self.as_csv or bool(self.html or self.gpu or self.max_usd)


@dataclass(frozen=True)
class Answer:
    """What was asked, the rows that answer it, and whether one machine was asked for by its name."""

    question: Question
    rows: tuple[Row, ...]
    one: bool


def run(flags: Flags, asked: Asked) -> None:
    """Reckon and show. Raises all that is wrong with flags, file, script and machines at once."""
    answer = reckon(flags, asked, Path.cwd())
    question, found = answer.question, answer.rows
    if asked.html is not None:
        _write_page(asked.html, estimate_view.document(question, found))
    estimate_view.show(
        question, found, one=answer.one, as_json=asked.as_json, as_csv=asked.as_csv, every=asked.all_machines
    )


def reckon(flags: Flags, asked: Asked, folder: Path) -> Answer:
    """The estimate as a value. Raises as run does."""
    problems: list[OrchestrateError] = []
    if asked.as_json and asked.as_csv:
        problems.append(BadInput("--json and --csv are two formats", hint="leave one of them out"))
    if asked.html is not None:
        _check_page(Path(asked.html), problems)
    spec = _spec(flags, folder, asked.config, problems)
    with pricebook.using(books.book_for(spec)):
        question = _question(spec, flags, asked, folder, problems)
        names = _names(spec, flags, asked, problems)
        regions = asked.regions or _own_region(spec)
        choice = choosing.choose(names, asked.backend, regions, asked.gpu, problems, every=asked.all_machines)
        choosing.check_data_region(asked.data_region, asked.backend, choice, problems)
        max_usd = amount("--max-usd", asked.max_usd, problems)
        raise_all(problems)
        found = estimating.rows(question, choice, max_usd=max_usd)
    return Answer(question, found, one=len(found) == 1 and choice.named and not asked.wants_table)


def _spec(flags: Flags, folder: Path, config: Path | None, problems: list[OrchestrateError]) -> TrainingSpec:
    try:
        return settings.load(flags, config or settings.find_file(folder))
    except OrchestrateError as error:
        problems.extend(flatten([error]))
        return TrainingSpec()


def _names(spec: TrainingSpec, flags: Flags, asked: Asked, problems: list[OrchestrateError]) -> tuple[str, ...]:
    """The machines that were named: on the command line, or in the file where nothing asks for a table."""
    if flags.instance is None and (asked.wants_table or asked.backend):
        return ()
    if spec.instance is not None and not spec.instances:
        what = f"--instance {shown(spec.instance)} names no machine"
        problems.append(BadInput(what, hint="--instance ml.g5.xlarge, or leave it out for a table"))
    return spec.instances


def _own_region(spec: TrainingSpec) -> tuple[str, ...]:
    return (spec.region,) if spec.region else ()


def _question(
    spec: TrainingSpec, flags: Flags, asked: Asked, folder: Path, problems: list[OrchestrateError]
) -> Question:
    hours = amount("--hours", asked.hours, problems, example="2")
    script, earlier = None, {}
    try:
        found = entrypoints.find(spec.script, spec.source_dir, folder)
        script = found.script
        if hours is None:
            typed = flags.arguments if flags.arguments is not None else spec.arguments or None
            earlier = history.of_script(plan.script_key(found), typed, count=spec.count, spot=spec.spot)
    except OrchestrateError as error:
        if flags.script is not None or hours is None:
            problems.extend(flatten([error]))
    pool = CloudOptions(keep_alive_minutes=spec.cloud.keep_alive_minutes)
    problems.extend(cloudspec.check_together(pool, spot=spec.spot, max_hours=None))
    free = amount("--free-tier", asked.free_hours, problems, example="50")
    results = amount("--results-gb", asked.results_gb, problems, example="0.5")
    return Question(
        script=script if flags.script or spec.script or hours is None else None,
        hours=hours,
        earlier=earlier,
        count=spec.count,
        spot=spec.spot,
        disk_gb=spec.cloud.volume_gb,
        data_gb=amount("--data-gb", asked.data_gb, problems, example="12") or _data_here(spec, folder),
        data_region=asked.data_region,
        results=None if results is None else Span.of(results),
        keep_alive_seconds=60 * (spec.cloud.keep_alive_minutes or 0),
        free_hours=free or Decimal(0),
        typed=_typed(flags, asked),
    )


def _typed(flags: Flags, asked: Asked) -> Typed:
    """The words that hold for the next command too; which machines were asked for is not among them."""
    shared = {
        "--count": flags.count, "--volume": flags.volume_gb, "--keep-alive": flags.keep_alive_minutes,
        "--config": asked.config,
    }  # fmt: skip
    own = {
        "--hours": asked.hours, "--data-gb": asked.data_gb, "--results-gb": asked.results_gb,
        "--free-tier": asked.free_hours,
    }  # fmt: skip
    spot = () if flags.spot is None else ("--spot" if flags.spot else "--no-spot",)
    places = tuple(word for place in flags.data for word in ("--data", place))
    return Typed(
        script=flags.script,
        shared=(*_words(shared), *spot, *places),
        own=_words(own),
        regions=asked.regions,
        data_region=asked.data_region,
        arguments=flags.arguments,
    )


def _words(options: Mapping[str, str | Path | None]) -> tuple[str, ...]:
    return tuple(word for name, value in options.items() if value is not None for word in (name, str(value)))


def _data_here(spec: TrainingSpec, folder: Path) -> Decimal:
    """GB of the data folders that lie here; what lies in a cloud is not asked."""
    size_bytes = 0
    for name, location in spec.data:
        if re.match(r"[a-z0-9+]+:", location):
            if not location.startswith(plan.SAMPLE):
                what = f"the size of {name} ({location}) is not asked for"
                print(f"note: {what}: --data-gb says how large it is", file=sys.stderr)
            continue
        place = Path(plan.channel_place(name, location, folder))
        size_bytes += sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return Decimal(size_bytes) / BYTES_PER_GB


def _check_page(path: Path, problems: list[OrchestrateError]) -> None:
    """That a page can be written there, before anything is reckoned for it."""
    import tempfile

    if path.is_dir():
        hint = f"--html {shlex.quote(str(path / 'estimate.html'))}"
        problems.append(BadInput(f"--html {path} is a folder, not a file", hint=hint))
    elif path.exists() and not path.is_file():
        problems.append(BadInput(f"--html {path} is no ordinary file", hint="--html estimate.html"))
    else:
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                return
        except OSError as error:
            what = f"--html {path} cannot be written in {path.parent}: {error.strerror}"
            problems.append(BadInput(what, hint="--html FILE in a folder of yours"))


def _write_page(path: Path, document: dict[str, object]) -> None:
    from orchestrator import estimate_page, state

    text = estimate_page.page(document)
    try:
        state.write_whole(path, text.encode())
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}", hint="--html FILE in a folder of yours") from error
    print(f"wrote {path}: open it in a browser", file=sys.stderr)
