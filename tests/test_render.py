"""What people and pipes are shown: nothing broken, nothing taken for markup, JSON that any reader takes."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimates import catalog, cost
from orchestrator import render, watch
from orchestrator.backends import Artifact
from orchestrator.runs import Event, Run
from orchestrator.watch import Printer
from tests.conftest import REPOSITORY, Orchestrate

STRANGE = [
    "a[/b].py",
    "[red]x[bold].py",
    "weights[best].pt",
    ":smile:.py",
    "[link=file:///]l.py",
    "ends with \\",
    "ä[0].py",
]
METRICS = {"val_accuracy": 0.98123, "val_loss": 0.0631, "train_loss": 0.0412}


class Screen(io.StringIO):
    """A terminal's text, without the terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """What was written, without rich's own colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue())


class CostsOnly:
    """As much of a plan as its costs need."""

    def cost_rows(self, seconds: float | None = None) -> tuple[cost.CostRow, ...]:
        return cost.rows(seconds)

    def machine_row(self, seconds: float | None = None) -> cost.CostRow:
        (machine,) = (found for found in catalog.machines("sagemaker") if found.name == "ml.g4dn.12xlarge")
        return cost.row_for(machine, seconds)


def a_screen(monkeypatch: pytest.MonkeyPatch, columns: int) -> Screen:
    """What stands for stdout from here on: a terminal of so many columns."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    return screen


def a_run(**values: Any) -> Run:
    facts = {
        "id": "r-0123456789",
        "name": "train",
        "backend": "local",
        "state": "succeeded",
        "script": "train.py",
        "script_key": "/p/train.py",
        "created_at": "2026-01-01T00:00:00+00:00",
        "started_at": "2026-01-01T00:00:01+00:00",
        "ended_at": "2026-01-01T00:05:01+00:00",
        "actual_usd": "0",
        "spec": {},
        "plan": {"machine": {"name": "ml.g4dn.xlarge"}, "source_dir": "/p"},
        "run_dir": "/state/runs/r-0123456789",
    }
    return Run(**{**facts, **values})


def test_numbers_that_json_does_not_have_become_words_at_any_depth(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(word: str) -> None:
        pytest.fail(f"{word} is not JSON")

    nan, inf = float("nan"), float("inf")
    render.print_json({"metrics": {"a": nan, "b": [inf, (-inf, 1.5)]}, "c": nan, "d": None, "e": True})
    shown = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert shown == {"metrics": {"a": "nan", "b": ["inf", ["-inf", 1.5]]}, "c": "nan", "d": None, "e": True}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_stays_json_where_stdout_knows_fewer_letters(encoding: str) -> None:
    code = (
        "import sys; from orchestrator import faults, render; faults.ready_streams(); render.print_json(sys.argv[1:])"
    )
    words = ["é", "日本", os.fsdecode(b"\xff.py")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, check=True)
    assert json.loads(done.stdout.decode(encoding)) == words


def test_a_metric_that_is_not_finite_is_listed_and_is_json(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text("print('[metrics] val_loss=nan best=-inf')\n")
    assert orchestrate("submit", "--json").code == 0
    for words in (("list",), ("status",)):
        answer = orchestrate(*words, "--json")
        assert "NaN" not in answer.out
        run = answer.json[0] if words == ("list",) else answer.json
        assert run["metrics"] == {"val_loss": "nan", "best": "-inf"}
        assert "val_loss nan" in orchestrate(*words).out


@settings(deadline=None)
@given(st.text())
def test_a_cell_shows_the_text_that_it_was_given(text: str) -> None:
    assert render.cell(text).plain == render.clean(text)


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_looks_like_markup_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    screen = a_screen(monkeypatch, 250)
    run = a_run(script=name, name=name, run_dir=f"/state/{name}", reason=name, plan={"source_dir": f"/p/{name}"})
    render.show_runs([run], {run.id: METRICS})
    assert f"  {name}  " in screen.text
    screen.truncate(0)
    render.show_artifacts(run, [Artifact(f"model/{name}", 1, f"/state/model/{name}")])
    assert f"  model/{name}  " in screen.text
    assert f"  /state/model/{name}" in screen.text
    screen.truncate(0)
    render.show_status(run, [Event("2026-01-01T00:00:00+00:00", "failed", name)], {f"m{name}": 0.5}, f"last {name}")
    for words in (f"({name})", f": {name}", f"{name} from /p/{name}", f"m{name} 0.5", f"/state/{name}", f"last {name}"):
        assert words in screen.text
    assert f"failed  {name}" in screen.text


def test_scripts_and_files_whose_names_look_like_markup_run_and_are_listed(
    orchestrate: Orchestrate, project: Path
) -> None:
    script = project / "a[" / "b].py"
    script.parent.mkdir()
    script.write_text("import os\nopen(os.environ['SM_MODEL_DIR'] + '/weights[best].pt', 'w').close()\n")
    for name in ("[red]x[bold].py", ":smile:.py"):
        (project / name).write_text(script.read_text())
        assert orchestrate("submit", name, "--source-dir", ".").code == 0
        assert f"  {name}  " in orchestrate("list").out
        assert f"{name} from " in orchestrate("status").out
        assert "model/weights[best].pt" in orchestrate("artifacts").out
        assert f"  {name}  " in orchestrate("package", name).out
    answer = orchestrate("submit", "a[/b].py", "--source-dir", ".")
    assert answer.code == 0, answer.err
    assert "  a[/b].py  " in orchestrate("list").out


def test_control_codes_in_names_reach_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = a_screen(monkeypatch, 80)
    evil = "a\x1b[2Jb\x9b1Ac\u202e\nd"
    run = a_run(script=evil, name=evil, reason=evil, run_dir=evil, plan={"source_dir": evil})
    render.show_runs([run], {})
    render.show_artifacts(run, [Artifact(evil, 1, evil)])
    render.show_status(run, [Event("2026-01-01T00:00:00", evil, evil)], {evil: 1}, evil)
    assert not {"\x1b", "\x9b", "\u202e"} & set(screen.text)
    assert render.shown_name(evil) == repr(evil)
    assert render.shown_name(Path("/a b/ä.py")) == "/a b/ä.py"
    assert "\x1b" not in render.shown_path(Path.home() / evil)


@pytest.mark.parametrize("columns", [36, 40, 50, 60, 70, 80, 100, 130, 200])
def test_the_costs_break_no_name_and_no_price_on_any_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = a_screen(monkeypatch, columns)
    render.show_costs(CostsOnly(), 7200.0, "as long as it took here")  # type: ignore[arg-type]
    lines = screen.text.splitlines()
    assert max(map(len, lines)) <= columns
    (head,) = (number for number, line in enumerate(lines) if line.startswith(("cloud  ", "machine  ")))
    rows = render.cheapest_of_each_kind(cost.rows(7200.0))
    for row, line in zip([CostsOnly().machine_row(7200.0), *rows], lines[head + 1 :], strict=False):
        assert row.machine.name in line.split()
        assert cost.format_usd(row.usd) in line.split()
    shown = " ".join(screen.text.split())
    for name, least_columns in (("what", 80), ("region", 100), ("price of", 130)):
        assert (name in lines[head]) == (columns >= least_columns)
    assert ("Too narrow here to show: price of" in shown) == (columns < 130)


@pytest.mark.parametrize("columns", [40, 60, 80, 130])
def test_the_list_breaks_no_id_no_date_and_no_number(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = a_screen(monkeypatch, columns)
    run = a_run(script="a_script_with_a_very_long_name_indeed.py", actual_usd="12.345")
    render.show_runs([run], {run.id: METRICS})
    shown = screen.text
    assert max(map(len, shown.splitlines())) <= columns
    assert "r-0123456789  succeeded  " in shown
    assert ("5 min 00 s" in shown) == ("took" in shown) == (columns >= 80)
    assert ("$12.35" in shown) == ("cost" in shown)
    assert ("2026-01-01 00:00:00" in shown) == ("created (UTC)" in shown)
    assert ("val_accuracy 0.9812" in shown) == ("metrics" in shown) == (columns >= 60)
    assert len(shown.splitlines()) == 2


@pytest.mark.parametrize("columns", [40, 60, 80, 130])
def test_listed_files_keep_every_letter_of_their_paths(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = a_screen(monkeypatch, columns)
    path, place = "model/" + "q" * 60 + ".pt", "/state/" + "y" * 90 + ".pt"
    render.show_artifacts(a_run(), [Artifact(path, 123_456_789, place)])
    shown = screen.text
    assert max(map(len, shown.splitlines())) <= columns
    assert "123.5 MB  " in shown
    assert shown.count("q") == 60
    assert shown.count("y") == (90 if columns >= 60 else 0)


def test_a_pipe_gets_every_column_in_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    place = "/state/" + "y" * 300
    render.show_artifacts(a_run(), [Artifact("model/m", 1, place)])
    assert f"1 bytes  model/m  {place}\n" in pipe.getvalue()


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """The reading end of a terminal of 30 columns, and its writing end as a stream."""
    main, sub = pty.openpty()
    fcntl.ioctl(sub, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    with os.fdopen(sub, "w", encoding="utf-8", newline="") as stream:
        yield main, stream
    os.close(main)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that watch sees: the last number."""
    now = [1000.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[-1])
    return now


