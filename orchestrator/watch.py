"""Stay with a run: show its output as it comes, and how it stands; what Ctrl-C does to it; and how it ended."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from orchestrator import backends, crashpoints, finding, money, render, state
from orchestrator.errors import CloudRefused, Interrupted, OrchestrateError, OutcomeUnknown, ScriptFailed, StateError
from orchestrator.launch import Launched
from orchestrator.metrics import MetricReader
from orchestrator.runs import Event, Ledger, Run, RunState, utc_now
from orchestrator.tables import duration

QUIET_SECONDS = 2.0
REDRAW_SECONDS = 0.5
LAST_LINES = 10
# CSI and OSC sequences whole, then every other control code but tab, line end and (for progress bars) carriage return
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|[\u202a-\u202e\u2066-\u2069]"
)


class Printer:
    """Passes output on: to a terminal cleaned, with a status line in silence; elsewhere byte for byte.

    remote: it comes from elsewhere, in lines of several hosts, so that a carriage return has nothing to go back to.
    """

    quiet_seconds = QUIET_SECONDS

    def __init__(self, stream: TextIO, label: str = "", *, remote: bool = False) -> None:
        self._remote = remote
        self.passed_bytes = 0
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
        if not self.nobody_reads:
            with self._gone_readers_noticed():
                if not data:
                    self._status()
                elif self._tty:
                    self._show(data)
                else:
                    self._stream.flush()
                    self._stream.buffer.write(data)
                    self._stream.buffer.flush()
        self.passed_bytes += len(data)

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
        self._stream.write(text.replace("\r", " ") if self._remote else text)
        self._stream.flush()
        self._spoke = time.monotonic()
        self._at_line_start = text.endswith("\n") if text else self._at_line_start

    def _status(self) -> None:
        now = time.monotonic()
        if (
            not self._tty
            or not self._label
            or not self._at_line_start
            or now - self._spoke < self.quiet_seconds
            or (self._status_shown and now - self._drawn < REDRAW_SECONDS)
        ):
            return
        line = self._status_words()
        columns = os.get_terminal_size(self._stream.fileno()).columns or 80  # 0: a terminal that does not know
        self._stream.write(f"\r{line[: columns - 1]}\x1b[K")  # a full last column would begin a new line
        self._stream.flush()
        self._drawn = now
        self._status_shown = True

    def _status_words(self) -> str:
        words = render.metric_words(self._last, limit=3)
        return f"{self._label} · {duration(time.monotonic() - self._began)}" + (f" · {words}" if words else "")

    def _clear(self) -> None:
        if self._status_shown:
            self._stream.write("\r\x1b[K")
            self._status_shown = False


class LiveView(Printer):
    """The lines of a cloud's run as they come, and how it stands by the ledger: on a terminal in a line beneath them,
    elsewhere in a plain line to *notes* at each change.
    """

    quiet_seconds = 0.0

    def __init__(self, run: Run, stream: TextIO, notes: TextIO) -> None:
        super().__init__(stream, label=run.id, remote=True)
        self._run = run
        self._notes = notes
        self._said = ""
        self._heard = 0
        self._looked = -REDRAW_SECONDS

    def write(self, data: bytes) -> None:
        """As Printer.write; a Ctrl-C meanwhile is raised when *data* has been passed on, so that passed_bytes is true."""
        self._look()
        with _uninterrupted():
            super().write(data)

    def close(self) -> None:
        self._looked = -REDRAW_SECONDS
        self._look()
        super().close()

    def _look(self) -> None:
        """Read how the run stands, twice a second at most."""
        now = time.monotonic()
        if now - self._looked < REDRAW_SECONDS:
            return
        self._looked = now
        with contextlib.suppress(StateError), Ledger.open_to_read(state.ledger_file()) as ledger:
            self._run = ledger.get(self._run.id)
            if self._tty:
                self._last = ledger.last_metrics(self._run.id)
            else:
                self._tell(ledger.events(self._run.id))

    def _tell(self, events: list[Event]) -> None:
        news, self._heard = events[self._heard :], len(events)
        word = _standing(self._run)
        notes = [event.note for event in news if event.note]
        if word == self._said and not notes:
            return
        self._said = word
        line = f"[orchestrate] {clock(self._run.age())} {word}" + (f": {notes[-1]}" if notes else "")
        with contextlib.suppress(OSError):  # nobody reads that
            print(render.clean(line).replace("\n", " "), file=self._notes, flush=True)

    def _status_words(self) -> str:
        run, moment = self._run, utc_now()
        parts = (f"{run.id} {_standing(run)}", clock(run.age(moment)), money.so_far(run, moment))
        return render.clean(" · ".join(part for part in (*parts, render.metric_words(self._last, limit=3)) if part))


def _standing(run: Run) -> str:
    """The cloud's own word for how *run* stands; ours where that knows more."""
    if run.ended or run.state == RunState.STOPPING or run.remote_status is None:
        return run.state
    return run.remote_status


def clock(seconds: float) -> str:
    """`00:42`, `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until what stands inside is done; a second one does not: nobody may be reading."""
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    times = 0

    def wait(_number: int, _frame: FrameType | None) -> None:
        nonlocal times
        times += 1
        if times > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if times:
        raise KeyboardInterrupt


def show_output(run: Run, stream: TextIO, *, to_its_end: bool, leave_when_unread: bool = False) -> None:
    """Show the output of *run* from its beginning, as far as it has come or until it has ended.

    leave_when_unread: raise BrokenPipeError once nobody reads on (`logs --follow | head`).
    """
    printer = _printer(run, stream, to_its_end=to_its_end)
    try:
        _pass_on(run, printer, to_its_end=to_its_end, leave_when_unread=leave_when_unread)
    finally:
        printer.close()


