"""Paid for once: whatever kills a submit to SageMaker, and whatever its calls meet, there is one job and no run is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slow import matrix
from tests.slow.matrix import STEPS, Matrix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# docs/reliability.md has the figures of 500; every change is held to a part of it that covers each step.
RUNS = int(os.environ.get("ORCHESTRATE_MATRIX_RUNS", "27"))


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Matrix]:
    made = Matrix(tmp_path)
    yield made
    made.close()


def test_every_step_of_a_submit_is_in_the_matrix(whole: Matrix, tmp_path: Path) -> None:
    record = tmp_path / "record"
    for words in (["--detach"], []):
        env = {"ORCHESTRATE_CRASH_RECORD": str(record)}
        (answer,) = whole.forks.run(whole.words(f"record{len(words)}", *words), folder=whole.project, env=env)
        assert answer["code"] == 0, answer
    attached_only = {"log appended", "watch started", "end seen", "receipt printed"}
    assert set(record.read_text().splitlines()) - attached_only == set(STEPS)


def test_killed_anywhere_with_any_fault_a_submit_launches_once(tmp_path: Path) -> None:
    figures = matrix.run(tmp_path, range(1, RUNS + 1))
    assert figures.clean, figures
    assert figures.kills > RUNS / 3
    if len(STEPS) <= RUNS:
        assert figures.steps >= set(STEPS) - {"let go"}


def test_fifty_of_the_same_command_at_once_make_one_job(whole: Matrix) -> None:
    answers = whole.forks.run(*[whole.words("same", "--detach")] * 50, folder=whole.project, timeout=300)
    assert [answer["code"] for answer in answers] == [0] * 50, [a["err"] for a in answers if a["code"]]
    whole.settled()
    assert len(whole.jobs()["same"]) == 1
    assert len(whole.ledger()["same"]) == 1


def test_fifty_different_commands_at_once_make_fifty_jobs(whole: Matrix) -> None:
    commands = [whole.words(f"run{number}", "--detach") for number in range(50)]
    answers = whole.forks.run(*commands, folder=whole.project, timeout=300)
    assert [answer["code"] for answer in answers] == [0] * 50, [a["err"] for a in answers if a["code"]]
    whole.settled()
    jobs, ledger = whole.jobs(), whole.ledger()
    for number in range(50):
        (job,), (run,) = jobs[f"run{number}"], ledger[f"run{number}"]
        assert run.remote_id == job["name"]
        assert job["status"] == "Completed"
