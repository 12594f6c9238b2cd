"""A run on this machine: started, followed, stopped, and never left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.runs import Ledger
from tests.conftest import REPOSITORY, Orchestrate, processes_of, start, wait_until

SLOW_SCRIPT = """
import os, signal, sys, time
from pathlib import Path
checkpoints = Path(os.environ["AIP_CHECKPOINT_DIR"])
def save(*_):
    (checkpoints / "saved").write_text("yes")
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
for step in range(600):
    print(f"[metrics] step={step} loss={1 / (step + 1)}", flush=True)
    time.sleep(0.1)
"""
STUBBORN_SCRIPT = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child])
print("ready", flush=True)
time.sleep(600)
"""


def newest(home: Path) -> dict[str, object]:
    with Ledger.open_to_read(home / "ledger.sqlite") as ledger:
        runs = ledger.newest(1)
        return {"id": runs[0].id, "state": runs[0].state, "reason": runs[0].reason} if runs else {"state": None}


def run_folder(home: Path) -> Path:
    (folder,) = (home / "runs").iterdir()
    return folder


def log_has(home: Path, words: str) -> bool:
    return any(words in path.read_text("utf-8", "replace") for path in home.glob("runs/*/log.txt"))


def supervisor_of(home: Path) -> int:
    """The process that stays with the newest run."""
    with Ledger.open_to_read(home / "ledger.sqlite") as ledger:
        pid = ledger.newest(1)[0].pid
    assert pid is not None
    return pid


def detached(orchestrate: Orchestrate, home: Path) -> None:
    """Start ./train.py on its own, and wait for its first word."""
    orchestrate("submit", "--detach")
    wait_until(lambda: log_has(home, "ready"), what="the script's start")