def _printer(run: Run, stream: TextIO, *, to_its_end: bool) -> Printer:
    if run.backend == money.HERE:
        return Printer(stream, label=f"{run.id} running")
    return LiveView(run, stream, sys.stderr) if to_its_end else Printer(stream, remote=True)


def _pass_on(run: Run, printer: Printer, *, to_its_end: bool, leave_when_unread: bool = False) -> None:
    """Pass on to *printer* what it has not had of the run's output, which always comes from its beginning."""
    had = printer.passed_bytes
    for data in backends.load(run.backend).logs(run, follow=to_its_end):
        again = min(had, len(data))
        had -= again
        printer.write(data[again:])
        if leave_when_unread and printer.nobody_reads:
            raise BrokenPipeError


def until_the_end(launched: Launched, stream: TextIO) -> Run:
    """Follow a run that this command has just started, and do on Ctrl-C what its backend does then.

    Raises Interrupted after Ctrl-C: once the run has ended, if that stopped it; at once, if it goes on without this command.
    """
    run, started = launched.run, launched.started
    crashpoints.reached("watch started")
    printer = _printer(run, stream, to_its_end=True)
    times = answered = 0
    while True:
        try:
            if answered < times:  # in here, so that the next Ctrl-C is not taken for the end of this command
                interruption = started.interrupted(times)
                answered = times
                if interruption.leaves:
                    started.let_go()
                    raise Interrupted(interruption.message, hint=f"orchestrate cancel {run.id}")
                print(f"\n{interruption.message}", file=sys.stderr, flush=True)
            _follow(run, printer, silent=times > 0 and run.backend == money.HERE)
            break
        except KeyboardInterrupt:
            times += 1
    started.close()
    crashpoints.reached("end seen")
    ended = finding.find(run.id)
    if times and (run.backend == money.HERE or _asked_to_stop(run)):
        raise Interrupted(
            f"{run.id} {ended.state}: {ended.reason or 'it had just ended by itself'}",
            hint=render.next_steps(ended).removeprefix("next: "),
        )
    return ended


def _follow(run: Run, printer: Printer, *, silent: bool) -> None:
    if silent:
        _wait_for_end(run)
        return
    try:
        _pass_on(run, printer, to_its_end=True)
    finally:
        printer.close()


def _asked_to_stop(run: Run) -> bool:
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return any(event.state == RunState.STOPPING for event in ledger.events(run.id))


def _wait_for_end(run: Run) -> None:
    while not finding.find(run.id).ended:
        time.sleep(0.1)


def wait_for_end(run: Run, seconds: float) -> Run:
    """*run* as it stands when it has ended, or after *seconds*."""
    deadline = time.monotonic() + seconds
    if run.backend != money.HERE:
        _wait_in_the_cloud(run, deadline)
        return finding.find(run.id)
    while True:
        now = finding.find(run.id)
        if now.ended or time.monotonic() > deadline:
            return now
        time.sleep(0.1)


def _wait_in_the_cloud(run: Run, deadline: float) -> None:
    """Follow *run*, with its backend's patience for the cloud, until the ledger knows its end, or it cannot be followed."""
    try:
        for _ in backends.load(run.backend).logs(run, follow=True):
            with Ledger.open_to_read(state.ledger_file()) as ledger:
                if ledger.get(run.id).ended or time.monotonic() > deadline:
                    return
    except OrchestrateError as error:
        print(f"note: {run.id} cannot be followed to its end: {render.clean(error.what)}", file=sys.stderr)


def fault(run: Run) -> OrchestrateError | None:
    """What is to be said of a run that this command has watched to its end: nothing, if it succeeded."""
    if run.state == RunState.SUCCEEDED:
        return None
    if not run.ended:
        return OutcomeUnknown(f"{run.id} is {run.state}, as far as can be told", hint=f"orchestrate status {run.id}")
    explained = explanation(run)
    reason = explained.get("what") or run.reason
    lines = error_lines(run)
    tail = f"\n{render.clean(lines)}" if lines and lines != reason else ""
    what = render.clean(f"{render.shown_name(run.script)} {run.state}: {reason}")
    never_ran = run.backend != money.HERE and run.state == RunState.FAILED and run.started_at is None
    kind = CloudRefused if never_ran else ScriptFailed
    return kind(what + tail, hint=explained.get("hint") or f"orchestrate logs {run.id}")


def explanation(run: Run) -> dict[str, str]:
    """What a cloud's failure means (`what`) and what to do next (`hint`), where its backend has left that; else {}."""
    with contextlib.suppress(OSError, ValueError):
        found: Any = json.loads((Path(run.run_dir) / "explained.json").read_bytes())
        if isinstance(found, dict):
            return {name: found[name] for name in ("what", "hint") if isinstance(found.get(name), str)}
    return {}


def error_lines(run: Run) -> str | None:
    """The script's own last error lines, where it left any; of a cloud's run that failed the last lines of its output."""
    with contextlib.suppress(OSError):
        return (Path(run.run_dir) / "root/output/failure").read_text("utf-8", "replace").strip() or None
    if run.backend == money.HERE or run.state != RunState.FAILED:
        return None
    with contextlib.suppress(OSError), (Path(run.run_dir) / "log.txt").open("rb") as log:
        log.seek(max(log.seek(0, os.SEEK_END) - 8192, 0))
        lines = log.read().decode("utf-8", "replace").strip().splitlines()
        return "\n".join(lines[-LAST_LINES:]) or None
    return None


def last_metrics(run: Run) -> dict[str, float]:
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return ledger.last_metrics(run.id)
