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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimates import catalog, cost
from orchestrator import backends, comparison, render, watch
from orchestrator.backends import Artifact
from orchestrator.runs import Event, Run
from orchestrator.watch import Printer
from tests.conftest import REPOSITORY, Orchestrate, all_of

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


@pytest.mark.slow
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


@pytest.mark.slow
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
    comparison.show_costs(CostsOnly(), 7200.0, "as long as it took here")  # type: ignore[arg-type]
    lines = screen.text.splitlines()
    assert max(map(len, lines)) <= columns
    (head,) = (number for number, line in enumerate(lines) if line.startswith(("cloud  ", "machine  ")))
    rows = comparison.cheapest_of_each_kind(cost.rows(7200.0))
    for row, line in zip([CostsOnly().machine_row(7200.0), *rows], lines[head + 1 :], strict=False):
        assert row.machine.name in line.split()
        assert ("" if row.price and row.price.published else "~") + cost.format_usd(row.usd) in line.split()
    shown = " ".join(screen.text.split())
    for name, least_columns in (("what", 100), ("region", 100), ("price of", 130)):
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


CLOUD: dict[str, Any] = {
    "backend": "sagemaker",
    "remote_id": "orc-train-0123456789",
    "remote_status": "Completed",
    "region": "eu-west-1",
    "billable_seconds": 31,
    "actual_usd": "0.032938",
    "estimated_usd": "0.0367",
    "plan": {
        "machine": {"name": "ml.p3.2xlarge"},
        "source_dir": "/p",
        "count": 1,
        "price": {"usd_per_hour": "3.825", "as_of": "2026-11-01", "source": "x", "region": "eu-west-1"},
    },
}
UNPRICED = {**CLOUD["plan"], "price": None}
RUNNING = {
    "state": "running",
    "ended_at": None,
    "billable_seconds": None,
    "actual_usd": None,
    "remote_status": "Training",
}
REHEARSED = {"rehearsed": True, "actual_usd": "0", "endpoint": "http://127.0.0.1:4711"}


def status_of(monkeypatch: pytest.MonkeyPatch, **values: Any) -> dict[str, str]:
    """What `status` says of such a run, by name."""
    screen = a_screen(monkeypatch, 200)
    run = a_run(**{**CLOUD, **values})
    render.show_status(run, [], {}, None, "orchestrate login" if run.state == "failed" else None)
    rows = (re.split(r"  +", line.rstrip(), maxsplit=1) for line in screen.text.splitlines())
    return {row[0]: row[1] if len(row) > 1 else "" for row in rows}


def test_the_status_of_a_cloud_run_has_the_clouds_own_word_its_place_and_its_bill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = status_of(monkeypatch)
    assert shown["in the cloud"] == "Completed"
    assert shown["training job"] == "orc-train-0123456789"
    assert shown["machine"] == "ml.p3.2xlarge"
    assert shown["region"] == "eu-west-1"
    assert shown["elapsed"] == "5 min 01 s since it was asked for"
    assert shown["took"] == "5 min 00 s"
    assert shown["cost"] == "$0.0330 (31 billable s × 1 × $3.825/h; estimated $0.0367)"
    assert "rehearsed" not in shown


def test_two_machines_cost_twice_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = status_of(monkeypatch, plan={**CLOUD["plan"], "count": 2}, actual_usd=None)
    assert shown["machine"] == "2 × ml.p3.2xlarge"
    assert shown["cost"] == "$0.0659 (31 billable s × 2 × $3.825/h; estimated $0.0367)"


