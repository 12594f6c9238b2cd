"""The process that stays with a local run: it outlives a detached command, and ends the run when an attached one dies.

`python -m orchestrator.backends.supervisor RUN_DIR`. It holds a lock on RUN_DIR/lock as long as it lives (the kernel frees it
whatever happens), so anyone can tell whether a run that the ledger calls alive still is. Its standard input is a line to
the command that started it: `d` means that the run is to go on alone, its end without that means that the command was
killed. RUN_DIR/exit.json says how the run ended, should the ledger not take it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import crashpoints, state
from orchestrator.backends import process
from orchestrator.backends.process import Child, Outcome, Stop
from orchestrator.errors import StateError
from orchestrator.runs import BUSY_SECONDS, Ledger, RunState, utc_now

RESERVED_BYTES = 16 * 1024
FLUSH_SECONDS = 1.0
BRIEF_SECONDS = 0.2
ORPHANED = "the command that watched it was killed"


class Supervisor:
    """One local run, from its start to its last word in the ledger."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.request: Mapping[str, Any] = json.loads((run_dir / "request.json").read_bytes())
        self.run_id: str = self.request["run_id"]
        self._log = os.open(run_dir / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._log_lost = False
        self._attached = True
        self._metrics: list[tuple[int, str, dict[str, float]]] = []
        self._next_metric = 0
        self._flushed = 0.0
        self._signal: str | None = None

    def stay(self) -> None:
        """Start the script, keep what it says, and write down how it ended."""
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, self._signalled)
        reserve(self.run_dir)
        if not self._may_start():
            return
        crashpoints.reached("supervisor: running written")
        process.apply_caps(self.request["limits"])
        child = Child(self.request)
        state.write_whole(self.run_dir / "child.json", json.dumps(identity(child.pid)).encode())
        crashpoints.reached("supervisor: script started")
        outcome = child.watch(self._keep, self._measured, self._asked_to_stop, self._stopping)
        self._flushed = 0.0
        self._flush(BUSY_SECONDS)
        last = self._last_word(outcome)
        with contextlib.suppress(OSError):  # the ledger is told as well
            conclude(self.run_dir, last)
        crashpoints.reached("supervisor: exit written")
        note = last["reason"]
        self._tell(
            RunState(last["state"]), note=note, untold=last["untold"], exit_code=last["exit_code"], actual_usd="0"
        )
        crashpoints.reached("supervisor: end written")

    def _may_start(self) -> bool:
        """Nothing is started for a command that is gone, nor for a run that the ledger has given up."""
        if select.select([0], [], [], 0)[0]:
            return False
        try:
            with Ledger.open(self._ledger) as ledger:
                return ledger.move(self.run_id, RunState.RUNNING, pid=os.getpid())
        except StateError:
            return True  # the ledger cannot be told now: the lock and exit.json will tell

    def _signalled(self, signum: int, _: object) -> None:
        self._signal = signal.Signals(signum).name

    def _keep(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._log, data) :]
            except OSError:  # a full disk must not end a training run
                self._log_lost = True
                return

    def _measured(self, values: dict[str, float]) -> None:
        self._metrics.append((self._next_metric, utc_now(), values))
        self._next_metric += 1

    def _flush(self, patience_seconds: float = BRIEF_SECONDS) -> None:
        if not self._metrics or time.monotonic() < self._flushed + FLUSH_SECONDS:
            return
        self._flushed = time.monotonic()
        # Little patience while it runs: a ledger that is locked must hold up neither the script nor its hard stop.
        with contextlib.suppress(StateError), Ledger.open(self._ledger, patience_seconds=patience_seconds) as ledger:
            ledger.add_metrics(self.run_id, self._metrics)
            self._metrics = []

    def _asked_to_stop(self) -> Stop | None:
        self._flush()
        if self._attached and select.select([0], [], [], 0)[0]:
            word = os.read(0, 1)
            self._attached = False
            if word != b"d":
                return Stop(ORPHANED, self.request["limits"]["grace_seconds"])
        if self._signal is not None:
            return Stop(f"its supervisor got {self._signal}", self.request["limits"]["grace_seconds"])
        with contextlib.suppress(OSError, ValueError):
            asked = json.loads((self.run_dir / "cancel.json").read_bytes())
            return Stop(asked["reason"], float(asked["grace_seconds"]))
        return None

    def _stopping(self, stop: Stop) -> None:
        self._tell(RunState.STOPPING, patience_seconds=BRIEF_SECONDS, note=stop.reason)

    def _last_word(self, outcome: Outcome) -> dict[str, Any]:
        state, reason = RunState.SUCCEEDED, None
        if outcome.stop is not None:
            state = RunState.FAILED if outcome.stop.failed else RunState.STOPPED
            reason = outcome.stop.reason
        elif (signalled := stopped_by(Path(self.request["root"]))) is not None:
            state, reason = RunState.STOPPED, f"stopped by {signalled} from outside"
        elif outcome.exit_code != 0:
            state = RunState.FAILED
            reason = failure_reason(Path(self.request["root"]), outcome.exit_code)
        if self._log_lost:
            reason = "; ".join(filter(None, [reason, "log.txt is not whole: the disk was full"]))
        orphaned = outcome.stop is not None and outcome.stop.reason == ORPHANED
        return {
            "state": str(state),
            "exit_code": outcome.exit_code,
            "reason": reason,
            "ended_at": utc_now(),
            "untold": orphaned or (state == RunState.FAILED and not self._attached),
        }

    @property
    def _ledger(self) -> Path:
        return Path(self.request["ledger"])

    def _tell(self, state: RunState, *, patience_seconds: float = BUSY_SECONDS, **changes: Any) -> None:
        """Tell the ledger. Where it cannot be told, exit.json will: the run goes on either way."""
        with contextlib.suppress(StateError), Ledger.open(self._ledger, patience_seconds=patience_seconds) as ledger:
            ledger.move(self.run_id, state, **changes)


