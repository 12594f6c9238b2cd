"""CloudWatch Logs, fetched without losing or repeating a line: against its contract (a fake that is as awkward as it may be)
and against moto's."""

# ruff: noqa: N803 - boto3 names its arguments as the service does
from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator import crashpoints, state
from orchestrator.aws import logs
from orchestrator.aws.client import Aws
from orchestrator.aws.logs import LogFetcher
from tests.conftest import REPOSITORY, wait_until

GROUP = "/aws/sagemaker/TrainingJobs"
JOB = "orc-mlp-0123456789abcdef0123"
TOKEN_SECONDS = 24 * 3600.0


class Clock:
    """Time that passes when somebody sleeps, and where the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Crash(Exception):
    """The process ends here."""


def refusal(code: str, operation: str) -> Exception:
    from botocore.exceptions import ClientError

    return ClientError({"Error": {"Code": code, "Message": code}}, operation)


@dataclass
class FakeLogs:
    """GetLogEvents and DescribeLogStreams as AWS documents them, on purpose at their worst.

    Pages may be empty or partly full before the end; only at the end is the token that was sent returned. A token lives
    for 24 hours. Events of a stream are in the order in which it took them.
    """

    clock: Clock
    rng: random.Random
    trouble: float = 0.0  # the share of calls that are throttled or not answered
    empty: float = 0.3
    most_on_page: int = 5
    most_streams_on_page: int = 2
    streams: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    tokens: dict[str, tuple[str, int, int | None, float]] = field(default_factory=dict)
    requested_at: list[float] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def _asked(self, operation: str) -> None:
        self.requested_at.append(self.clock.now)
        if self.rng.random() < self.trouble:
            from botocore.exceptions import ReadTimeoutError

            if self.rng.random() < 0.5:
                raise refusal("ThrottlingException", operation)
            raise ReadTimeoutError(endpoint_url="https://logs.us-east-1.amazonaws.com")

    def describe_log_streams(
        self, *, logGroupName: str, logStreamNamePrefix: str, nextToken: str = "0"
    ) -> dict[str, Any]:
        self._asked("DescribeLogStreams")
        assert logGroupName == GROUP
        if not self.streams:
            raise refusal("ResourceNotFoundException", "DescribeLogStreams")
        names = sorted(name for name in self.streams if name.startswith(logStreamNamePrefix))
        start = int(nextToken)
        stop = start + self.most_streams_on_page
        more = {"nextToken": str(stop)} if stop < len(names) else {}
        return {"logStreams": [{"logStreamName": name} for name in names[start:stop]], **more}

    def get_log_events(
        self,
        *,
        logGroupName: str,
        logStreamName: str,
        startFromHead: bool,
        nextToken: str | None = None,
        startTime: int | None = None,
    ) -> dict[str, Any]:
        self._asked("GetLogEvents")
        assert startFromHead
        position = 0
        if nextToken is not None:
            name, position, of_start, issued_at = self.tokens[nextToken]
            assert (name, of_start) == (logStreamName, startTime), "a token belongs to the query that it came from"
            if self.clock.now - issued_at > TOKEN_SECONDS:
                raise refusal("InvalidParameterException", "GetLogEvents")
        wanted = [event for event in self.streams[logStreamName] if startTime is None or event[0] >= startTime]
        left = wanted[position:]
        if not left and nextToken is not None:
            return {"events": [], "nextForwardToken": nextToken}
        page = [] if self.rng.random() < self.empty else left[: self.rng.randint(1, self.most_on_page)]
        token = f"f/{next(self.numbers)}"
        self.tokens[token] = (logStreamName, position + len(page), startTime, self.clock.now)
        return {"events": [{"timestamp": at, "message": text} for at, text in page], "nextForwardToken": token}


class FakeAws:
    endpoint: str | None = None

    def __init__(self, fake: FakeLogs) -> None:
        self._fake = fake

    def client(self, service: str, **_: Any) -> FakeLogs:
        assert service == "logs"
        return self._fake


def fetcher_of(fake: FakeLogs, folder: Path, *, mark_hosts: bool = False) -> LogFetcher:
    aws: Any = FakeAws(fake)
    clock = fake.clock
    return LogFetcher(
        aws, group=GROUP, job_name=JOB, folder=folder, mark_hosts=mark_hosts, clock=clock, wall=clock, sleep=clock.sleep
    )


def polled(fake: FakeLogs, fetcher: LogFetcher, most: int = 500) -> None:
    """Poll an ended job until it is drained."""
    fetcher.say_ended()
    for _ in range(most):
        if fetcher.drained():
            return
        fetcher.poll()
        fake.clock.now += 2
    pytest.fail("the log was never drained")


@pytest.fixture
def folder(home: Path) -> Path:
    return state.make_private(home / "runs" / "r-1")


def calm(**streams: list[tuple[int, str]]) -> FakeLogs:
    named = {f"{JOB}/{name.replace('_', '-')}": events for name, events in streams.items()}
    return FakeLogs(Clock(), random.Random(1), empty=0.0, streams=named)


def test_all_lines_of_a_job_are_fetched_once_in_order(folder: Path) -> None:
    fake = calm(algo_1_1700000000=[(number // 7, f"line {number}") for number in range(23)])
    with fetcher_of(fake, folder) as fetcher:
        polled(fake, fetcher)
        assert not fetcher.poll()
    assert (folder / "log.txt").read_text() == "".join(f"line {number}\n" for number in range(23))


def test_each_hosts_lines_are_marked_where_there_are_several(folder: Path) -> None:
    fake = calm(algo_1_17=[(1, "one")], algo_2_17=[(1, "two\nlines\n")])
    with fetcher_of(fake, folder, mark_hosts=True) as fetcher:
        polled(fake, fetcher)
    assert (folder / "log.txt").read_text() == "algo-1 | one\nalgo-2 | two\nalgo-2 | lines\n"


def test_another_jobs_streams_are_not_ours(folder: Path) -> None:
    fake = calm(algo_1_17=[(1, "ours")])
    fake.streams[f"{JOB}-2/algo-1-17"] = [(1, "another's")]
    with fetcher_of(fake, folder) as fetcher:
        polled(fake, fetcher)
    assert (folder / "log.txt").read_text() == "ours\n"


def test_text_is_kept_as_it_is(folder: Path) -> None:
    texts = ["", "  spaces  ", "tab\tand \x1b[31mred", "50%|███\r", "\ud800 half a pair", "日本語", "\x00"]
    fake = calm(algo_1_17=[(1, text) for text in texts])
    with fetcher_of(fake, folder) as fetcher:
        polled(fake, fetcher)
    assert (folder / "log.txt").read_bytes() == b"".join(
        text.encode("utf-8", "surrogatepass") + b"\n" for text in texts
    )


def test_no_group_yet_is_no_error_and_a_job_that_never_printed_is_drained(folder: Path) -> None:
    fake = calm()
    with fetcher_of(fake, folder) as fetcher:
        assert not fetcher.poll()
        polled(fake, fetcher)
    assert not (folder / "log.txt").exists()


def test_two_quiet_polls_at_once_are_not_yet_the_end(folder: Path) -> None:
    fake = calm(algo_1_17=[(1, "one")])
    with fetcher_of(fake, folder) as fetcher:
        fetcher.say_ended()
        for _ in range(4):
            fetcher.poll()
        assert not fetcher.drained()
        fake.clock.now += 9
        fake.streams[f"{JOB}/algo-1-17"].append((2, "late"))
        fetcher.poll()
        fake.clock.now += 9
        fetcher.poll()
        assert not fetcher.drained()
        polled(fake, fetcher)
    assert (folder / "log.txt").read_text() == "one\nlate\n"


def test_a_running_job_is_never_drained(folder: Path) -> None:
    fake = calm(algo_1_17=[(1, "one")])
    with fetcher_of(fake, folder) as fetcher:
        for _ in range(50):
            fetcher.poll()
            fake.clock.now += 60
            assert not fetcher.drained()


def polled_once(fake: FakeLogs, folder: Path) -> bool:
    """What a later command does: one look at an ended job's log, which was drained before."""
    with fetcher_of(fake, folder) as fetcher:
        fetcher.say_ended()
        came = fetcher.poll()
        assert fetcher.drained() != came
    return came


