"""Paid for once: a command that was killed, an answer that was lost, the same words typed twice."""

from __future__ import annotations

import pytest

from tests.conftest import wait_until
from tests.sagemaker.conftest import NAMED, REHEARSED, Cloud, Shell, faulty, training

pytestmark = pytest.mark.slow
KILLED = -9


@pytest.mark.parametrize("step", ["intent written", "package uploaded", "create answered"])
def test_a_submit_that_was_killed_is_finished_by_resume(shell: Shell, cloud: Cloud, step: str) -> None:
    assert shell(*REHEARSED, crash_at=step).code == KILLED
    answer = shell("resume")
    assert answer.code == 0, answer.err
    assert "hello" in answer.out
    assert shell.run().state == "succeeded"
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]


@pytest.mark.parametrize("step", ["starting written"])
def test_a_submit_that_was_killed_is_finished_by_the_same_command(shell: Shell, cloud: Cloud, step: str) -> None:
    assert shell(*REHEARSED, crash_at=step).code == KILLED
    answer = shell(*REHEARSED)
    assert answer.code == 0, answer.err
    assert "nothing is launched twice" in answer.err
    assert shell.run().state == "succeeded"
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]


def test_an_outcome_that_nobody_knows_exits_75_and_resume_finds_out(shell: Shell, cloud: Cloud) -> None:
    answer = shell(
        *REHEARSED,
        *faulty(
            "reset-after:CreateTrainingJob",
            "reset-before:CreateTrainingJob:rate=1",
            "reset-before:DescribeTrainingJob:rate=1",
        ),
    )
    assert answer.code == 75, answer.err
    run = shell.run()
    assert run.state == "starting"
    assert f"orchestrate resume {run.id}" in answer.err
    cloud.clear()
    resumed = shell("resume", run.id)
    assert resumed.code == 0, resumed.err
    assert shell.run().state == "succeeded"
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]


def test_a_cloud_that_never_took_the_job_exits_75_and_resume_makes_it(shell: Shell, cloud: Cloud) -> None:
    assert shell(*REHEARSED, *faulty("500-before:CreateTrainingJob:rate=1")).code == 75
    assert not cloud.jobs()
    cloud.clear()
    resumed = shell("resume")
    assert resumed.code == 0, resumed.err
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]


def test_a_login_that_runs_out_between_create_and_question_keeps_the_run(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*REHEARSED, *faulty("reset-after:CreateTrainingJob", "expired:DescribeTrainingJob:rate=1"))
    assert answer.code == 75, answer.err
    assert "your AWS login has expired" in answer.err
    assert shell.run().state == "starting"
    cloud.clear()
    again = shell(*REHEARSED)
    assert again.code == 0, again.err
    assert shell.run().state == "succeeded"
    assert len(cloud.jobs()) == 1


def test_the_same_command_joins_a_run_that_is_not_over_and_again_makes_another(patient: Shell, cloud: Cloud) -> None:
    words = (*NAMED, "--detach", "--", str(patient.gate))
    assert patient(*words, **cloud.environment).code == 0
    training(cloud)
    joined = patient(*words, **cloud.environment)
    assert joined.code == 0, joined.err
    assert "is the same submit, and not over" in joined.err
    assert len(cloud.jobs()) == len(patient.runs()) == 1
    again = patient(*NAMED, "--detach", "--again", "--", str(patient.gate), **cloud.environment)
    assert again.code == 0, again.err
    assert len(cloud.jobs()) == len(patient.runs()) == 2
    other = patient(*words[:-1], "elsewhere", **cloud.environment)
    assert other.code == 0
    assert len(cloud.jobs()) == 3


def test_an_end_that_nobody_was_told_of_is_joined_and_then_it_is_a_new_run(shell: Shell, cloud: Cloud) -> None:
    assert shell(*REHEARSED, crash_at="watch started").code == KILLED
    wait_until(lambda: cloud.jobs()[0]["status"] == "Completed", what="the end")
    joined = shell(*REHEARSED)
    assert joined.code == 0, joined.err
    assert "is the same submit" in joined.err
    assert "hello" in joined.out
    assert len(cloud.jobs()) == 1
    assert shell(*REHEARSED).code == 0
    assert len(cloud.jobs()) == 2


def test_the_same_command_twice_at_once_makes_one_job(shell: Shell, cloud: Cloud) -> None:
    answers = shell.together(list(REHEARSED), list(REHEARSED), list(REHEARSED))
    assert [answer.code for answer in answers] == [0, 0, 0], answers
    assert len(cloud.jobs()) == len(shell.runs()) == 1
    assert all("hello" in answer.out for answer in answers)


def test_resume_of_a_run_that_has_ended_tells_how_it_ended(shell: Shell, cloud: Cloud) -> None:
    assert shell(*REHEARSED).code == 0
    answer = shell("resume")
    assert answer.code == 0
    assert f"{shell.run().id} succeeded" in answer.out
    assert len(cloud.jobs()) == 1


def test_cancel_of_a_run_whose_submit_was_killed_launches_nothing(shell: Shell, cloud: Cloud) -> None:
    assert shell(*REHEARSED, crash_at="packaged written").code == KILLED
    answer = shell("cancel")
    assert answer.code == 0, answer.err
    assert shell.run().state == "abandoned"
    assert shell("resume").code != 0
    assert not cloud.jobs()
