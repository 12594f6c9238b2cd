"""The command line's own manners: whole outputs, pipes, colours, completion, terminals."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.metrics import MetricReader, parse_line
from orchestrator.watch import Printer
from tests.conftest import REPOSITORY, Orchestrate

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, text: str) -> None:
    """Compare with the file of this name; ORCHESTRATE_WRITE_GOLDEN=1 writes it anew, to be read before it is committed."""
    path = GOLDEN / name
    if os.environ.get("ORCHESTRATE_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def without_accidents(text: str, *folders: Path) -> str:
    """*text* without what differs from run to run: ids, times, folders, this machine's interpreter."""
    for number, folder in enumerate(folders):
        text = text.replace(str(folder), f"FOLDER{number}")
    text = text.replace(sys.executable, "PYTHON")
    text = re.sub(r"r-[0-9a-f]{10}", "r-0123456789", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-01-01 00:00:00", text)
    text = re.sub(r"\b\d+\.\d s\b", "0.0 s", text)
    text = re.sub(r"\$0\.\d{4}(?= +20)", "$0.0000", text)
    text = re.sub(r"\(\d+ CPUs, \d+ GPUs\)", "(2 CPUs, 0 GPUs)", text)
    return re.sub(r"[ ]+$", "", text, flags=re.MULTILINE)


@pytest.fixture
def a_project(project: Path) -> Path:
    (project / "train.py").write_text(
        "import os\nprint('[metrics] epoch=1 val_accuracy=0.5')\nopen(os.environ['SM_MODEL_DIR'] + '/m', 'w').write('x')\n"
    )
    (project / ".gitignore").write_text("*.log\n/runs/\n")
    (project / "old.log").write_text("x\n")
    (project / ".venv").mkdir()
    (project / ".venv" / "pyvenv.cfg").write_text("home = /usr\n")
    return project


def test_a_whole_dry_run_as_people_see_it(orchestrate: Orchestrate, a_project: Path, home: Path) -> None:
    words = ("--hp", "lr=0.1", "--max-hours", "2", "--instance", "ml.t3.medium", "--", "--epochs", "3")
    answer = orchestrate("submit", "train.py", "--dry-run", *words)
    assert answer.code == 0, answer.err
    golden("dry_run.txt", without_accidents(re.sub(r'"cpus": \d+', '"cpus": 2', answer.out), a_project, home))


def test_a_whole_run_its_status_and_the_list_as_people_see_them(
    orchestrate: Orchestrate, a_project: Path, home: Path
) -> None:
    answer = orchestrate("submit")
    assert answer.code == 0, answer.err
    parts = [answer.out, orchestrate("status").out, orchestrate("list").out, orchestrate("artifacts").out]
    golden("run.txt", without_accidents("\n----\n".join(parts), a_project, home))


def test_a_package_as_people_see_it(orchestrate: Orchestrate, a_project: Path, home: Path) -> None:
    first = orchestrate("package")
    assert first.code == 0, first.err
    why = [orchestrate("package", "--why", path).out for path in ("train.py", "old.log", ".venv", ".venv/pyvenv.cfg")]
    again = orchestrate("package").out.splitlines()[-2]
    text = "\n".join([first.out, *why, again])
    golden("package.txt", without_accidents(re.sub(r"[\d,]+ bytes, ", "N bytes, ", text), a_project, home))


def test_a_pipe_gets_no_colours_and_a_closed_one_no_traceback(orchestrate: Orchestrate, a_project: Path) -> None:
    assert "\x1b" not in orchestrate("submit", env={"NO_COLOR": ""}).out
    command = [sys.executable, "-m", "orchestrator", "submit", "--dry-run", "--json"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=a_project, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(30) in (0, 1)


def typed_at_a_terminal(
    words: list[str], cwd: Path, answer: bytes = b"", env: dict[str, str] | None = None
) -> tuple[int, str]:
    """What a command shows on a terminal of its own, after *answer* was typed there."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ.update({"PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "200", **(env or {})})
        os.execv(sys.executable, [sys.executable, "-m", "orchestrator", *words])
    if answer:
        time.sleep(0.2)
        os.write(descriptor, answer)
    shown = bytearray()
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown.decode("utf-8", "replace")


@pytest.mark.slow
def test_a_terminal_gets_colours_unless_no_color_is_set(
    home: Path, a_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR")
    code, shown = typed_at_a_terminal(["submit"], a_project)
    assert code == 0
    assert "\x1b[1;32m" in shown
    code, shown = typed_at_a_terminal(["submit"], a_project, env={"NO_COLOR": "1"})
    assert code == 0
    assert "\x1b[1;32m" not in shown


@pytest.mark.slow
def test_over_100_mb_asks_naming_the_five_largest(home: Path, a_project: Path) -> None:
    for number in range(1, 7):
        with (a_project / f"big{number}.bin").open("wb") as file:
            file.truncate(number * 10_000_000)
    code, shown = typed_at_a_terminal(["package"], a_project, answer=b"n\n")
    assert code == 2, shown
    assert "the package has 210.0 MB, the largest: big6.bin (60.0 MB), big5.bin (50.0 MB)" in shown
    assert "big2.bin" in shown
    assert "big1.bin" not in shown
    assert ".orchestrateignore" in shown
    code, shown = typed_at_a_terminal(["package"], a_project, answer=b"y\n")
    assert code == 0, shown


@pytest.mark.slow
def test_over_100_mb_without_a_terminal_is_refused_unless_yes(orchestrate: Orchestrate, a_project: Path) -> None:
    with (a_project / "big.bin").open("wb") as file:
        file.truncate(3_000_000_000)
    answer = orchestrate("submit", "--dry-run")
    assert answer.code == 2
    assert "the package has 3,000.0 MB" in answer.err
    with (a_project / "big.bin").open("wb") as file:
        file.truncate(101_000_000)
    assert orchestrate("package").code == 2
    assert orchestrate("package", "--yes").code == 0


def test_copy_gives_a_script_to_edit_that_runs(orchestrate: Orchestrate, project: Path) -> None:
    answer = orchestrate("copy", "mlp", "mine", "--json")
    assert answer.code == 0, answer.err
    names = {Path(path).name for path in answer.json["files"]}
    assert {"mlp.py", "samples.py"} <= names
    assert orchestrate("submit", "mine/mlp.py", "--dry-run", "--json").json["plan"]["script"] == "mlp.py"


def test_submit_alone_takes_the_shipped_mlp_and_says_so(orchestrate: Orchestrate) -> None:
    plan = orchestrate("submit", "--dry-run", "--json").json["plan"]
    assert plan["script"] == "mlp.py"
    assert plan["chosen"] == "no orchestrate.toml and no ./train.py here: the shipped 'mlp'"


def test_shell_completion_knows_commands_entrypoints_and_runs(orchestrate: Orchestrate, a_project: Path) -> None:
    run = orchestrate("submit", "--json").json["id"]
    for words, expected in ((["sub"], "submit"), (["copy", "m"], "mlp"), (["status", "r-"], run)):
        line = "orchestrate " + " ".join(words)
        env = {
            "_ORCHESTRATE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words)),
            "_TYPER_COMPLETE_ARGS": line,
        }
        assert expected in orchestrate(env=env).out.split()


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (
            "[metrics] epoch=3 train_loss=0.0713 val_accuracy=0.9781",
            {"epoch": 3, "train_loss": 0.0713, "val_accuracy": 0.9781},
        ),
        ("[metrics] loss=1e-05 lr=-2.5E+3 x=.5 y=5.", {"loss": 1e-05, "lr": -2500.0, "x": 0.5, "y": 5.0}),
        ("[metrics] a=1 note=hello b=2\r\n", {"a": 1, "b": 2}),
        ("[metrics] a=1x b=2", {"b": 2}),
        ("[metrics] a.b=1 9c=2", {"a.b": 1}),
        (" [metrics] a=1", {}),
        ("metrics a=1", {}),
        ("[metrics]", {}),
    ],
)
def test_a_metric_line_is_read_as_documented(line: str, values: dict[str, float]) -> None:
    assert parse_line(line) == values


def test_metric_lines_are_found_in_output_that_comes_in_any_pieces() -> None:
    data = (
        b"x" * 200_000
        + b"\n[metrics] a=1\nnoise\n[metrics] a=2\n"
        + b"y" * 100_000
        + b"[metrics] a=9\n[metrics] a=3\n[metrics] a=4"
    )
    for size in (1, 7, 1000, len(data)):
        reader = MetricReader()
        found = [values for start in range(0, len(data), size) for values in reader.feed(data[start : start + size])]
        assert found == [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}], f"in pieces of {size}"


def test_what_a_script_prints_cannot_steer_the_terminal(tmp_path: Path) -> None:
    main, sub = pty.openpty()
    with os.fdopen(sub, "w", encoding="utf-8", newline="") as terminal:
        printer = Printer(terminal)
        evil = b"\x1b[2J\x1b]52;c;ZXZpbA==\x07red \x1b[31mtext\x9b1A\x00\x08 \xe2\x80\xaeevil\n\tprogress 1%\r100%\n"
        printer.write(evil)
        printer.write(bytes(range(256)) + b"\n")
        printer.close()
        shown = os.read(main, 65536)
    os.close(main)
    assert b"\x1b" not in shown
    assert b"\x07" not in shown
    assert b"\x08" not in shown
    assert "\u202e".encode() not in shown
    assert b"red text" in shown
    assert b"progress 1%\r100%" in shown