def test_the_status_line_fits_its_terminal_and_is_redrawn_twice_a_second(
    terminal: tuple[int, TextIO], clock: list[float]
) -> None:
    main, stream = terminal
    printer = Printer(stream, label="r-0123456789 running")
    printer.write(b"[metrics] val_accuracy=0.98123 val_loss=0.0631\n")
    for hundredths in range(0, 500, 5):
        clock.append(1000 + hundredths / 100)
        printer.write(b"")
    printer.close()
    drawn = os.read(main, 65536).decode().split("\r")[1:]
    lines = [line.removesuffix("\x1b[K") for line in drawn if "running" in line]
    assert 4 <= len(lines) <= 6  # in three seconds
    assert {len(line) for line in lines} == {29}


def test_when_nobody_reads_a_pipe_the_printer_goes_silent() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        printer = Printer(stream, label="r-0123456789 running")
        printer.write(b"heard\n")
        assert not printer.nobody_reads
        os.close(reading)
        for _ in range(3):
            printer.write(b"unheard\n" * 10_000)
        assert printer.nobody_reads
        printer.write(b"")
        printer.close()
        stream.write("nor does what comes later fail\n")


def test_when_a_terminal_is_closed_the_printer_goes_silent(clock: list[float]) -> None:
    main, sub = pty.openpty()
    with os.fdopen(sub, "w", encoding="utf-8", newline="") as stream:
        printer = Printer(stream, label="r-0123456789 running")
        printer.write(b"heard\n")
        os.close(main)
        printer.write(b"unheard\n")
        assert printer.nobody_reads
        clock.append(2000.0)
        printer.write(b"")
        printer.close()


def test_only_a_reader_that_is_gone_is_passed_over() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        printer = Printer(stream)
        with pytest.raises(OSError, match="No space left"):
            printer.write(b"x" * 100_000)
        assert not printer.nobody_reads
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
