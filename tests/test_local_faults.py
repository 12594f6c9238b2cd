"""What happens to a run when something is killed, locked, full or gone."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import Orchestrate, processes_of, start, wait_until
from tests.test_local import SLOW_SCRIPT, STUBBORN_SCRIPT, detached, log_has, newest, run_folder, supervisor_of

pytestmark = pytest.mark.slow


def test_a_killed_command_leaves_no_orphan_and_the_next_one_tells(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text(SLOW_SCRIPT)
    command = start("submit", cwd=project)
    wait_until(lambda: log_has(home, "ready"), what="the script's start")
    command.kill()
    command.communicate()
    wait_until(lambda: not processes_of(home), what="the end of every process")
    assert (run_folder(home) / "root/checkpoints/saved").exists(), "it had time to save"
    told = orchestrate("list")
    assert "the command that watched it was killed" in told.err
    assert newest(home)["state"] == "stopped"
    assert "was killed" not in orchestrate("list").err, "told once"


def test_a_killed_supervisor_is_noticed(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text(SLOW_SCRIPT)
    detached(orchestrate, home)
    pid = supervisor_of(home)
    psutil.Process(pid).kill()
    wait_until(lambda: not processes_of(home), what="the end of every process")
    wait_until(lambda: orchestrate("status", "--json").json["state"] == "stopped", what="its end in the ledger")
    assert (run_folder(home) / "root/checkpoints/saved").exists()


def test_ctrl_c_stops_the_run_and_says_so(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text(SLOW_SCRIPT)
    command = start("submit", cwd=project)
    wait_until(lambda: log_has(home, "ready"), what="the script's start")
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130, err
    assert b"up to 30 s to save; Ctrl-C again kills it" in err
    assert b"stopped: Ctrl-C" in err
    assert (run_folder(home) / "root/checkpoints/saved").exists()
    assert not processes_of(home)


def test_a_second_ctrl_c_kills(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text(STUBBORN_SCRIPT)
    command = start("submit", cwd=project)
    wait_until(lambda: log_has(home, "ready"), what="the script's start")
    command.send_signal(signal.SIGINT)
    wait_until(lambda: newest(home)["state"] == "stopping", what="the first Ctrl-C")
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130, err
    wait_until(lambda: not processes_of(home), what="the end of every process")


def test_a_disk_that_fills_up_while_training_does_not_lose_the_run(
    small_disk: Path, project: Path, orchestrate: Orchestrate
) -> None:
    home = {"ORCHESTRATE_HOME": str(small_disk / "state")}
    (project / "train.py").write_text(
        "import os, sys\n"
        "fill = os.path.join(os.environ['SM_MODEL_DIR'], *['..'] * 5, 'fill')\n"
        "try:\n"
        "    with open(fill, 'wb', buffering=0) as file:\n"
        "        while True:\n"
        "            file.write(b'x' * 512)\n"
        "except OSError as error:\n"
        "    print('[metrics] step=1 loss=0.5', error.errno, flush=True)\n"
        "print('y' * 300000)\n"
        "sys.exit(3)\n"
    )
    answer = orchestrate("submit", env=home)
    assert answer.code == 6, "the ledger cannot be written, and the command knows how it ended all the same"
    assert (small_disk / "fill").exists(), answer
    (small_disk / "fill").unlink()
    (run,) = orchestrate("list", "--json", env=home).json
    assert (run["state"], run["exit_code"]) == ("failed", 3)
    assert "log.txt is not whole: the disk was full" in run["reason"]
    assert run["metrics"] == {"step": 1.0, "loss": 0.5}, "read again from the log"


@pytest.mark.slow
def test_a_run_that_starts_while_somebody_looks_is_never_given_up(
    orchestrate: Orchestrate, project: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow look at a run (a busy or suspended machine) that was being submitted when it began."""
    from orchestrator import finding
    from orchestrator.backends import local

    (project / "train.py").write_text(SLOW_SCRIPT)

    def slowly(run_dir: Path) -> bool:
        time.sleep(3)
        return False

    monkeypatch.setattr(local, "_alive", slowly)
    command = start("submit", "--detach", cwd=project)
    wait_until(lambda: (home / "ledger.sqlite").exists() and newest(home)["state"], what="the intent")
    finding.reconcile()
    command.communicate(timeout=60)
    assert newest(home)["state"] == "running"
    monkeypatch.undo()
    assert orchestrate("cancel", env={"ORCHESTRATE_HOME": str(home)}).code == 0