def failure_reason(root: Path, exit_code: int) -> str:
    """Why the script ended: the last line of its own error, else its exit code."""
    with contextlib.suppress(OSError):
        lines = (root / "output" / "failure").read_text("utf-8", "replace").strip().splitlines()
        if lines:
            return lines[-1].strip()[:500]
    return f"the script exited with code {exit_code}"


def stopped_by(root: Path) -> str | None:
    """The signal with which somebody else ended the script, if bootstrap.py saw one."""
    with contextlib.suppress(OSError):
        return (root / "output" / "stopped").read_text("utf-8").strip() or None
    return None


def reserve(run_dir: Path) -> None:
    """Put room aside for the last word, so that a disk that is full by then can still hold it."""
    path = run_dir / "exit.reserved"
    with path.open("wb") as file:
        file.write(b" " * RESERVED_BYTES)
        file.flush()
        os.fsync(file.fileno())


def conclude(run_dir: Path, last: Mapping[str, Any]) -> None:
    """Write *last* to exit.json, in the reserved room: no new block is needed, and the rename makes it whole or absent."""
    data = json.dumps(last).encode()
    if len(data) > RESERVED_BYTES:
        data = json.dumps({**last, "reason": str(last["reason"])[:1000]}).encode()
    reserved = run_dir / "exit.reserved"
    with reserved.open("r+b") as file:
        file.write(data.ljust(RESERVED_BYTES))  # JSON ends where its last brace does; blanks behind it are no fault
        file.flush()
        os.fsync(file.fileno())
    reserved.replace(run_dir / "exit.json")


def identity(pid: int) -> dict[str, float]:
    """A process, told apart from a later one with the same number by when it was created."""
    import psutil

    created = 0.0
    with contextlib.suppress(psutil.Error):
        created = psutil.Process(pid).create_time()
    return {"pid": pid, "created": created}


def main(run_dir: Path) -> int:
    """Supervise the run in *run_dir*. Exits with the errno of a disk that would not take what must be written first."""
    if state.hold_lock(run_dir / state.RUN_LOCK) is None:
        return 0  # another supervisor has this run
    crashpoints.reached("supervisor: lock held")
    try:
        Supervisor(run_dir).stay()
    except OSError as error:
        print(error, file=sys.stderr)
        return error.errno or 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