def test_a_line_that_came_late_is_fetched_by_who_looks_next(folder: Path) -> None:
    fake = calm(algo_1_17=[(1, "one")])
    with fetcher_of(fake, folder) as fetcher:
        polled(fake, fetcher)
    assert not polled_once(fake, folder)
    fake.clock.now += 60
    fake.streams[f"{JOB}/algo-1-17"].append((2, "late"))
    assert polled_once(fake, folder)
    assert (folder / "log.txt").read_text() == "one\nlate\n"


def test_a_drained_log_is_not_asked_for_again_when_no_line_can_be_late(folder: Path) -> None:
    fake = calm(algo_1_17=[(1, "one")])
    with fetcher_of(fake, folder) as fetcher:
        polled(fake, fetcher)
    fake.clock.now += logs.LATE_SECONDS
    assert not polled_once(fake, folder)
    fake.requested_at.clear()
    assert not polled_once(fake, folder)
    assert fake.requested_at == []


def test_a_log_that_was_deleted_is_fetched_anew(folder: Path) -> None:
    fake = calm(algo_1_17=[(1, "one"), (2, "two")])
    for _ in range(2):
        with fetcher_of(fake, folder) as fetcher:
            polled(fake, fetcher)
        assert (folder / "log.txt").read_text() == "one\ntwo\n"
        (folder / "log.txt").unlink()


