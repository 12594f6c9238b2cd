"""Staying with a cloud's run: its lines once each, how it stands and what it costs, and what Ctrl-C does."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator import backends, state, watch
from orchestrator.errors import CloudRefused, OutcomeUnknown, ScriptFailed
from orchestrator.runs import Ledger, Run, RunState, utc_now
from orchestrator.watch import LiveView
from tests.conftest import REPOSITORY, all_of

PLAN = {"price": {"usd_per_hour": "3.825"}, "count": 1, "machine": {"name": "ml.p3.2xlarge"}}

# A cloud of a few lines: its run says LINES lines, of which every tenth is a metric line, and ends.
COMMAND = '''
import sys, time
from pathlib import Path
from types import SimpleNamespace
from orchestrator import backends, faults, finding, state, watch
from orchestrator.backends import Interruption
from orchestrator.launch import Launched
from orchestrator.runs import Ledger, RunState

class Cloud:
    def refresh(self, run, ledger):
        return ledger.get(run.id)

    def logs(self, run, *, follow):
        """As a backend does it: from the beginning, of whatever host, and one at a time."""
        lock = state.hold_lock(Path(run.run_dir) / "logs.lock")
        assert lock is not None, "the view before this one still reads"
        try:
            for number in range(LINES):
                yield f"algo-1 | line {number}\\n".encode()
                yield b""
                time.sleep(PAUSE)
                with Ledger.open(state.ledger_file()) as ledger:
                    now = ledger.get(run.id)
                    if now.state == "stopping":
                        ledger.move(run.id, RunState.STOPPED, note="Ctrl-C", remote_status="Stopped")
                        return
                    if number == 5:
                        ledger.move(run.id, RunState.RUNNING, remote_status="Training", note="in\\x1b[2Jprogress")
                        ledger.add_metrics(run.id, [(0, "", {"val_accuracy": 0.981})])
            with Ledger.open(state.ledger_file()) as ledger:
                ledger.move(run.id, RunState.SUCCEEDED, note="completed", remote_status="Completed")
        finally:
            import os
            os.close(lock)

class Started:
    def let_go(self):
        print("let go", file=sys.stderr)
    def close(self):
        print("closed", file=sys.stderr)
    def interrupted(self, times):
        if CANCELS:
            with Ledger.open(state.ledger_file()) as ledger:
                ledger.move(run.id, RunState.STOPPING, note="Ctrl-C")
            return Interruption(f"stopping {run.id}")
        return Interruption(f"{run.id} goes on in the cloud {times}", leaves=times >= LEAVES_AT)

backends.load = lambda name: Cloud()
run = finding.find(None)

def command():
    ended = watch.until_the_end(Launched(run, Started(), None), sys.stdout)
    print(f"ended {ended.state}", file=sys.stderr)

sys.exit(faults.exit_code_of(command, as_json=False))
'''


def a_run(home: Path, **values: Any) -> Run:
    facts = {
        "id": "r-0123456789", "name": "mlp", "backend": "sagemaker", "state": RunState.ACCEPTED, "script": "mlp.py",
        "script_key": "shipped:mlp", "created_at": utc_now(), "spec": {}, "plan": PLAN, "run_dir": str(home / "runs" / "r"),
        "remote_id": "orc-mlp-0123456789", "remote_status": "Downloading", "region": "us-east-1",
    }  # fmt: skip
    run = Run(**{**facts, **values})
    Path(run.run_dir).mkdir(parents=True)
    with Ledger.open(home / "ledger.sqlite") as ledger:
        ledger.insert(run)
    return run


def command(lines: int, pause: float, *, leaves_at: int = 2, cancels: bool = False) -> list[str]:
    settings = f"LINES, PAUSE, LEAVES_AT, CANCELS = {lines}, {pause}, {leaves_at}, {cancels}\n"
    return [sys.executable, "-u", "-c", settings + COMMAND]


def started(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)


def lines(count: int) -> bytes:
    return b"".join(f"algo-1 | line {number}\n".encode() for number in range(count))


def read_until(stream: Any, words: bytes) -> bytes:
    """What came, up to the line with *words*."""
    read = b""
    while words not in read:
        line = stream.readline()
        assert line, f"it ended before {words!r}: {read!r}"
        read += line
    return read


def test_the_first_ctrl_c_tells_that_the_job_goes_on_and_nothing_is_lost_or_shown_twice(home: Path) -> None:
    a_run(home)
    with started(command(60, 0.01), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        read = read_until(process.stdout, b"line 20\n")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert read + rest == lines(60)
    assert b"\nr-0123456789 goes on in the cloud 1\n" in errors
    assert errors.endswith(b"closed\nended succeeded\n")


def test_the_second_ctrl_c_leaves_and_the_run_is_left_alone(home: Path) -> None:
    a_run(home)
    with started(command(10_000, 0.01), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        read_until(process.stdout, b"line 8\n")
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, b"goes on in the cloud 1")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert b"let go" in errors
    assert b"error: r-0123456789 goes on in the cloud 2\n  try: orchestrate cancel r-0123456789\n" in errors
    with Ledger.open(home / "ledger.sqlite") as ledger:
        assert ledger.get(None).state == "running"


def test_where_ctrl_c_stops_the_run_its_end_is_waited_for_and_told(home: Path) -> None:
    a_run(home)
    with started(command(10_000, 0.01, cancels=True), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        read_until(process.stdout, b"line 8\n")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert b"\nstopping r-0123456789\n" in errors
    assert b"error: r-0123456789 stopped: Ctrl-C\n" in errors
    with Ledger.open(home / "ledger.sqlite") as ledger:
        assert ledger.get(None).state == "stopped"


def test_however_often_ctrl_c_is_pressed_each_line_comes_once(home: Path) -> None:
    """At any moment: while a line is written, while the ledger is read, while the reason is told."""
    a_run(home)
    chance = random.Random(3)
    with started(command(150, 0.004, leaves_at=1000), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        read = read_until(process.stdout, b"line 0\n")
        for number in range(12):
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            read_until(process.stderr, f"goes on in the cloud {number + 1}\n".encode())
            time.sleep(chance.uniform(0, 0.05))
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert read + rest == lines(150)


def test_without_a_terminal_each_change_of_state_is_one_plain_line_on_stderr(home: Path) -> None:
    a_run(home)
    with started(command(40, 0.02), stdout=subprocess.PIPE) as process:
        out, errors = process.communicate(timeout=30)
    assert out == lines(40)
    told = [line for line in errors.decode().splitlines() if line.startswith("[orchestrate]")]
    without_times = [re.sub(r"\d\d:\d\d", "00:00", line) for line in told]
    assert without_times == [
        "[orchestrate] 00:00 Downloading",
        "[orchestrate] 00:00 Training: in\ufffd[2Jprogress",
        "[orchestrate] 00:00 succeeded: completed",
    ]


def shown_on_a_terminal(words: list[str], columns: int) -> str:
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update({"PYTHONPATH": str(REPOSITORY), "TERM": "xterm"})
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.execv(words[0], words)
    shown = bytearray()
    with contextlib.suppress(OSError):  # the other end is closed
        while data := os.read(descriptor, 65536):
            shown += data
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    return shown.decode()


def screen_of(text: str) -> list[str]:
    """What a terminal shows in the end: carriage returns and erased lines done."""
    rows = [""]
    for piece in re.split(r"(\r|\n|\x1b\[K)", text):
        if piece == "\n":
            rows.append("")
        elif piece == "\r":
            rows[-1] = "\0" + rows[-1].removeprefix("\0")  # the mark of a cursor at the line's beginning
        elif piece == "\x1b[K":
            rows[-1] = rows[-1] if not rows[-1].startswith("\0") else ""
        elif piece:
            rows[-1] = piece if rows[-1].startswith("\0") else rows[-1] + piece
    return [row.removeprefix("\0") for row in rows]


def test_a_terminal_shows_state_time_dollars_and_metrics_beneath_the_lines(home: Path) -> None:
    a_run(home, started_at=(datetime.now(UTC) - timedelta(minutes=2)).isoformat())
    shown = shown_on_a_terminal(command(60, 0.02), 100)
    drawn = re.findall(r"\r(r-0123456789 [^\r\x1b]*)\x1b\[K", shown)
    assert re.fullmatch(r"r-0123456789 Downloading · 00:0\d · \$0\.1\d+ so far", drawn[0])
    assert re.fullmatch(r"r-0123456789 Training · 00:0\d · \$0\.1\d+ so far · val_accuracy 0.981", drawn[-1])
    rows = screen_of(shown)
    assert [row for row in rows if "line" in row] == lines(60).decode().splitlines()
    assert not [row for row in rows if "so far" in row]  # nothing of the status line is left standing


def test_the_status_line_fits_a_narrow_terminal(home: Path) -> None:
    a_run(home, started_at=utc_now())
    drawn = re.findall(r"\r(r-01[^\r\x1b]*)\x1b\[K", shown_on_a_terminal(command(40, 0.02), 24))
    assert drawn
    assert {len(line) for line in drawn} == {23}


def the_line_of(run: Run) -> str:
    """The status line of *run* on a terminal of 200 columns."""
    main, sub = pty.openpty()
    fcntl.ioctl(sub, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    with os.fdopen(sub, "w", encoding="utf-8", newline="") as stream:
        view = LiveView(run, stream, io.StringIO())
        view.write(b"")
        shown = all_of(main).decode()
        view.close()
    os.close(main)
    return shown.removeprefix("\r").removesuffix("\x1b[K")


def ago(**span: float) -> str:
    return (datetime.now(UTC) - timedelta(**span)).isoformat()


def test_a_laptop_that_slept_shows_the_time_and_the_dollars_of_the_calendar(home: Path) -> None:
    run = a_run(home, created_at=ago(hours=9, minutes=1), started_at=ago(hours=9), remote_status="Training")
    assert re.fullmatch(r"r-0123456789 Training · 9:01:0\d · \$34.\d\d so far", the_line_of(run))


def test_a_clock_that_was_put_back_makes_no_time_and_no_dollars_negative(home: Path) -> None:
    run = a_run(home, created_at=ago(hours=-2), started_at=ago(hours=-2), remote_status="Training")
    assert the_line_of(run) == "r-0123456789 Training · 00:00 · $0.00 so far"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "r-0123456789 Downloading · 00:00"),  # nothing is billed yet
        (
            {"plan": {**PLAN, "price": None}, "started_at": "2026-01-01T00:00:00+00:00"},
            "r-0123456789 Downloading · 00:00",
        ),
        ({"state": RunState.STOPPING}, "r-0123456789 stopping · 00:00"),
        ({"remote_status": None}, "r-0123456789 accepted · 00:00"),
        ({"remote_status": "New\x1b[31mWord"}, "r-0123456789 New\ufffd[31mWord · 00:00"),
    ],
)
def test_what_is_not_known_is_not_shown(home: Path, values: dict[str, Any], line: str) -> None:
    assert the_line_of(a_run(home, **values)) == line


def test_a_rehearsal_shows_dollars_as_what_they_would_be(home: Path) -> None:
    run = a_run(home, started_at=ago(hours=1), rehearsed=True, endpoint="http://127.0.0.1:1")
    assert re.search(r" · would have cost \$3.8\d so far$", the_line_of(run))


def test_lines_from_elsewhere_cannot_steer_the_terminal_nor_overwrite_their_host(home: Path) -> None:
    main, sub = pty.openpty()
    with os.fdopen(sub, "w", encoding="utf-8", newline="") as stream:
        view = LiveView(a_run(home), stream, io.StringIO())
        view.write(b"algo-2 | \x1b[2J10%\r20%\rforged | line\xc2\x9b1A\x00 \xe2\x80\xaeevil\n")
        view.close()
        shown = all_of(main).decode().replace("\r\n", "\n")
    os.close(main)
    assert shown == "algo-2 | 10% 20% forged | line1A evil\n"


def test_what_goes_to_a_pipe_stays_byte_for_byte(home: Path) -> None:
    bytes_out = io.BytesIO()
    data = b"algo-1 | \x1b[31m10%\r\xff\n"
    with io.TextIOWrapper(bytes_out, "utf-8") as stream:
        view = LiveView(a_run(home), stream, io.StringIO())
        view.write(data)
        view.write(b"")
        view.close()
        assert bytes_out.getvalue() == data
        assert view.passed_bytes == len(data)


@pytest.mark.parametrize(("times", "passed"), [(1, 9), (2, 0)])
def test_ctrl_c_waits_for_the_line_that_is_being_written_but_a_second_one_does_not(
    home: Path, times: int, passed: int
) -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0)
            return super().write(data)

    written = Slow()
    with io.TextIOWrapper(written, "utf-8") as stream:
        view = LiveView(a_run(home), stream, io.StringIO())
        with pytest.raises(KeyboardInterrupt):
            view.write(b"one line\n")
        assert (view.passed_bytes, len(written.getvalue())) == (passed, passed)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_when_nobody_reads_on_the_view_goes_silent(home: Path) -> None:
    run = a_run(home)
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        view = LiveView(run, stream, io.StringIO())
        os.close(reading)
        view.write(b"algo-1 | unheard\n" * 10_000)
        assert view.nobody_reads
        view.write(b"")
        view.close()


def test_output_that_is_only_looked_at_has_no_line_of_how_it_stands(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Cloud:
        def logs(self, run: Run, *, follow: bool) -> list[bytes]:
            assert not follow
            return [b"algo-1 | one\n", b"", b"algo-1 | two\n"]

    monkeypatch.setattr(backends, "load", lambda name: Cloud())
    watch.show_output(a_run(home), sys.stdout, to_its_end=False)
    assert capfd.readouterr() == ("algo-1 | one\nalgo-1 | two\n", "")


@pytest.mark.parametrize(("seconds", "shown"), [(0, "00:00"), (42.9, "00:42"), (3599, "59:59"), (3723, "1:02:03")])
def test_the_clock(seconds: float, shown: str) -> None:
    assert watch.clock(seconds) == shown


def ended(home: Path, **values: Any) -> Run:
    facts = {
        "state": RunState.FAILED,
        "reason": "AlgorithmError: no",
        "started_at": ago(minutes=1),
        "ended_at": utc_now(),
    }
    return a_run(home, **{**facts, **values})


def test_a_failure_is_told_as_its_backend_explained_it_with_the_scripts_last_lines(home: Path) -> None:
    run = ended(home)
    folder = Path(run.run_dir)
    (folder / "log.txt").write_text(
        "".join(f"algo-1 | {number}\n" for number in range(2000)) + "algo-1 | \x1b[2Jboom\n"
    )
    (folder / "explained.json").write_text(json.dumps({"what": "out of memory", "hint": "--instance ml.m5.2xlarge"}))
    fault = watch.fault(run)
    assert isinstance(fault, ScriptFailed)
    rows = fault.what.splitlines()
    assert rows[0] == "mlp.py failed: out of memory"
    assert rows[1:] == [f"algo-1 | {number}" for number in range(1991, 2000)] + ["algo-1 | \ufffd[2Jboom"]
    assert fault.hint == "--instance ml.m5.2xlarge"
    assert watch.explanation(run) == {"what": "out of memory", "hint": "--instance ml.m5.2xlarge"}


def test_the_scripts_own_failure_file_goes_before_its_output(home: Path) -> None:
    run = ended(home)
    (Path(run.run_dir) / "log.txt").write_text("algo-1 | something\n")
    failure = Path(run.run_dir) / "root" / "output" / "failure"
    failure.parent.mkdir(parents=True)
    failure.write_text("ValueError: no\n")
    fault = watch.fault(run)
    assert fault is not None
    assert fault.what == "mlp.py failed: AlgorithmError: no\nValueError: no"
    assert fault.hint == "orchestrate logs r-0123456789"


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"what": 3}', '{"kind": "x", "what": null}'])
def test_an_explanation_that_cannot_be_read_is_passed_over(home: Path, text: str) -> None:
    run = ended(home)
    (Path(run.run_dir) / "explained.json").write_text(text)
    fault = watch.fault(run)
    assert fault is not None
    assert fault.what == "mlp.py failed: AlgorithmError: no"


def test_a_job_that_failed_before_its_script_began_was_refused_by_the_cloud(home: Path) -> None:
    assert isinstance(watch.fault(ended(home, started_at=None)), CloudRefused)


def test_a_run_that_was_stopped_or_is_not_over_is_told_so(home: Path) -> None:
    stopped = watch.fault(ended(home, state=RunState.STOPPED, reason="Ctrl-C"))
    assert stopped is not None
    assert stopped.what == "mlp.py stopped: Ctrl-C"
    assert isinstance(watch.fault(a_run(home / "other", id="r-1", run_dir=str(home / "r1"))), OutcomeUnknown)
    assert state.home() == home
