"""Follow a job to its end: its state into the ledger, its lines to whoever reads, through whatever happens to the network."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import state
from orchestrator.aws import explain, jobs
from orchestrator.aws.client import Aws
from orchestrator.aws.explain import Kind
from orchestrator.aws.jobs import Standing, Tell
from orchestrator.aws.logs import LogFetcher
from orchestrator.errors import LoginNeeded, OrchestrateError, OutcomeUnknown
from orchestrator.metrics import MetricReader
from orchestrator.runs import ENDED, Ledger, Run, RunState

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
# Seconds against AWS itself; see jobs.pace_of. Twelve describes and thirty log reads a minute stay far below its limits.
LOOK_SECONDS, READ_SECONDS, BEAT_SECONDS = 5.0, 2.0, 0.5
LOGIN_PATIENCE_SECONDS = 15 * 60.0
LONGEST_PAUSE_SECONDS = 60.0
CATCH_UP_SECONDS = 5.0
YOUNG_SECONDS = 120.0
_HOST_MARK = re.compile(rb"(?m)^algo-\d+ \| ")


def look(aws: Aws, run: Run, ledger: Ledger, *, catch_up: Callable[[], None] | None = None) -> Run:
    """Ask how the job stands and write it down. Raises what the question met, as the SDK raised it.

    catch_up: brings what an ended job printed here, since its end is explained by its last lines; None: as it is done here.
    """
    try:
        described = jobs.describe(aws, str(run.remote_id))
    except Exception as error:
        if run.rehearsed and explain.classify(error) is Kind.UNREACHABLE:
            return _gone(run, ledger, "the rehearsed cloud was stopped, and the job with it")
        raise
    if described is None:
        jobs.check_account(aws, run.plan["cloud"]["account"])
        if run.state == RunState.STARTING:  # whether it was made is not known: `orchestrate resume` finds out
            return run
        if run.started_at is None and run.age() < YOUNG_SECONDS * jobs.pace_of(aws.endpoint):
            return run  # it was just made: a service of many machines may not know it everywhere yet
        return _gone(run, ledger, "the job is no longer there: somebody deleted it")
    if run.request is not None and not jobs.is_ours(described, run.request):
        return _gone(run, ledger, f"{run.remote_id} is another's job; this run was never made")
    told = jobs.standing(described, RunState(run.state))
    if told.state in ENDED:
        if told.started_at is not None:
            (catch_up or partial(_caught_up, aws, run))()
        _conclude(run, told, ledger)
        _keep_final_metrics(run, described, ledger)
    else:
        changes: dict[str, Any] = {"remote_status": told.remote_status, "billable_seconds": told.billable_seconds}
        if told.started_at is not None:
            changes["started_at"] = told.started_at
        note = None if told.remote_status == run.remote_status else told.message or None
        if told.state != run.state or note:
            ledger.move(run.id, told.state, note=note, unless=(*ENDED, *_later(told.state)), **changes)
        ledger.set(run.id, remote_status=told.remote_status)
    return ledger.get(run.id)


def _later(told: RunState) -> tuple[RunState, ...]:
    """A run that was asked to stop stays `stopping` though the cloud has not noticed yet."""
    return (RunState.STOPPING,) if told is not RunState.STOPPING else ()


def _gone(run: Run, ledger: Ledger, note: str) -> Run:
    end = RunState.ABANDONED if run.started_at is None else RunState.STOPPED
    ledger.move(run.id, end, note=note, untold=True)
    return ledger.get(run.id)


def _conclude(run: Run, told: Standing, ledger: Ledger) -> None:
    """Write the end, explained where it was not a success."""
    note: str | None = None
    if told.state is not RunState.SUCCEEDED:
        given = told.reason or told.remote_status
        codes = () if told.exit_code is None else (told.exit_code,)
        context = {
            "run": run.id,
            "instance": str(run.spec.get("instance")),
            "max_hours": str(run.spec.get("max_hours")),
        }
        explained = explain.failure(given, exit_codes=codes, lines=_last_lines(run), context=context)
        note = _stopped_words(run, told) or explained.what
        words = {"kind": explained.kind, "what": note, "hint": explained.hint}
        with state.explained(Path(run.run_dir)):
            state.make_private(Path(run.run_dir))
            state.write_whole(Path(run.run_dir) / "explained.json", json.dumps(words, ensure_ascii=False).encode())
    actual = "0" if run.rehearsed else jobs.bill(run.plan, told.billable_seconds)
    ended_at = told.ended_at or datetime.now(UTC).isoformat(timespec="milliseconds")
    ledger.move(
        run.id,
        told.state,
        note=note,
        remote_status=told.remote_status,
        started_at=told.started_at,
        ended_at=ended_at,
        exit_code=told.exit_code,
        billable_seconds=told.billable_seconds,
        actual_usd=actual,
    )


def _keep_final_metrics(run: Run, described: Mapping[str, Any], ledger: Ledger) -> None:
    """The metrics that SageMaker itself has found, where no line that was read had any: before the first line, if one comes."""
    found = described.get("FinalMetricDataList") or []
    if found and not ledger.last_metrics(run.id):
        values = {one["MetricName"]: float(one["Value"]) for one in found}
        ledger.add_metrics(run.id, [(-1, datetime.now(UTC).isoformat(timespec="milliseconds"), values)])


def _caught_up(aws: Aws, run: Run) -> None:
    """Bring what an ended job printed here, and its metrics into the ledger."""
    with _fetcher(aws, run) as fetcher:
        _catch_up(fetcher)
    for _ in _Shown(run).new():
        pass


def _catch_up(fetcher: LogFetcher) -> None:
    """Fetch what comes at once, for some seconds at most. What the cloud refuses meanwhile is left for `orchestrate logs`."""
    deadline = time.monotonic() + CATCH_UP_SECONDS
    try:
        while fetcher.poll() and time.monotonic() < deadline:
            pass
    except Exception as error:
        if explain.classify(error) is Kind.OTHER:
            raise


def _fetcher(aws: Aws, run: Run) -> LogFetcher:
    folder, name = state.make_private(Path(run.run_dir)), str(run.remote_id)
    several, near = int(run.plan["count"]) > 1, jobs.pace_of(aws.endpoint) < 1
    return LogFetcher(aws, group=LOG_GROUP, job_name=name, folder=folder, mark_hosts=several, loopback=near)


def _say_ended(fetcher: LogFetcher, run: Run) -> None:
    fetcher.say_ended(None if run.ended_at is None else datetime.fromisoformat(run.ended_at).timestamp())


def _stopped_words(run: Run, told: Standing) -> str | None:
    """Who stopped it, where that was not a limit of the cloud's."""
    if told.state is not RunState.STOPPED or told.remote_status != "Stopped":
        return None
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        asked = [event.note for event in ledger.events(run.id) if event.state == RunState.STOPPING and event.note]
    return asked[0] if asked else "stopped in the cloud"