def test_requests_are_at_least_a_fifth_of_a_second_apart(folder: Path) -> None:
    fake = calm(algo_1_17=[(1, str(number)) for number in range(300)], algo_2_17=[(1, "x")] * 100)
    with fetcher_of(fake, folder) as fetcher:
        while fetcher.poll():
            pass
    gaps = [after - before for before, after in itertools.pairwise(fake.requested_at)]
    assert len(gaps) > 50
    assert min(gaps) > 0.199


def test_an_expired_token_that_was_not_expired_is_the_callers_error(folder: Path) -> None:
    fake = calm(algo_1_17=[(1, "one")])
    with fetcher_of(fake, folder) as fetcher:
        fetcher.poll()
        fake.clock.now += 2 * TOKEN_SECONDS

        def refuse(**_: Any) -> dict[str, Any]:
            raise refusal("InvalidParameterException", "GetLogEvents")

        fake.get_log_events = refuse  # type: ignore[method-assign]
        with pytest.raises(Exception, match="InvalidParameterException"):
            fetcher.poll()


def test_only_one_process_fetches_and_another_goes_on_when_it_is_gone(folder: Path) -> None:
    fake = calm(algo_1_17=[(1, "one")])
    first, second = fetcher_of(fake, folder), fetcher_of(fake, folder)
    assert first.poll()
    asked = len(fake.requested_at)
    assert second.poll()  # the log has grown, and it was not this one that asked
    assert not second.poll()
    assert len(fake.requested_at) == asked
    first.close()
    fake.streams[f"{JOB}/algo-1-17"].append((2, "two"))
    polled(fake, second)
    with fetcher_of(fake, folder) as third:
        third.say_ended()
        assert third.drained()
    second.close()
    assert (folder / "log.txt").read_text() == "one\ntwo\n"


