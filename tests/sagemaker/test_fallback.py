"""Where to next: several machines in order on want of quota or capacity, this machine as the last; on nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sagemaker.conftest import BUCKET, REGION, ROLE, Cloud, Shell, faulty

pytestmark = pytest.mark.slow
TWO = ("submit", "train.py", "--backend", "sagemaker", "--instance", "ml.m5.large,ml.c5.xlarge")
NAMED = ("--role", ROLE, "--bucket", BUCKET, "--region", REGION)
LOCAL = ("--fallback", "local")


def machines(cloud: Cloud) -> list[str]:
    """Those of the cloud's jobs, in their order."""
    described = [cloud.client("sagemaker").describe_training_job(TrainingJobName=job["name"]) for job in cloud.jobs()]
    described.sort(key=lambda one: one["CreationTime"])
    return [one["ResourceConfig"]["InstanceType"] for one in described]


@pytest.mark.parametrize("fault", ["quota", "capacity"])
def test_the_second_machine_is_tried_and_every_step_is_said_and_kept(shell: Shell, cloud: Cloud, fault: str) -> None:
    answer = shell(*TWO, "--rehearse", "--fault", fault)
    assert answer.code == 0, answer.err
    assert "trying ml.c5.xlarge" in answer.err
    second, first = shell.runs()
    assert machines(cloud)[-1] == "ml.c5.xlarge"
    assert second.state == "succeeded"
    assert first.state == ("abandoned" if fault == "quota" else "failed")
    assert first.spec["instance"] == "ml.m5.large"
    (note,) = [note for note in second.plan["notes"] if note.startswith("before this: ")]
    assert "ml.m5.large" in note
    assert fault in note or "no ml.m5.large" in note


def test_when_no_machine_is_to_be_had_this_one_runs_it(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*TWO, *LOCAL, "--rehearse", "--fault", "quota:count=2")
    assert answer.code == 0, answer.err
    assert "trying this machine" in answer.err
    assert "hello" in answer.out
    here, second, first = shell.runs()
    assert (here.backend, here.state) == ("local", "succeeded")
    assert [run.state for run in (first, second)] == ["abandoned", "abandoned"]
    assert len([note for note in here.plan["notes"] if note.startswith("before this: ")]) == 2
    assert not cloud.jobs()
    assert (Path(here.run_dir) / "root/model/model.txt").exists()


def test_capacity_alone_falls_back_to_this_machine_too(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*TWO[:-1], "ml.m5.large", *LOCAL, "--rehearse", "--fault", "capacity")
    assert answer.code == 0, answer.err
    here, first = shell.runs()
    assert (here.backend, here.state, first.state) == ("local", "succeeded", "failed")


def test_without_a_login_it_runs_here_and_no_other_machine_is_tried(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*TWO, *NAMED, *LOCAL, "--max-hours", "1")
    assert answer.code == 0, answer.err
    here, first = shell.runs()
    assert (here.backend, here.state, first.state) == ("local", "succeeded", "abandoned")
    assert "login" in answer.err or "credentials" in answer.err
    assert not cloud.jobs()


def test_a_denied_permission_makes_nobody_try_further(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*TWO, *LOCAL, "--rehearse", *faulty("denied:CreateTrainingJob"))
    assert answer.code == 5, answer.err
    assert "trying" not in answer.err
    assert [run.state for run in shell.runs()] == ["abandoned"]
    assert not cloud.jobs()


def test_a_failing_script_makes_nobody_try_further(shell: Shell, cloud: Cloud) -> None:
    shell.write("raise SystemExit('Insufficient capacity in my own words')")
    answer = shell(*TWO, *LOCAL, "--rehearse")
    assert answer.code == 6, answer.err
    assert len(shell.runs()) == len(cloud.jobs()) == 1


def test_a_bad_image_makes_nobody_try_further(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*TWO, *LOCAL, "--rehearse", "--image", "not an image")
    assert answer.code != 0
    assert "hello" not in answer.out
    assert not cloud.jobs()


def test_a_lost_answer_makes_nobody_try_further(shell: Shell, cloud: Cloud) -> None:
    lost = (
        "500-after:CreateTrainingJob",
        "500-before:DescribeTrainingJob:rate=1",
        "500-before:CreateTrainingJob:rate=1",
    )
    answer = shell(*TWO, *LOCAL, "--rehearse", *faulty(*lost))
    assert answer.code == 75, answer.err
    assert [run.state for run in shell.runs()] == ["starting"]
    assert machines_after(cloud) == ["ml.m5.large"]


def machines_after(cloud: Cloud) -> list[str]:
    cloud.clear()
    return machines(cloud)


def test_a_refusal_behind_a_lost_answer_tries_no_other_machine_while_the_first_may_run(
    shell: Shell, cloud: Cloud
) -> None:
    faults = (
        "reset-after:CreateTrainingJob",
        "throttle:DescribeTrainingJob:count=3",
        "quota:CreateTrainingJob:after=1",
    )
    answer = shell(*TWO, "--rehearse", *faulty(*faults))
    assert answer.code == 0, answer.err
    assert machines(cloud) == ["ml.m5.large"]
    assert [run.state for run in shell.runs()] == ["succeeded"]


def test_a_login_that_ends_behind_a_lost_answer_does_not_fall_back_to_this_machine(shell: Shell, cloud: Cloud) -> None:
    faults = ("reset-after:CreateTrainingJob", "expired:DescribeTrainingJob")
    answer = shell(*TWO, *LOCAL, "--rehearse", *faulty(*faults))
    assert answer.code == 75, answer.err
    (run,) = shell.runs()
    assert run.state == "starting"
    assert "hello" not in answer.out
    cloud.clear()
    assert shell("resume").code == 0
    assert machines(cloud) == ["ml.m5.large"]