def test_a_ledger_that_is_locked_holds_up_neither_the_script_nor_its_stop(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    import sqlite3

    (project / "train.py").write_text(SLOW_SCRIPT.replace("0.1)", "0.01)"))
    orchestrate("submit", "--detach")
    wait_until(lambda: log_has(home, "step=3"), what="the script's start")
    connection = sqlite3.connect(home / "ledger.sqlite", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    before = (run_folder(home) / "log.txt").stat().st_size
    wait_until(lambda: (run_folder(home) / "log.txt").stat().st_size > before + 2000, seconds=10, what="more output")
    (run_folder(home) / "cancel.json").write_text('{"grace_seconds": 5, "reason": "a test"}')
    wait_until(lambda: (run_folder(home) / "root/checkpoints/saved").exists(), seconds=10, what="the stop")
    connection.execute("ROLLBACK")
    connection.close()
    wait_until(lambda: newest(home)["state"] == "stopped", what="its end in the ledger")
    steps = orchestrate("status", "--json").json["metrics"]["step"]
    assert f"step={int(steps)} " in (run_folder(home) / "log.txt").read_text(), "no metric was lost on the way"


def test_a_supervisor_that_is_asked_to_end_lets_the_script_save(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text(SLOW_SCRIPT)
    detached(orchestrate, home)
    pid = supervisor_of(home)
    psutil.Process(pid).terminate()
    wait_until(lambda: newest(home)["state"] == "stopped", what="its end")
    assert (run_folder(home) / "root/checkpoints/saved").exists()
    assert newest(home)["reason"] == "its supervisor got SIGTERM"


def test_a_run_without_its_supervisor_can_be_cancelled(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text(STUBBORN_SCRIPT)
    detached(orchestrate, home)
    pid = supervisor_of(home)
    psutil.Process(pid).kill()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", what="its end")
    for _ in range(3):
        orchestrate("status")
    events = [event["state"] for event in orchestrate("status", "--json").json["events"]]
    assert events.count("stopping") == 1, "told once, however often it is looked at"
    answer = orchestrate("cancel", "--grace-seconds", "1")
    assert answer.code == 0, answer.err
    wait_until(lambda: not processes_of(home), what="the end of every process")


def test_when_nobody_reads_on_the_run_goes_on(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text(
        "import os, time\nfor step in range(20):\n    print('line', step, flush=True)\n    time.sleep(0.05)\n"
    )
    command = start("submit", cwd=project)
    assert command.stdout is not None
    command.stdout.readline()
    command.stdout.close()
    command.stdout = None
    command.communicate(timeout=60)
    assert newest(home)["state"] == "succeeded"


def test_a_smoke_run_that_was_killed_is_swept_away(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text("print()\n")
    home.mkdir(mode=0o700)
    for name, age in (("smoke-old", 1000), ("smoke-new", 0)):
        (home / name).mkdir()
        os.utime(home / name, (time.time() - age, time.time() - age))
    assert orchestrate("submit", "--smoke").code == 0
    assert not (home / "smoke-old").exists()
    assert (home / "smoke-new").exists(), "another command may just be making it"


def test_a_script_that_saves_aloud_survives_the_death_of_its_supervisor(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text(
        SLOW_SCRIPT.replace(
            "    (checkpoints /", "    print('saving', flush=True)\n    time.sleep(1)\n    (checkpoints /"
        )
    )
    detached(orchestrate, home)
    pid = supervisor_of(home)
    psutil.Process(pid).kill()
    wait_until(lambda: not processes_of(home), what="the end of every process")
    assert (run_folder(home) / "root/checkpoints/saved").exists()


def test_a_script_stopped_from_outside_is_stopped_also_if_it_ends_well(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text(SLOW_SCRIPT.replace("sys.exit(143)", "sys.exit(0)"))
    detached(orchestrate, home)
    psutil.Process(json.loads((run_folder(home) / "child.json").read_text())["pid"]).terminate()
    wait_until(lambda: newest(home)["state"] not in ("running", "starting"), what="its end")
    assert newest(home)["state"] == "stopped"
    assert newest(home)["reason"] == "stopped by SIGTERM from outside"


def test_logs_leave_when_nobody_reads_on_and_the_run_goes_on(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text(SLOW_SCRIPT)
    detached(orchestrate, home)
    reader = start("logs", "--follow", cwd=project)
    assert reader.stdout is not None
    reader.stdout.readline()
    reader.stdout.close()
    reader.stdout = None
    _, err = reader.communicate(timeout=20)
    assert b"Traceback" not in err
    assert newest(home)["state"] == "running"
    orchestrate("cancel")