def _last_lines(run: Run, count: int = 40) -> list[str]:
    try:
        with (Path(run.run_dir) / "log.txt").open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - 16_384))
            return log.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return []


class Trouble:
    """What is done about calls that fail while a job is followed: wait and say so, as long as waiting can help."""

    def __init__(self, aws: Aws, run: Run, tell: Tell) -> None:
        self._aws, self._run, self._tell = aws, run, tell
        self._pace = jobs.pace_of(aws.endpoint)
        goes_on = f"; {run.id} goes on in the cloud, and so does this once you log in again"
        self._goes_on = "; what is here is shown" if run.ended else goes_on
        self._times = 0
        self._said = ""
        self._login_lost: float | None = None
        self.wait_until = 0.0

    def met(self, error: Exception) -> None:
        """Decide how long to wait after *error*. Raises, in our words, what waiting does not mend."""
        kind = explain.classify(error)
        now = time.monotonic()
        self._times += 1
        if kind in (Kind.EXPIRED, Kind.NO_CREDENTIALS):
            self._login_lost = now if self._login_lost is None else self._login_lost
            refusal = explain.refusal(error, doing=f"follow {self._run.id}")
            self._say(f"{refusal.what}{self._goes_on} ({refusal.hint})")
            if now - self._login_lost > LOGIN_PATIENCE_SECONDS:
                raise LoginNeeded(f"{refusal.what}; {self._run.id} goes on", hint=refusal.hint)
            self._aws.refresh()
            self.wait_until = now + 10 * self._pace
        elif kind in (Kind.THROTTLED, Kind.AMBIGUOUS, Kind.UNREACHABLE):
            if self._times == 3:
                self._say(f"AWS does not answer ({kind}); {self._run.id} goes on in the cloud; trying again")
            longest = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(self._times, 6)) * self._pace
            self.wait_until = now + longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads, does not hide
        else:
            raise explain.refusal(error, doing=f"follow {self._run.id}") from error

    def over(self) -> None:
        if self._said:
            self._tell("AWS answers again")
        self._times, self._said, self._login_lost = 0, "", None

    def _say(self, line: str) -> None:
        if line != self._said:
            self._tell(line)
            self._said = line