@pytest.mark.parametrize(
    ("values", "cost_words"),
    [
        (REHEARSED, "$0 (rehearsed: 31 billable s × 1 × $3.825/h would have been $0.0330)"),
        ({**REHEARSED, "plan": UNPRICED}, "$0 (rehearsed)"),
        ({"plan": UNPRICED, "actual_usd": None}, "unknown (no price of this machine is known; estimated $0.0367)"),
        ({"plan": UNPRICED, **RUNNING}, "unknown (no price of this machine is known; estimated $0.0367)"),
        ({"billable_seconds": None, "actual_usd": None}, "~$0.3188 (300 s × 1 × $3.825/h; estimated $0.0367)"),
        (
            {
                "state": "failed",
                "billable_seconds": None,
                "actual_usd": None,
                "started_at": None,
                "estimated_usd": None,
            },
            "- (estimated -)",
        ),
        ({**RUNNING, "started_at": None}, "- (estimated $0.0367)"),
        (
            {**RUNNING, "started_at": "2999-01-01T00:00:00+00:00"},
            "~$0.00 so far (0 s × 1 × $3.825/h; estimated $0.0367)",
        ),
        ({"backend": "local", "actual_usd": "0", "estimated_usd": "0"}, "$0.00 (estimated $0.00)"),
    ],
)
def test_a_cost_says_what_it_is_made_of_and_what_is_unknown_is_never_nothing(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], cost_words: str
) -> None:
    assert status_of(monkeypatch, **values)["cost"] == cost_words


def test_a_failure_whose_remedy_is_known_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "try: orchestrate login" in status_of(monkeypatch, state="failed", reason="ExpiredToken")


def test_a_rehearsal_is_marked_wherever_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_of(monkeypatch, **REHEARSED)["rehearsed"] == "on this machine, at http://127.0.0.1:4711"
    screen = a_screen(monkeypatch, 200)
    render.show_runs([a_run(**{**CLOUD, **REHEARSED})], {})
    assert "  sagemaker, rehearsed  " in screen.text
    assert "  $0 (rehearsed)" in screen.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "$0.0330"),
        ({"plan": UNPRICED, "actual_usd": None}, "unknown"),
        ({"plan": UNPRICED, **RUNNING}, "unknown"),
        ({**RUNNING, "started_at": None}, "-"),
    ],
)
def test_the_list_has_what_a_cloud_run_cost(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], words: str
) -> None:
    screen = a_screen(monkeypatch, 200)
    render.show_runs([a_run(**{**CLOUD, **values})], {})
    assert screen.text.splitlines()[1].split("  ")[-1].strip() == words or f"  {words}  " in screen.text


def test_the_list_has_what_a_running_cloud_run_has_cost_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    began = datetime.now(UTC) - timedelta(hours=2, seconds=30)
    screen = a_screen(monkeypatch, 200)
    render.show_runs([a_run(**{**CLOUD, **RUNNING, "started_at": began.isoformat()})], {})
    assert re.search(r"  ~\$7\.\d\d so far", screen.text)


def test_one_run_as_data_has_what_a_cloud_told_of_it() -> None:
    data = json.loads(json.dumps(render.run_json(a_run(**{**CLOUD, **REHEARSED, "launch_key": "k"}), {})))
    assert (data["remote_id"], data["remote_status"], data["region"]) == (
        "orc-train-0123456789",
        "Completed",
        "eu-west-1",
    )
    assert (data["billable_seconds"], data["actual_usd"], data["estimated_usd"]) == (31, "0", "0.0367")
    assert (data["rehearsed"], data["endpoint"], data["launch_key"]) == (True, "http://127.0.0.1:4711", "k")


def test_the_receipt_of_a_cloud_run_has_its_bill_and_where_its_files_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cloud:
        def artifacts(self, run: Run) -> list[Artifact]:
            root = "s3://bucket/orchestrate/runs/job/"
            return [
                Artifact(path, 1000, root + path) for path in ("output/model.tar.gz", "output/output.tar.gz", "top")
            ]

    monkeypatch.setattr(backends, "load", lambda name: Cloud())
    screen = a_screen(monkeypatch, 250)
    render.show_receipt(CostsOnly(), a_run(**CLOUD), {})  # type: ignore[arg-type]
    assert "succeeded in 5 min 00 s, cost $0.0330 (31 billable s × 1 × $3.825/h; estimated $0.0367)\n" in screen.text
    assert "  output: 2 files, 2.0 kB  s3://bucket/orchestrate/runs/job/output\n" in screen.text
    assert "  top: 1 file, 1.0 kB  s3://bucket/orchestrate/runs/job/top\n" in screen.text
    assert "for 31.0 s (as long as it took in the cloud)" in screen.text
    screen.truncate(0)
    render.show_receipt(None, a_run(**CLOUD), {})
    assert "The same run in the cloud" not in screen.text
    assert "orchestrate status r-0123456789" in screen.text


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
    drawn = all_of(main).decode().split("\r")[1:]
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
