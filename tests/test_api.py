"""The commands as functions."""

from __future__ import annotations

from pathlib import Path

import pytest

import orchestrator
from orchestrator.errors import BadInput, Problems
from tests.conftest import REPOSITORY, processes_of, wait_until


@pytest.fixture(autouse=True)
def _importable_in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def test_a_program_submits_waits_and_reads_the_metrics(home: Path, project: Path) -> None:
    (project / "train.py").write_text("import sys\nprint('[metrics] loss=0.5')\nprint(sys.argv[1:])\n")
    run = orchestrator.submit("train.py", arguments=["--a", 1], hyperparameters={"lr": 0.1}, max_hours=1)
    assert run.state == "succeeded"
    assert orchestrator.last_metrics(run.id) == {"loss": 0.5}
    assert b"['--lr', '0.1', '--a', '1']" in b"".join(orchestrator.logs(run.id))
    assert [known.id for known in orchestrator.list_runs()] == [run.id]


def test_a_failing_script_is_a_run_and_bad_input_an_exception(home: Path, project: Path) -> None:
    (project / "train.py").write_text("raise SystemExit(4)\n")
    run = orchestrator.submit("train.py")
    assert (run.state, run.exit_code) == ("failed", 4)
    with pytest.raises(Problems) as caught:
        orchestrator.submit("nowhere.py", instance="ml.bogus")
    assert len(caught.value.errors) == 2
    with pytest.raises(BadInput, match="no option 'epochs'"):
        orchestrator.submit("train.py", epochs=3)


def test_a_detached_run_is_cancelled_by_its_id(home: Path, project: Path, tmp_path: Path) -> None:
    (project / "train.py").write_text("import time\ntime.sleep(100)\n")
    run = orchestrator.submit("train.py", detach=True)
    assert orchestrator.status(run.id).state == "running"
    orchestrator.cancel(run.id)
    wait_until(lambda: orchestrator.status(run.id).ended, what="its end")
    assert orchestrator.status(run.id).state == "stopped"
    wait_until(lambda: not processes_of(home), what="the end of every process")
    assert orchestrator.artifacts(run.id, tmp_path / "out") == []


def test_a_dry_run_gives_the_request(home: Path, project: Path) -> None:
    (project / "train.py").write_text("print()\n")
    assert orchestrator.dry_run("train.py")["request"]["files"]["input/data/job/job.json"]["script"] == "train.py"
    assert not home.exists()