def test_a_run_has_output_metrics_a_model_a_row_and_a_price(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text(
        "import os, sys\n"
        "print(sys.argv[1:])\n"
        "print('[metrics] epoch=1 val_accuracy=0.5')\n"
        "print('[metrics] epoch=2 val_accuracy=0.75 note=x')\n"
        "open(os.path.join(os.environ['SM_MODEL_DIR'], 'model.bin'), 'wb').write(b'w' * 10)\n"
        "open(os.path.join(os.environ['SM_OUTPUT_DATA_DIR'], 'notes.txt'), 'w').write('n')\n"
    )
    answer = orchestrate("submit", "train.py", "--hp", "lr=1e-5", "--", "--epochs", "3", "-x", "a b", "--", "ü\n")
    assert answer.code == 0, answer.err
    assert "['--lr', '1e-5', '--epochs', '3', '-x', 'a b', '--', 'ü\\n']" in answer.out
    assert "succeeded in" in answer.out
    assert "val_accuracy 0.75" in answer.out
    for machine in ("ml.g4dn.xlarge", "e2-highcpu-4", "a3-highgpu-1g"):
        assert machine in answer.out
    assert "next: orchestrate artifacts r-" in answer.out
    (run,) = orchestrate("list", "--json").json
    assert (run["state"], run["exit_code"], run["actual_usd"], run["estimated_usd"]) == ("succeeded", 0, "0", "0")
    assert run["metrics"] == {"epoch": 2.0, "val_accuracy": 0.75}
    status = orchestrate("status", "--json").json
    assert [event["state"] for event in status["events"]] == ["created", "packaged", "starting", "running", "succeeded"]
    files = {
        file["path"]: file["size_bytes"] for file in orchestrate("artifacts", run["id"][:5], "--json").json["files"]
    }
    assert files == {"model/model.bin": 10, "output/data/notes.txt": 1}
    copied = orchestrate("artifacts", "--to", "out")
    assert copied.code == 0, copied.err
    assert (project / "out/model/model.bin").read_bytes() == b"w" * 10
    assert orchestrate("logs").out.count("[metrics]") == 2


def test_json_keeps_stdout_to_one_document(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text("print('from the script')\n")
    answer = orchestrate("submit", "--json")
    assert answer.json["state"] == "succeeded"
    assert "from the script" in answer.err
    assert {"sagemaker", "vertex"} == {row["cloud"] for row in answer.json["costs"]}
    assert orchestrate("logs", "--json").json["lines"][-1] == "from the script"


@pytest.mark.slow
def test_an_orchestrate_toml_is_trained_as_it_describes(orchestrate: Orchestrate, project: Path) -> None:
    (project / "jobs").mkdir()
    (project / "jobs" / "fit.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.environ['GREETING'], sorted(os.listdir(os.environ['SM_CHANNEL_TRAINING'])))\n"
    )
    (project / "numbers").mkdir()
    (project / "numbers" / "a.csv").write_text("1\n")
    (project / "orchestrate.toml").write_text(
        'script = "jobs/fit.py"\narguments = ["--a"]\nname = "fit-it"\n'
        '[hyperparameters]\nlr = 0.10\n[data]\ntraining = "numbers"\n[environment]\nGREETING = "hi"\n'
    )
    answer = orchestrate("submit")
    assert "['--lr', '0.10', '--a'] hi ['a.csv']" in answer.out, answer.err
    assert orchestrate("submit", "--", "--b").out.count("'--lr', '0.10', '--b'") == 1
    assert [run["name"] for run in orchestrate("list", "--json").json] == ["fit-it", "fit-it"]


def test_a_failing_script_passes_on_its_last_lines_and_code_6(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text("print('begun')\nraise ValueError('no such column: price')\n")
    answer = orchestrate("submit")
    assert answer.code == 6
    assert "error: train.py failed: ValueError: no such column: price" in answer.err
    assert 'train.py", line 2, in <module>' in answer.err
    assert "  try: orchestrate logs r-" in answer.err
    status = orchestrate("status", "--json").json
    assert (status["state"], status["exit_code"], status["reason"]) == (
        "failed",
        1,
        "ValueError: no such column: price",
    )
    assert "no such column" in orchestrate("status").out


@pytest.mark.slow
def test_a_run_in_a_folder_with_an_ugly_name(orchestrate: Orchestrate, project: Path) -> None:
    for name in ('a"=0"', "a'; echo foo", "mañana $(id)", "two\nlines"):
        folder = project / name
        folder.mkdir()
        (folder / "train it.py").write_text("print('it ran')\n")
        answer = orchestrate(
            "submit", "train it.py", cwd=folder, env={"ORCHESTRATE_HOME": str(folder / ".orchestrate")}
        )
        assert "it ran" in answer.out, answer.err


def test_detach_returns_at_once_and_logs_follow_to_the_end(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text(
        "import time\nprint('one', flush=True)\ntime.sleep(2)\nprint('two', flush=True)\n"
    )
    answer = orchestrate("submit", "--detach")
    assert answer.code == 0, answer.err
    assert "goes on by itself" in answer.out
    assert newest(home)["state"] == "running"
    followed = orchestrate("logs", "--follow")
    assert followed.out.endswith("one\ntwo\n")
    assert orchestrate("status", "--json").json["state"] == "succeeded"
    assert wait_until(lambda: not processes_of(home), what="the end of every process")


@pytest.mark.slow
def test_metrics_are_seen_while_it_runs(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text(SLOW_SCRIPT)
    orchestrate("submit", "--detach")
    wait_until(
        lambda: orchestrate("list", "--json").json[0]["metrics"].get("step", 0) >= 3, what="a metric in the ledger"
    )
    assert newest(home)["state"] == "running"
    orchestrate("cancel")


def test_cancel_gives_time_to_save(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text(SLOW_SCRIPT)
    detached(orchestrate, home)
    answer = orchestrate("cancel")
    assert answer.code == 0, answer.err
    assert "stopped: cancelled by orchestrate cancel" in answer.out
    assert (run_folder(home) / "root/checkpoints/saved").read_text() == "yes"
    assert [event["state"] for event in orchestrate("status", "--json").json["events"]][-2:] == ["stopping", "stopped"]
    again = orchestrate("cancel")
    assert again.code == 0
    assert not processes_of(home)


@pytest.mark.slow
def test_cancel_kills_what_will_not_stop_and_all_that_it_started(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text(STUBBORN_SCRIPT)
    detached(orchestrate, home)
    started = time.monotonic()
    assert orchestrate("cancel", "--grace-seconds", "1").code == 0
    assert 1 <= time.monotonic() - started < 20
    wait_until(lambda: not processes_of(home), what="the end of every process")
    assert newest(home)["state"] == "stopped"


def test_the_hard_stop_ends_a_run(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    """A minute is the least that can be asked for, so the request is shortened on its way."""
    (project / "train.py").write_text(SLOW_SCRIPT)
    request = orchestrate("submit", "--max-hours", "0.5", "--dry-run", "--json").json["request"]
    assert request["limits"]["max_seconds"] == 1800
    from orchestrator.backends.process import Child

    request["limits"]["max_seconds"] = 0.5
    request |= {"command": [sys.executable, str(project / "train.py")], "root": str(project)}
    request["environment"]["AIP_CHECKPOINT_DIR"] = str(project)
    outcome = Child(request).watch(lambda _: None, lambda _: None, lambda: None)
    assert outcome.exit_code == 143
    assert outcome.stop is not None
    assert "hard stop" in outcome.stop.reason
    assert (project / "saved").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="affinity and RLIMIT_DATA are Linux's")
def test_an_instance_caps_processors_and_memory_and_says_so(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text(
        "import os\n"
        "print('cpus', len(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])\n"
        "blocks = []\n"
        "for _ in range(60):\n"
        "    blocks.append(bytearray(100 * 2**20))\n"
    )
    answer = orchestrate("submit", "--instance", "ml.t3.medium")
    cpus = min(2, len(os.sched_getaffinity(0)))
    assert f"cpus {cpus} {cpus}" in answer.out
    assert "capped to ml.t3.medium: 2 vCPU, 4 GiB" in answer.err
    assert answer.code == 6
    assert "MemoryError" in answer.err or "out of memory" in answer.err


def test_memory_is_watched_over_all_processes_of_a_run(project: Path) -> None:
    from orchestrator.backends.process import Child

    (project / "train.py").write_text(
        "import os, time\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0:\n"
        "        block = bytearray(b'x') * (64 * 2**20)\n"
        "        time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    limits = {
        "cpus": None,
        "memory_bytes": 150 * 2**20,
        "memory_from": "a small one",
        "max_seconds": None,
        "grace_seconds": 5,
    }
    command = [sys.executable, str(project / "train.py")]
    request = {"command": command, "root": str(project), "environment": {}, "limits": limits}
    outcome = Child(request).watch(lambda _: None, lambda _: None, lambda: None)
    assert outcome.stop is not None
    assert outcome.stop.failed
    assert "out of memory" in outcome.stop.reason
    assert "a small one" in outcome.stop.reason


def test_a_dry_run_writes_nothing_and_two_differ_in_the_run_id_only(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text("print()\n")
    first, second = (orchestrate("submit", "--dry-run", "--json", "--max-hours", "2") for _ in range(2))
    assert first.code == 0, first.err
    assert not home.exists()
    one, other = (json.dumps(answer.json).replace(answer.json["plan"]["run_id"], "r-X") for answer in (first, second))
    assert one == other
    assert first.json["costs"][0]["usd"] is not None
    assert {path.name for path in project.iterdir()} == {"train.py"}


def test_what_a_dry_run_shows_is_what_is_sent(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text("print()\n")
    words = ("submit", "--hp", "lr=0.1", "--env", "A=b", "--max-hours", "1", "--instance", "ml.m5.large")
    shown = orchestrate(*words, "--dry-run", "--json").json
    orchestrate(*words)
    sent = json.loads((run_folder(home) / "request.json").read_text())
    assert json.dumps(sent).replace(sent["run_id"], "X") == json.dumps(shown["request"]).replace(
        shown["plan"]["run_id"], "X"
    )


def test_a_smoke_run_stops_a_typo_before_the_launch(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text("import time\ntime.sleep(0.1)\nprint(undefined_name)\n")
    answer = orchestrate("submit", "--smoke")
    assert answer.code == 6
    assert "the smoke run of train.py failed: NameError" in answer.err
    assert "nothing was launched" in answer.err
    assert orchestrate("list", "--json").json == []
    assert not list(home.glob("smoke-*"))


@pytest.mark.slow
def test_a_smoke_run_uses_the_scripts_own_smoke_arguments(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text(
        '# /// script\n# [tool.orchestrate]\n# smoke = ["--smoke"]\n# ///\nimport sys\n'
        "sys.exit('too quick' if '--smoke' in sys.argv and '--bad' in sys.argv else 0)\n"
    )
    assert orchestrate("submit", "--smoke").code == 0
    assert "too quick" in orchestrate("submit", "--smoke", "--", "--bad").err


def test_a_script_without_smoke_arguments_is_stopped_at_its_first_metric(
    orchestrate: Orchestrate, project: Path
) -> None:
    (project / "train.py").write_text(
        "import os, time\n"
        "print('[metrics] step=0 loss=1', flush=True)\n"
        "if 'smoke-' in os.environ['SM_MODEL_DIR']:\n"
        "    time.sleep(600)\n"
    )
    assert orchestrate("submit", "--smoke", timeout=60).code == 0


@pytest.mark.slow
def test_two_commands_at_once_each_have_their_run(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text("import time\ntime.sleep(0.5)\n")
    commands = [start("submit", cwd=project) for _ in range(4)]
    for command in commands:
        command.communicate(timeout=120)
    assert [command.returncode for command in commands] == [0] * 4
    assert [run["state"] for run in orchestrate("list", "--json").json] == ["succeeded"] * 4
    assert len(list((home / "packages").glob("*.tar.gz"))) == 1, "one content, one archive"


def test_output_that_is_not_text_passes_through_byte_for_byte(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text("import os\nos.write(1, bytes(range(256)) + b'\\n' + b'x' * 300000)\n")
    command = start("submit", cwd=project)
    out, _ = command.communicate(timeout=60)
    assert bytes(range(256)) + b"\n" + b"x" * 300000 in out
    assert (run_folder(home) / "log.txt").read_bytes().endswith(b"x" * 300000)


@pytest.mark.slow
def test_a_run_resumes_from_the_checkpoints_of_another(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "path = Path(os.environ['AIP_CHECKPOINT_DIR'], 'step')\n"
        "step = int(path.read_text()) if path.exists() else 0\n"
        "print('begins at', step)\n"
        "path.write_text(str(step + 5))\n"
    )
    first = orchestrate("submit", "--json").json["id"]
    assert "begins at 5" in orchestrate("submit", "--resume-from", first).out
    assert "begins at 10" in orchestrate("submit", "--resume-from", orchestrate("list", "--json").json[0]["id"]).out
    assert "begins at 5" in orchestrate("submit", "--resume-from", first).out, "the first run's files are its own"
    (project / "none.py").write_text("print()\n")
    none = orchestrate("submit", "none.py", "--json").json["id"]
    refused = orchestrate("submit", "--resume-from", none)
    assert refused.code == 2
    assert "it left no checkpoints" in refused.err
    assert orchestrate("submit", "--resume-from", "r-nothing").code == 3


@pytest.mark.slow
def test_output_that_is_kept_in_the_projects_own_folder_is_no_part_of_the_package(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text("print('it ran')\n")
    for _ in range(2):
        with (project / "train.log").open("ab") as log:
            kept = subprocess.run(
                [sys.executable, "-m", "orchestrator", "submit"],
                cwd=project,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=log,
                stderr=log,
            )
        assert kept.returncode == 0, (project / "train.log").read_text()
    assert (project / "train.log").read_text().count("it ran") == 2
    first, second = (run["package_digest"] for run in orchestrate("list", "--json").json)
    assert first == second


@pytest.mark.slow
def test_another_runs_model_of_the_same_size_is_not_replaced(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text(
        "import os, sys\nopen(os.environ['SM_MODEL_DIR'] + '/m', 'w').write(sys.argv[1])\n"
    )
    runs = [orchestrate("submit", "--json", "--", letter * 10).json["id"] for letter in "ab"]
    assert orchestrate("artifacts", runs[0], "--to", "out").code == 0
    assert orchestrate("artifacts", runs[0], "--to", "out").code == 0, "the same again changes nothing"
    refused = orchestrate("artifacts", runs[1], "--to", "out")
    assert refused.code == 2
    assert "is there already and differs" in refused.err
    assert (project / "out/model/m").read_text() == "a" * 10


def test_a_failed_run_with_json_is_one_document(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text("raise ValueError('no')\n")
    answer = orchestrate("submit", "--json")
    assert answer.code == 6
    assert answer.json["state"] == "failed"
    assert "ValueError: no" in answer.json["error"]


def test_the_state_folder_is_its_owners_alone(orchestrate: Orchestrate, project: Path, home: Path) -> None:
    (project / "train.py").write_text("print()\n")
    orchestrate("submit")
    for folder in (home, home / "runs", home / "packages", run_folder(home)):
        assert folder.stat().st_mode & 0o077 == 0, folder


def test_an_error_behind_the_first_metric_fails_the_smoke_run(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text("print('[metrics] a=1', flush=True)\n1 / 0\n")
    assert "ZeroDivisionError" in orchestrate("submit", "--smoke").err
