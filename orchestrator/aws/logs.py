"""What a training job printed, fetched from CloudWatch Logs: no line lost, none twice, whatever breaks off in between."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator import crashpoints, state
from orchestrator.aws.client import Aws

LOG, CURSOR, LOCK = "log.txt", "log-cursor.json", "log.lock"
# Seconds, against AWS itself; a loopback service is neither far nor shared, nor late.
REQUEST_SECONDS, LOOPBACK_REQUEST_SECONDS = 0.2, 0.01
QUIET_SECONDS, LOOPBACK_QUIET_SECONDS = 10.0, 0.5
LATE_SECONDS = 600.0  # CloudWatch may take a line in this long after it was printed
MOST_PAGES = 10  # of a stream in one poll, two seconds' worth: a long log shows while it is fetched


@dataclass(frozen=True)
class _Stream:
    """How far one host's output has been fetched."""

    token: str | None = None
    start: int | None = None  # milliseconds: the startTime that the token belongs to
    last_timestamp: int | None = None  # milliseconds
    at_that_timestamp: int = 0  # how many events of that millisecond are in the log
    skip: int = 0  # of these, how many are still to be passed over, after a token has expired


class LogFetcher:
    """Appends what a job's hosts print to *folder*/log.txt; what of it counts is in log-cursor.json, written after it.

    One process fetches, by a lock in *folder*; another's poll() says whether the log has grown. Errors of calls are raised
    as botocore has them, with nothing lost: poll again. mark_hosts: each line begins with its host (`algo-2 | `). loopback:
    the service is on this machine; None: as the endpoint of *aws* says. *clock*, *wall* and *sleep* are in seconds.
    """

    def __init__(
        self,
        aws: Aws,
        *,
        group: str,
        job_name: str,
        folder: Path,
        mark_hosts: bool,
        quiet_seconds: float | None = None,
        loopback: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        loopback = aws.endpoint is not None if loopback is None else loopback
        default = LOOPBACK_QUIET_SECONDS if loopback else QUIET_SECONDS
        self._quiet_seconds = default if quiet_seconds is None else quiet_seconds
        self._request_seconds = LOOPBACK_REQUEST_SECONDS if loopback else REQUEST_SECONDS
        self._late_seconds = 0.0 if loopback else LATE_SECONDS
        self._aws, self._group, self._prefix = aws, group, f"{job_name}/"
        self._folder, self._mark_hosts = folder, mark_hosts
        self._clock, self._wall, self._sleep = clock, wall, sleep
        self._lock: int | None = None
        self._streams: dict[str, _Stream] = {}
        self._size = 0  # bytes of log.txt that count, or that the last poll saw
        self._ended = self._long_ago = self._drained = self._final = False
        self._drained_at: float | None = None  # by the calendar: when the log was found drained first
        self._quiet_since: float | None = None
        self._next_request = clock()

    def __enter__(self) -> LogFetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the log to whoever fetches next."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def say_ended(self, at: float | None = None) -> None:
        """The job has ended (*at*: POSIX seconds): its last lines may still be on their way, unless that is long ago."""
        self._ended = True
        long_enough = max(self._late_seconds, self._quiet_seconds)
        self._long_ago = at is not None and self._wall() - at >= long_enough

    def drained(self) -> bool:
        """Has all that an ended job printed been fetched?

        True once two polls since say_ended(), quiet_seconds apart, and all between, have found every stream at its end
        and none new. It is remembered: a later fetcher asks only whether a late line has come in since, and no more once
        that has been asked when no line can be late any more.
        """
        if self._lock is None and not self._drained:
            self._drained = bool(_cursor_of(self._folder).get("drained_at"))
        return self._ended and self._drained

    def poll(self) -> bool:
        """Fetch what is new; returns whether anything came, or is likely to if asked at once."""
        if self._lock is None and not self._take_over():
            return self._has_grown()
        if self._final:
            return False
        came, at_end = False, True
        for name in self._stream_names():
            if name not in self._streams:
                self._streams[name] = _Stream()
                at_end = False
            appended, ended = self._follow(name)
            came, at_end = came or appended, at_end and ended
        more = came or not at_end
        self._judge_quiet(more)
        return more

    def _judge_quiet(self, news: bool) -> None:
        if news or not self._ended:
            self._quiet_since = self._drained_at = None
            self._drained = False
            return
        if self._drained_at is None and not self._long_ago and not self._quiet_enough():
            return
        now = self._wall()
        self._drained_at = now if self._drained_at is None else self._drained_at
        self._final = self._long_ago or now - self._drained_at >= self._late_seconds
        if self._final or not self._drained:
            self._drained = True
            self._write_cursor(self._streams, self._size)

    def _quiet_enough(self) -> bool:
        if self._quiet_since is None:
            self._quiet_since = self._clock()
            return False
        return self._clock() - self._quiet_since >= self._quiet_seconds

    def _stream_names(self) -> list[str]:
        """The job's streams: one a host, and another each time that a host was started."""
        names = []
        try:
            for page in self._pages("describe_log_streams", logStreamNamePrefix=self._prefix):
                names += [one["logStreamName"] for one in page["logStreams"]]
        except Exception as error:
            if _code(error) != "ResourceNotFoundException":  # no job has printed anything in this region yet
                raise
        return sorted(name for name in names if name.startswith(self._prefix))

    def _pages(self, operation: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        token: str | None = None
        while True:
            page = self._call(operation, **arguments, **({"nextToken": token} if token else {}))
            yield page
            token = page.get("nextToken")
            if not token:
                return

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        pause = self._next_request - self._clock()
        if pause > 0:
            self._sleep(pause)
        self._next_request = self._clock() + self._request_seconds
        answer: dict[str, Any] = getattr(self._aws.client("logs"), operation)(logGroupName=self._group, **arguments)
        return answer

    def _follow(self, name: str) -> tuple[bool, bool]:
        """Append page after page; returns whether anything came, and whether the stream's end was reached."""
        came = False
        for _ in range(MOST_PAGES):
            page = self._page(name)
            if page is None:
                return came, True
            sent, token = self._streams[name].token, page["nextForwardToken"]
            came |= self._keep(name, page["events"], token)
            # An empty page is not the end, nor is one partly full; only the token that was sent coming back is.
            if token == sent:
                return came, True
        return came, False

    def _page(self, name: str) -> dict[str, Any] | None:
        """The next page; None where the stream has been deleted."""
        stream = self._streams[name]
        try:
            try:
                return self._get(name, stream)
            except Exception as error:
                if _code(error) != "InvalidParameterException" or stream.token is None:
                    raise
            # A token lives for 24 hours. Begin at the last event that the log has, and pass over what it has of that
            # moment.
            again = replace(stream, token=None, start=stream.last_timestamp, skip=stream.at_that_timestamp)
            self._streams[name] = again
            return self._get(name, again)
        except Exception as error:
            if _code(error) == "ResourceNotFoundException":
                return None
            raise

    def _get(self, name: str, stream: _Stream) -> dict[str, Any]:
        where = {"nextToken": stream.token, "startTime": stream.start}
        known = {key: value for key, value in where.items() if value is not None}
        return self._call("get_log_events", logStreamName=name, startFromHead=True, **known)

    def _keep(self, name: str, events: list[dict[str, Any]], token: str) -> bool:
        """Append *events* and remember *token*: both, or after a crash neither. Returns whether anything was appended."""
        stream, lines = self._streams[name], []
        mark = f"{_host(name)} | ".encode() if self._mark_hosts else b""
        last, count, skip = stream.last_timestamp, stream.at_that_timestamp, stream.skip
        for event in events:
            moment = event["timestamp"]
            if skip and moment == last:
                skip -= 1
                continue
            if last is None or moment > last:
                last, count, skip = moment, 0, 0
            count += moment == last
            lines.append(_line(event["message"], mark))
        after = _Stream(token, stream.start, last, count, skip)
        if after == stream and not lines:
            return False
        size = self._append(b"".join(lines))
        crashpoints.reached("log appended")
        self._write_cursor({**self._streams, name: after}, size)
        self._streams[name], self._size = after, size
        return bool(lines)

    def _append(self, data: bytes) -> int:
        """Put *data* after what counts of the log, over what a crash has left there; returns the size then."""
        if not data:
            return self._size
        with os.fdopen(os.open(self._folder / LOG, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as log:
            log.truncate(self._size)
            log.seek(self._size)
            log.write(data)
            log.flush()
            os.fsync(log.fileno())
        return self._size + len(data)

    def _write_cursor(self, streams: dict[str, _Stream], size: int) -> None:
        said = {name: asdict(stream) for name, stream in streams.items()}
        cursor = {"size": size, "streams": said, "drained_at": self._drained_at, "final": self._final}
        state.write_whole(self._folder / CURSOR, json.dumps(cursor).encode())

    def _take_over(self) -> bool:
        """Become the one who fetches, where nobody is, from where the last one was."""
        state.make_private(self._folder)
        self._lock = state.hold_lock(self._folder / LOCK)
        if self._lock is None:
            return False
        cursor = _cursor_of(self._folder)
        size = cursor.get("size", 0)
        if _log_bytes(self._folder) > size:  # appended before a crash, and not yet counted
            os.truncate(self._folder / LOG, size)
        self._size = size
        self._drained_at, self._final = cursor.get("drained_at"), bool(cursor.get("final"))
        self._drained = self._final
        self._streams = {name: _Stream(**fields) for name, fields in cursor.get("streams", {}).items()}
        return True

    def _has_grown(self) -> bool:
        """Has another process, which fetches, appended to the log?"""
        size = _log_bytes(self._folder)
        grown, self._size = size > self._size, size
        return grown


def _log_bytes(folder: Path) -> int:
    log = folder / LOG
    return log.stat().st_size if log.exists() else 0


def _cursor_of(folder: Path) -> dict[str, Any]:
    """How far the log in *folder* has been fetched; {} where nothing of it counts: it was cut or deleted since, say."""
    try:
        cursor = json.loads((folder / CURSOR).read_bytes())
        whole = _log_bytes(folder) >= cursor["size"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}
    return cursor if whole else {}


def _line(message: str, mark: bytes) -> bytes:
    """An event's text as it is, in UTF-8, each line of it behind *mark*."""
    text = message.removesuffix("\n").encode("utf-8", "surrogatepass")
    return mark + (text.replace(b"\n", b"\n" + mark) if mark else text) + b"\n"


def _host(stream_name: str) -> str:
    """The host in a stream's name, `<job>/algo-1-1700000000`."""
    tail = stream_name.rpartition("/")[2]
    named = re.match(r"(algo-\d+)-", tail)
    return named[1] if named else tail


def _code(error: Exception) -> str:
    """The service's code in a botocore ClientError; "" in any other error."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def is_final(folder: Path) -> bool:
    """Is all that the job of *folder* printed here, for good?"""
    return bool(_cursor_of(folder).get("final"))