def output(aws: Aws, run: Run, *, follow: bool, tell: Tell) -> Iterator[bytes]:
    """The lines of all hosts from the beginning; b"" is a moment of silence. follow: until the job has ended and is drained."""
    run = _known(run)
    pace = jobs.pace_of(aws.endpoint)
    reader = _Shown(run)
    trouble = Trouble(aws, run, tell)
    with _fetcher(aws, run) as fetcher:
        next_look = next_read = 0.0
        news = True
        if run.ended:
            _say_ended(fetcher, run)
        while True:
            now = time.monotonic()
            try:
                if now >= max(next_look, trouble.wait_until) and not run.ended:
                    run = _looked(aws, run, fetcher)
                    next_look = now + LOOK_SECONDS * pace
                    if run.ended:
                        _say_ended(fetcher, run)
                    _check_it_was_made(run)
                    trouble.over()
                if now >= max(next_read, trouble.wait_until):
                    news = fetcher.poll()
                    next_read = now if news else now + READ_SECONDS * pace
                    trouble.over()
            except OrchestrateError:
                raise
            except Exception as error:
                if run.rehearsed and run.ended and explain.classify(error) is Kind.UNREACHABLE:
                    yield from reader.new()  # its cloud was stopped; what it said is here
                    return
                trouble.met(error)
                news = False
            yield from reader.new()
            if (follow and run.ended and fetcher.drained()) or (not follow and not news):
                return
            yield b""
            if not news:
                time.sleep(BEAT_SECONDS * pace)


def _check_it_was_made(run: Run) -> None:
    """Raise OutcomeUnknown where the submit was cut short at its create call and there is no job: none will come by itself."""
    if run.state == RunState.STARTING and not state.is_held(Path(run.run_dir) / state.SUBMIT_LOCK):
        what = f"the submit of {run.id} was cut short, and there is no job {run.remote_id} (yet)"
        raise OutcomeUnknown(what, hint=f"orchestrate resume {run.id}   or: orchestrate cancel {run.id}")


def _known(run: Run) -> Run:
    """*run* as the ledger has it by now."""
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return ledger.get(run.id)


def _looked(aws: Aws, run: Run, fetcher: LogFetcher) -> Run:
    with Ledger.open(state.ledger_file()) as ledger:
        return look(aws, run, ledger, catch_up=partial(_catch_up, fetcher))


class _Shown:
    """What log.txt holds, in pieces, with its metric lines written to the ledger on the way."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._path = Path(run.run_dir) / "log.txt"
        self._position = 0
        self._metrics = MetricReader()
        self._seen = 0

    def new(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as log:
                log.seek(self._position)
                data = log.read()
        except FileNotFoundError:
            return
        data = data[: data.rfind(b"\n") + 1]  # another command may be writing the rest
        if not data:
            return
        self._position += len(data)
        lines = self._metrics.feed(_HOST_MARK.sub(b"", data))
        if lines:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            numbered = [(self._seen + number, now, line) for number, line in enumerate(lines)]
            self._seen += len(lines)
            with Ledger.open(state.ledger_file()) as ledger:
                ledger.add_metrics(self._run.id, numbered)
        yield data
