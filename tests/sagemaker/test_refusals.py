"""What AWS refuses: one clear line with a remedy, the right exit code, nothing launched, and the ledger says why."""

from __future__ import annotations

import pytest

from orchestrator.rehearsal import control
from tests.sagemaker.conftest import BUCKET, NAMED, REGION, REHEARSED, ROLE, SUBMIT, Cloud, Shell, explained, faulty

pytestmark = pytest.mark.slow
THEIRS = "999999999999"


def nothing_launched(shell: Shell, cloud: Cloud) -> str:
    """Why, by the ledger."""
    assert not cloud.jobs()
    run = shell.run()
    assert run.state == "abandoned"
    assert run.started_at is None
    return str(run.reason)


def test_quota_is_explained_and_nothing_was_launched(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*REHEARSED, *faulty("quota"))
    assert answer.code == 5, answer.err
    assert "quota" in answer.err
    assert "request-service-quota-increase" in answer.err
    assert "quota" in nothing_launched(shell, cloud)


def test_want_of_capacity_is_explained_and_costs_nothing(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*REHEARSED, "--fault", "capacity")
    assert answer.code == 5, answer.err
    assert "no ml.m5.large to give" in answer.err
    assert "try: " in answer.err
    (job,) = cloud.jobs()
    assert job["status"] == "Failed"
    run = shell.run()
    assert run.state == "failed"
    assert explained(run)["kind"] == "capacity"
    assert not run.billable_seconds


def test_a_permission_that_is_missing_is_named(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*REHEARSED, *faulty("denied:CreateTrainingJob"))
    assert answer.code == 5, answer.err
    assert "sagemaker:CreateTrainingJob" in answer.err
    assert "sagemaker:CreateTrainingJob" in nothing_launched(shell, cloud)


def test_a_role_of_another_account_is_refused_before_anything_is_sent(shell: Shell, cloud: Cloud) -> None:
    role = f"arn:aws:iam::{THEIRS}:role/training"
    before = cloud.calls()
    answer = shell(*SUBMIT, "--role", role, "--bucket", BUCKET, "--region", REGION, **cloud.environment)
    assert answer.code == 7, answer.err
    assert control.ACCOUNT in answer.err
    assert THEIRS in answer.err
    assert "--profile" in answer.err
    assert THEIRS in nothing_launched(shell, cloud)
    assert set(cloud.calls() - before) == {"GetCallerIdentity"}


def test_a_role_that_is_not_there_is_refused(shell: Shell, cloud: Cloud) -> None:
    role = f"arn:aws:iam::{control.ACCOUNT}:role/nobody"
    answer = shell(*SUBMIT, "--role", role, "--bucket", BUCKET, "--region", REGION, **cloud.environment)
    assert answer.code == 5, answer.err
    assert role in answer.err
    assert "try: " in answer.err
    assert "role" in nothing_launched(shell, cloud)


@pytest.mark.parametrize("case", ["missing", "of another region", "of another account"])
def test_a_bucket_that_cannot_be_used_is_told_before_a_byte_is_sent(shell: Shell, cloud: Cloud, case: str) -> None:
    name = f"some-{case.replace(' ', '-')}"
    if case == "of another region":
        control.provision(cloud.url, role=ROLE, bucket=name, region="eu-west-1")
    elif case == "of another account":
        control.provision(cloud.url, role=f"arn:aws:iam::{THEIRS}:role/owner", bucket=name, region=REGION)
    before = cloud.calls()
    answer = shell(*SUBMIT, "--role", ROLE, "--bucket", name, "--region", REGION, **cloud.environment)
    assert answer.code == 5, answer.err
    problem, remedy = (line for line in answer.err.splitlines() if line.startswith(("error: ", "  try: ")))
    assert name in problem
    assert "--bucket" in remedy
    if case == "of another region":
        assert "eu-west-1" in problem
    assert name in nothing_launched(shell, cloud)
    assert not (cloud.calls() - before)["PutObject"]


def test_without_a_login_it_is_said_how_to_log_in(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*NAMED)
    assert answer.code == 77, answer.err
    assert "aws sso login" in answer.err
    assert "--rehearse" in answer.err
    nothing_launched(shell, cloud)


def test_a_login_that_has_expired_launches_nothing(shell: Shell, cloud: Cloud) -> None:
    cloud.arm("expired:GetCallerIdentity:rate=1")
    answer = shell(*NAMED, **cloud.environment)
    assert answer.code == 77, answer.err
    assert "expired" in answer.err
    nothing_launched(shell, cloud)
    cloud.clear()
    assert shell(*NAMED, "--detach", **cloud.environment).code == 0
    assert [run.state for run in shell.runs()][1] == "abandoned"
    assert len(cloud.jobs()) == 1


def test_an_image_of_another_region_is_refused_before_anything_is_written(shell: Shell, cloud: Cloud) -> None:
    image = "763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch-training:2.6.0-cpu-py312"
    answer = shell(*REHEARSED, "--image", image)
    assert answer.code != 0
    assert "eu-west-1" in answer.err
    assert not cloud.jobs()


@pytest.mark.parametrize("words", [("--env", "KEY=AKIAQ3EGRVNDFKL2WX7P"), ("--tag", "key=AKIAQ3EGRVNDFKL2WX7P")])
def test_a_value_that_looks_like_a_secret_is_refused_and_not_repeated(
    shell: Shell, cloud: Cloud, words: tuple[str, str]
) -> None:
    answer = shell(*REHEARSED, *words)
    assert answer.code == 2, answer.err
    assert "AKIAQ3EGRVNDFKL2WX7P" not in answer.err + answer.out
    assert not cloud.jobs()


def test_a_script_that_raises_is_shown_with_its_last_lines(shell: Shell, cloud: Cloud) -> None:
    shell.write("print('before')\nraise ValueError('no such column: age')\n")
    answer = shell(*REHEARSED)
    assert answer.code == 6, answer.err
    assert "ValueError: no such column: age" in answer.err
    assert "try: orchestrate logs" in answer.err
    run = shell.run()
    assert run.state == "failed"
    assert run.exit_code == 1
    reason = cloud.client("sagemaker").describe_training_job(TrainingJobName=run.remote_id)["FailureReason"]
    assert "no such column: age" in reason
    status = shell("status")
    assert "no such column: age" in status.out


def test_a_script_that_was_killed_for_memory_is_told_so(shell: Shell, cloud: Cloud) -> None:
    shell.write("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    answer = shell(*REHEARSED)
    assert answer.code == 6, answer.err
    assert "memory" in answer.err
    assert shell.run().exit_code == 137


def test_a_requirement_that_cannot_be_had_is_told_and_the_script_not_started(shell: Shell, cloud: Cloud) -> None:
    shell.write("./no-such-folder-of-mine\n", "requirements.txt")
    answer = shell(*REHEARSED)
    assert answer.code == 6, answer.err
    assert "requirements.txt" in answer.err
    assert "hello" not in answer.out
    assert shell.run().exit_code == 2
