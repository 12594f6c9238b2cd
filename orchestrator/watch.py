"""Stay with a run: show its output as it comes, stop it on Ctrl-C, and tell how it ended."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from orchestrator import backends, crashpoints, launch, render, state
from orchestrator.errors import Interrupted, OrchestrateError, OutcomeUnknown, ScriptFailed
from orchestrator.metrics import MetricReader
from orchestrator.runs import Ledger, Run, RunState

QUIET_SECONDS = 2.0
REDRAW_SECONDS = 0.5
# CSI and OSC sequences whole, then every other control code but tab, line end and (for progress bars) carriage return
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|[\u202a-\u202e\u2066-\u2069]"
)


class Printer:
    """Passes output on: to a terminal cleaned, with a status line in silence; elsewhere byte for byte."""

    def __init__(self, stream: TextIO, label: str = "") -> None:
        self._stream = stream
        self._tty = stream.isatty()
        self._label = label
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._metrics = MetricReader()
        self._last: dict[str, float] = {}
        self._began = self._spoke = time.monotonic()
        self._at_line_start = True
        self._status_shown = False
        self._drawn = -REDRAW_SECONDS
        self.nobody_reads = False

    def write(self, data: bytes) -> None:
        """Pass *data* on; b"" is a moment of silence. Writes nothing more once nobody reads: see nobody_reads."""
        if self.nobody_reads:
            return
        with self._gone_readers_noticed():
            if not data:
                self._status()
            elif self._tty:
                self._show(data)
            else:
                self._stream.flush()
                self._stream.buffer.write(data)
                self._stream.buffer.flush()

    def close(self) -> None:
        with self._gone_readers_noticed():
            self._clear()
            self._stream.flush()

    @contextlib.contextmanager
    def _gone_readers_noticed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hung_up = self._tty and error.errno == errno.EIO
            if not (isinstance(error, BrokenPipeError) or hung_up):
                raise
            self.nobody_reads = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still buffered must not fail again, at the latest at exit
            os.close(nowhere)

    def _show(self, data: bytes) -> None:
        self._clear()
        for values in self._metrics.feed(data):
            self._last |= values
        text = _ESCAPES.sub("", self._decoder.decode(data))
        self._stream.write(text)
        self._stream.flush()
        self._spoke = time.monotonic()
        self._at_line_start = text.endswith("\n") if text else self._at_line_start

    def _status(self) -> None:
        now = time.monotonic()
        if (
            not self._tty
            or not self._label
            or not self._at_line_start
            or now - self._spoke < QUIET_SECONDS
            or now - self._drawn < REDRAW_SECONDS
        ):
            return
        words = render.metric_words(self._last, limit=3)
        line = f"{self._label} · {render.duration(now - self._began)}" + (f" · {words}" if words else "")
        columns = os.get_terminal_size(self._stream.fileno()).columns or 80  # 0: a terminal that does not know
        self._stream.write(f"\r{line[: columns - 1]}\x1b[K")  # a full last column would begin a new line
        self._stream.flush()
        self._drawn = now
        self._status_shown = True

    def _clear(self) -> None:
        if self._status_shown:
            self._stream.write("\r\x1b[K")
            self._status_shown = False


def show_output(run: Run, stream: TextIO, *, to_its_end: bool, leave_when_unread: bool = False) -> None:
    """Show the output of *run* from its beginning, as far as it has come or until it has ended.

    leave_when_unread: raise BrokenPipeError once nobody reads on (`logs --follow | head`).
    """
    printer = Printer(stream, label=f"{run.id} running")
    try:
        for data in backends.load(run.backend).logs(run, follow=to_its_end):
            printer.write(data)
            if leave_when_unread and printer.nobody_reads:
                raise BrokenPipeError
    finally:
        printer.close()


def until_the_end(launched: launch.Launched, stream: TextIO) -> Run:
    """Follow a run that this command has just started. Ctrl-C asks it to save and stop, a second one kills it.

    Raises Interrupted after Ctrl-C, once the run has ended.
    """
    run = launched.run
    crashpoints.reached("watch started")
    interrupted = False
    while True:
        try:
            if interrupted:
                _wait_for_end(run)
            else:
                show_output(run, stream, to_its_end=True)
            break
        except KeyboardInterrupt:
            _stop(run, again=interrupted)
            interrupted = True
    launched.started.close()
    crashpoints.reached("end seen")
    ended = launch.find(run.id)
    if interrupted:
        raise Interrupted(
            f"{run.id} {ended.state}: {ended.reason or 'it had just ended by itself'}",
            hint=render.next_steps(ended).removeprefix("next: "),
        )
    return ended


def _stop(run: Run, *, again: bool) -> None:
    grace_seconds = 0 if again else int(run.plan["limits"]["grace_seconds"])
    launch.cancel(run, grace_seconds=grace_seconds, reason="Ctrl-C")
    if again:
        print(f"\nkilling {run.id}", file=sys.stderr)
    else:
        print(
            f"\nstopping {run.id}: SIGTERM sent, up to {grace_seconds} s to save; Ctrl-C again kills it",
            file=sys.stderr,
        )


def _wait_for_end(run: Run) -> None:
    while not launch.find(run.id).ended:
        time.sleep(0.1)


def wait_for_end(run: Run, seconds: float) -> Run:
    """*run* as it stands when it has ended, or after *seconds*."""
    deadline = time.monotonic() + seconds
    while True:
        now = launch.find(run.id)
        if now.ended or time.monotonic() > deadline:
            return now
        time.sleep(0.1)


def fault(run: Run) -> OrchestrateError | None:
    """What is to be said of a run that this command has watched to its end: nothing, if it succeeded."""
    if run.state == RunState.SUCCEEDED:
        return None
    if not run.ended:
        return OutcomeUnknown(f"{run.id} is {run.state}, as far as can be told", hint=f"orchestrate status {run.id}")
    lines = error_lines(run)
    tail = f"\n{render.clean(lines)}" if lines and lines != run.reason else ""
    what = render.clean(f"{render.shown_name(run.script)} {run.state}: {run.reason}")
    return ScriptFailed(what + tail, hint=f"orchestrate logs {run.id}")


def error_lines(run: Run) -> str | None:
    """The script's own last error lines, where it left any."""
    with contextlib.suppress(OSError):
        return (Path(run.run_dir) / "root/output/failure").read_text("utf-8", "replace").strip() or None
    return None


def last_metrics(run: Run) -> dict[str, float]:
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return ledger.last_metrics(run.id)
