"""Run bootstrap.py as a child of this process: pass on its output, hold its limits, and see to it that nothing is left."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from orchestrator.metrics import MetricReader

BLOCK_BYTES = 64 * 1024
TICK_SECONDS = 0.2
MEMORY_CHECK_SECONDS = 0.5
DRAIN_SECONDS = 2.0  # for output that is still in the pipe when the script has ended
GIB = 1024**3


@dataclass(frozen=True)
class Stop:
    """Somebody, or a limit, wants the script to end. failed: count it as a failure (out of memory), not as a stop."""

    reason: str
    grace_seconds: float
    failed: bool = False


@dataclass(frozen=True)
class Outcome:
    """How it ended: the exit code (128 + n for signal n), and what asked it to stop, if anything did."""

    exit_code: int
    stop: Stop | None


class Child:
    """bootstrap.py and all that it starts."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._limits = request["limits"]
        read_end, self._lifeline = os.pipe()
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                request["command"],
                env=os.environ | request["environment"] | {"ORCHESTRATE_LIFELINE_FD": str(read_end)},
                cwd=request["root"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[read_end],
                start_new_session=True,
            )
        finally:
            os.close(read_end)
        self.pid = self._process.pid
        self._started = time.monotonic()
        self._memory_checked = 0.0
        self._stop: Stop | None = None
        self._kill_at = float("inf")

    def watch(
        self,
        on_output: Callable[[bytes], None],
        on_metrics: Callable[[dict[str, float]], None],
        ask: Callable[[], Stop | None],
        on_stop: Callable[[Stop], None] = lambda _: None,
    ) -> Outcome:
        """Stay until the end. *ask* is called several times a second; a Stop from it, or a limit, ends the script."""
        reader = MetricReader()
        pipe = self._process.stdout
        assert pipe is not None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(pipe, selectors.EVENT_READ)
                ended_at: float | None = None
                while ended_at is None or time.monotonic() < ended_at + DRAIN_SECONDS:
                    data = _read(pipe) if selector.select(TICK_SECONDS) else None
                    if data:
                        on_output(data)
                        for values in reader.feed(data):
                            on_metrics(values)
                    if data == b"" and self._wait_closed():
                        break
                    if ended_at is None and self._process.poll() is not None:
                        ended_at = time.monotonic()
                    self._consider(ask, on_stop)
        finally:
            self._end()
        code = self._process.returncode
        return Outcome(code if code >= 0 else 128 - code, self._stop)

    def _wait_closed(self) -> bool:
        """The output has been closed: nearly always since the process ended, which poll() then sees in a moment."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(TICK_SECONDS)
        return self._process.poll() is not None

    def _consider(self, ask: Callable[[], Stop | None], on_stop: Callable[[Stop], None]) -> None:
        now = time.monotonic()
        stop = ask() or self._limit_reached(now)
        if stop is not None:
            if self._stop is None:
                self._stop = stop
                on_stop(stop)
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGTERM)
            self._kill_at = min(self._kill_at, now + stop.grace_seconds)
        if now >= self._kill_at:
            self._kill()

    def _limit_reached(self, now: float) -> Stop | None:
        if self._stop is not None:
            return None
        limits = self._limits
        if limits["max_seconds"] is not None and now - self._started > limits["max_seconds"]:
            return Stop(f"its hard stop of {limits['max_seconds'] / 3600:g} h was reached", limits["grace_seconds"])
        if limits["memory_bytes"] is not None and now - self._memory_checked > MEMORY_CHECK_SECONDS:
            self._memory_checked = now
            used = group_memory_bytes(self.pid)
            if used > limits["memory_bytes"]:
                what = f"out of memory: {used / GIB:.1f} GiB in use, {limits['memory_bytes'] / GIB:g} GiB allowed"
                return Stop(f"{what} ({limits['memory_from']})", 0.0, failed=True)
        return None

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._lifeline, b"k")  # bootstrap kills the script's own group, then ends
        deadline = time.monotonic() + 1.0
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        kill_group(self.pid)
        self._kill_at = float("inf")

    def _end(self) -> None:
        kill_group(self.pid)
        with contextlib.suppress(OSError):
            os.close(self._lifeline)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _read(pipe: IO[bytes]) -> bytes:
    return os.read(pipe.fileno(), BLOCK_BYTES)


def kill_group(group: int) -> None:
    """SIGKILL to every process of *group*; nothing where there is none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def group_memory_bytes(pid: int) -> int:
    """Resident memory of *pid* and all below it, in bytes."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def apply_caps(limits: Mapping[str, Any]) -> None:
    """Cap this process, and all that it starts, to the CPUs and the memory of *limits*.

    CPUs by affinity (Linux; elsewhere only the thread counts in the environment hold). Memory by the size of each
    process's own data (RLIMIT_DATA), so that an allocation fails as it would there; Child watches the sum.
    """
    cpus = limits["cpus"]
    if cpus is not None and hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        first = os.getpid() % len(mine)  # so that several capped runs do not share the same few
        os.sched_setaffinity(0, (mine[first:] + mine[:first])[:cpus])
    if limits["memory_bytes"] is not None:
        import resource

        with contextlib.suppress(ValueError, OSError):  # macOS knows the limit and does not hold it
            resource.setrlimit(resource.RLIMIT_DATA, (limits["memory_bytes"], limits["memory_bytes"]))