@pytest.mark.slow
def test_600_random_schedules_lose_nothing_and_repeat_nothing(
    memory_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_HOME", str(memory_folder))
    met: dict[str, int] = {}
    for seed in range(600):
        folder = state.make_private(memory_folder / f"r-{seed}")
        one_schedule(folder, random.Random(seed), monkeypatch, met)
    assert min(met.values()) > 100, met
    assert set(met) == {"crash", "trouble", "late stream", "late event", "expired"}


def one_schedule(folder: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, met: dict[str, int]) -> None:
    """A job of one to three hosts, restarted perhaps, its events coming in as they like, followed through all that can happen."""
    fake = FakeLogs(Clock(), rng, trouble=rng.choice([0.0, 0.1, 0.3]), empty=rng.choice([0.0, 0.1, 0.6]))
    to_come = [
        (f"{JOB}/algo-{host}-{start}", moment, f"{host} {start} {number} {rng.choice(['', 'x' * 50, 'ü'])}")
        for start in range(17, 17 + rng.randint(1, 2))
        for host in range(1, rng.randint(2, 4))
        for number, moment in enumerate(sorted(rng.randint(0, 8) + start * 100 for _ in range(rng.randint(0, 25))))
    ]
    order = {name: [event for event in to_come if event[0] == name] for name, _, _ in to_come}
    crash_share, sleep_share = rng.choice([0.0, 0.1]), rng.choice([0.0, 0.05])

    def crash(step: str) -> None:
        if step == "log appended" and rng.random() < crash_share:
            raise Crash

    monkeypatch.setattr(crashpoints, "reached", crash)
    fetcher = fetcher_of(fake, folder)
    left, ended = len(to_come), False
    while not (ended and left == 0 and fetcher.drained()):
        for _ in range(rng.randint(0, 6)):
            names = [name for name, events in order.items() if events]
            if names and not (ended and fetcher.drained()):
                name = rng.choice(names)
                count(met, "late event", ended)
                count(met, "late stream", name not in fake.streams and fake.streams)
                _, moment, text = order[name].pop(0)
                fake.streams.setdefault(name, []).append((moment, text))
                left -= 1
        if (left < len(to_come) // 4 or left == 0) and rng.random() < 0.5:
            ended = True
            fetcher.say_ended()
        try:
            fetcher.poll()
        except Crash:
            count(met, "crash", True)
            if rng.random() < 0.7:  # else this very process goes on, as after a full disk
                fetcher.close()
                fetcher = fetcher_of(fake, folder)
                if ended:
                    fetcher.say_ended()
        except Exception as error:
            if "Throttling" not in str(error) and "timeout" not in str(error):
                raise
            count(met, "trouble", True)
        slept = rng.random() < sleep_share
        count(met, "expired", slept and fake.tokens)
        fake.clock.now += 2 * TOKEN_SECONDS if slept and left else rng.choice([0.1, 1, 2])
        assert fake.clock.now < 1e9, "it never ends"
    fetcher.close()
    got = (folder / "log.txt").read_text("utf-8").splitlines() if to_come else []
    for name, events in fake.streams.items():
        host, start = re.findall(r"\d+", name.rpartition("/")[2])
        assert [line for line in got if line.startswith(f"{host} {start} ")] == [text for _, text in events]
    assert len(got) == len(to_come)
    assert json.loads((folder / "log-cursor.json").read_text())["drained_at"]


def count(met: dict[str, int], what: str, happened: object) -> None:
    met[what] = met.get(what, 0) + bool(happened)


def put(aws: Aws, stream: str, *texts: str) -> None:
    client = aws.client("logs")
    now = int(time.time() * 1000)
    events = [{"timestamp": now, "message": text} for text in texts]
    client.put_log_events(logGroupName=GROUP, logStreamName=stream, logEvents=events)


def make_stream(aws: Aws, stream: str) -> None:
    from botocore.exceptions import ClientError

    client = aws.client("logs")
    try:
        client.create_log_group(logGroupName=GROUP)
    except ClientError as error:
        assert "AlreadyExists" in str(error)  # noqa: PT017 - another test has made it
    client.create_log_stream(logGroupName=GROUP, logStreamName=stream)


def test_motos_logs_of_two_hosts_are_followed_to_their_end(aws: Aws, folder: Path) -> None:
    job = f"orc-moto-{os.getpid()}"
    with LogFetcher(aws, group=GROUP, job_name=job, folder=folder, mark_hosts=True, quiet_seconds=0.0) as fetcher:
        assert not fetcher.poll()
        make_stream(aws, f"{job}/algo-1-1")
        fetcher.poll()
        put(aws, f"{job}/algo-1-1", *(f"epoch {number}" for number in range(1200)))
        assert fetcher.poll()
        make_stream(aws, f"{job}/algo-2-1")
        put(aws, f"{job}/algo-2-1", "hello from the second")
        put(aws, f"{job}/algo-1-1", "bye")
        fetcher.say_ended()
        wait_until(lambda: fetcher.poll() or fetcher.drained(), what="the log")
        wait_until(lambda: not fetcher.poll() and fetcher.drained(), what="the end of the log")
    lines = (folder / "log.txt").read_text().splitlines()
    first = [line for line in lines if line.startswith("algo-1 | ")]
    assert first == [*(f"algo-1 | epoch {number}" for number in range(1200)), "algo-1 | bye"]
    assert [line for line in lines if line not in first] == ["algo-2 | hello from the second"]


def test_kill_9_between_the_log_and_its_cursor_repeats_nothing(aws: Aws, folder: Path) -> None:
    job = f"orc-killed-{os.getpid()}"
    make_stream(aws, f"{job}/algo-1-1")
    put(aws, f"{job}/algo-1-1", "one", "two")
    code = (
        "import sys; from pathlib import Path\n"
        "from orchestrator.aws.client import Aws\n"
        "from orchestrator.aws.logs import LogFetcher\n"
        "aws = Aws('us-east-1', endpoint=sys.argv[1])\n"
        "LogFetcher(aws, group=sys.argv[2], job_name=sys.argv[3], folder=Path(sys.argv[4]), mark_hosts=False).poll()\n"
    )
    words = [sys.executable, "-c", code, str(aws.endpoint), GROUP, job, str(folder)]
    killed = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ORCHESTRATE_CRASH_AT": "log appended"}
    )
    assert killed.returncode == -9
    assert (folder / "log.txt").read_text() == "one\ntwo\n"
    assert not (folder / logs.CURSOR).exists()
    with LogFetcher(aws, group=GROUP, job_name=job, folder=folder, mark_hosts=False) as fetcher:
        put(aws, f"{job}/algo-1-1", "three")
        assert fetcher.poll()
    assert (folder / "log.txt").read_text() == "one\ntwo\nthree\n"
