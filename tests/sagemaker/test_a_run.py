"""A SageMaker run from the command to the model on this disk, on the rehearsed cloud; and with each fault of a call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.rehearsal import control
from tests.conftest import wait_until
from tests.sagemaker.conftest import NAMED, REHEARSED, SUBMIT, Cloud, Shell, faulty

pytestmark = pytest.mark.slow
KINDS = ("throttle", "500-before", "500-after", "reset-before", "reset-after", "hang-after")
FOLLOWING = ("DescribeTrainingJob", "DescribeLogStreams", "GetLogEvents")


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

    tags = cloud.client("sagemaker").list_tags(ResourceArn=described["TrainingJobArn"])["Tags"]
    told = described | {
        "Tags": tags,
        "OutputDataConfig": {"S3OutputPath": described["OutputDataConfig"]["S3OutputPath"]},
    }
    assert {key: told[key] for key in run.request} == run.request
    assert without_name(dry, dry["TrainingJobName"]) == without_name(dict(run.request), str(run.remote_id))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_the_create_call_makes_one_job(shell: Shell, cloud: Cloud, kind: str) -> None:
    answer = shell(*REHEARSED, *faulty(f"{kind}:CreateTrainingJob:count=2:seconds=1"))
    assert answer.code == 0, answer.err
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]
    assert "asks to wait" in answer.err if kind == "throttle" else "no clear answer" in answer.err
    assert shell.run().state == "succeeded"


@pytest.mark.parametrize("kind", ["throttle", "reset-before", "hang-after"])
def test_a_fault_of_the_question_whether_the_job_was_made_makes_one_job(shell: Shell, cloud: Cloud, kind: str) -> None:
    answer = shell(
        *REHEARSED, *faulty("reset-after:CreateTrainingJob", f"{kind}:DescribeTrainingJob:count=3:seconds=1")
    )
    assert answer.code == 0, answer.err
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]


def test_faults_while_it_is_followed_lose_nothing(patient: Shell, cloud: Cloud) -> None:
    typed = patient.start(*REHEARSED, "--", str(patient.gate))
    typed.says("line 1")
    cloud.arm(*(f"{kind}:{call}:count=2:seconds=1" for kind in KINDS for call in FOLLOWING))
    wait_until(lambda: not cloud.state()["faults"], 60, "every fault")
    patient.go()
    answer = typed.end()
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    numbers = [int(line.split()[1]) for line in lines if line.startswith("line ")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert lines.count("done") == 1
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


def test_as_json_the_document_stands_alone_on_stdout(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*REHEARSED, "--json")
    assert answer.code == 0, answer.err
    told = answer.json
    assert (told["state"], told["metrics"]) == ("succeeded", {"epoch": 0.0, "loss": 0.5})
    assert told["billable_seconds"] >= 1
    assert "hello" in answer.err
    shell.write("raise SystemExit('no good')\n")
    failed = shell(*REHEARSED, "--json")
    assert failed.code == 6, failed.err
    assert failed.json["state"] == "failed"
    assert "no good" in failed.json["error"]
    assert failed.json["hint"]
    assert len(cloud.jobs()) == 2


def test_every_string_arrives_byte_for_byte(shell: Shell, cloud: Cloud) -> None:
    shell.write("import json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ['NOTE']]))\n")
    odd = ["--text", 'it\'s "odd" $HOME `x` \\ ü 日本', "", " two  spaces ", "-5", "{{}}"]
    note = "a 'note'; $(echo no) ü\ttab"
    answer = shell(*REHEARSED, "--hp", "name=x y=z 'q'", "--env", f"NOTE={note}", "--", *odd)
    assert answer.code == 0, answer.err
    line = next(line for line in answer.out.splitlines() if line.startswith("[["))
    assert json.loads(line) == [["--name", "x y=z 'q'", *odd], note]
