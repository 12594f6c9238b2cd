"""A SageMaker run from the command to the model on this disk, on the rehearsed cloud; and with each fault of a call."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.rehearsal import control
from tests.sagemaker.conftest import NAMED, REHEARSED, SUBMIT, Cloud, Shell

KINDS = ("throttle", "500-before", "500-after", "reset-before", "reset-after", "hang-after")


def test_a_rehearsed_submit_ends_with_the_model_here(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*REHEARSED)
    assert answer.code == 0, answer.err
    assert "hello" in answer.out
    run = shell.run()
    assert f"{run.id} succeeded" in answer.out
    assert (Path(run.run_dir) / "root/model/model.txt").read_text() == "weights"
    (job,) = cloud.jobs()
    assert run.remote_id == job["name"]
    told = shell.status()
    assert told["billable_seconds"] >= 1
    assert told["metrics"] == {"epoch": 0.0, "loss": 0.5}
    assert [event.state for event in shell.events(run)][:5] == [
        "created",
        "packaged",
        "uploaded",
        "starting",
        "accepted",
    ]


def test_a_submit_to_the_account_of_the_login_ends_with_the_model_there(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*NAMED, **cloud.environment)
    assert answer.code == 0, answer.err
    run = shell.run()
    assert not run.rehearsed
    assert run.actual_usd is not None
    assert float(run.actual_usd) > 0
    key = f"orchestrate/runs/{run.remote_id}/output/model.tar.gz"
    cloud.client("s3").head_object(Bucket=control.bucket_of("us-east-1"), Key=key, ExpectedBucketOwner=control.ACCOUNT)
    listed = shell("artifacts", **cloud.environment)
    assert "model.tar.gz" in listed.out
    fetched = shell("artifacts", "--to", "out", **cloud.environment)
    assert fetched.code == 0, fetched.err
    assert (shell.project / "out/model/model.txt").read_text() == "weights"


def test_what_the_dry_run_shows_is_what_the_cloud_gets(shell: Shell, cloud: Cloud) -> None:
    dry = shell(*REHEARSED, "--dry-run", "--json").json["request"]
    assert shell(*REHEARSED, "--detach").code == 0
    run = shell.run()
    assert run.request is not None
    described = cloud.client("sagemaker").describe_training_job(TrainingJobName=run.remote_id)

    def without_name(value: object, name: str) -> str:
        return str(value).replace(name.rpartition("-")[2], "ID")

    sent = {key: value for key, value in run.request.items() if key != "Tags"}
    assert {key: described[key] for key in sent} == sent
    assert without_name(dry, dry["TrainingJobName"]) == without_name(dict(run.request), str(run.remote_id))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_the_create_call_makes_one_job(shell: Shell, cloud: Cloud, kind: str) -> None:
    cloud.arm(f"{kind}:CreateTrainingJob:count=2")
    answer = shell(*REHEARSED)
    assert answer.code == 0, answer.err
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]
    assert "asks to wait" in answer.err if kind == "throttle" else "no clear answer" in answer.err
    assert shell.run().state == "succeeded"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "throttle"])
def test_a_fault_of_the_question_whether_the_job_was_made_makes_one_job(shell: Shell, cloud: Cloud, kind: str) -> None:
    cloud.arm("reset-after:CreateTrainingJob", f"{kind}:DescribeTrainingJob:count=3")
    answer = shell(*REHEARSED)
    assert answer.code == 0, answer.err
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]


@pytest.mark.parametrize("kind", KINDS)
def test_faults_while_it_is_followed_lose_nothing(shell: Shell, cloud: Cloud, kind: str) -> None:
    cloud.arm(*(f"{kind}:{call}:count=2:seconds=1" for call in ("DescribeTrainingJob", "GetLogEvents")))
    answer = shell(*REHEARSED)
    assert answer.code == 0, answer.err
    assert answer.out.count("hello") == 1
    assert not cloud.state()["faults"]
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]


def test_the_same_command_after_its_end_is_another_run(shell: Shell, cloud: Cloud) -> None:
    assert [shell(*REHEARSED).code for _ in range(2)] == [0, 0]
    assert len(cloud.jobs()) == 2


@pytest.mark.parametrize("instances", ["ml.t2.medium"])
def test_a_machine_that_cannot_train_is_refused_before_anything_is_sent(
    shell: Shell, cloud: Cloud, instances: str
) -> None:
    answer = shell(*SUBMIT, "--rehearse", "--instance", instances)
    assert answer.code == 3, answer.err
    assert "cannot train" in answer.err
    assert "--instance ml." in answer.err
    assert not cloud.jobs()
