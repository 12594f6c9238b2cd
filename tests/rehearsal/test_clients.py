"""Clients that know nothing of us: the AWS command line and the SageMaker SDK, unchanged, against the rehearsal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rehearsal import control
from orchestrator.rehearsal.runner import best_level
from orchestrator.rehearsal.server import Rehearsal
from tests.rehearsal.conftest import BUCKET, REGION, environment_of, training_request, wait_for_end, wait_for_secondary

pytestmark = pytest.mark.slow


def aws(cloud: Rehearsal, *words: str) -> Any:
    """The answer of the AWS command line."""
    command = Path(sys.executable).parent / "aws"
    if not command.exists():
        pytest.skip("the AWS command line is not installed beside this Python")
    done = subprocess.run(
        [command, *words, "--output", "json"],
        env=environment_of(cloud.url),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "null")


def sdk(cloud: Rehearsal, folder: Path, script: str) -> str:
    """What *script* prints in a Python of its own, told of the rehearsal by nothing but its environment."""
    quiet = folder / "sagemaker.yaml"
    quiet.write_text("SchemaVersion: '1.0'\nSageMaker:\n  PythonSDK:\n    Modules:\n      TelemetryOptOut: true\n")
    environment = {
        **environment_of(cloud.url),
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(quiet),
        "SAGEMAKER_VALIDATE_ROLE": "false",  # it asks IAM for a simulation that moto has not
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_command_line_makes_describes_lists_and_stops_a_job(cloud: Rehearsal, sagemaker: Any) -> None:
    request = training_request(script="exec sleep 60")
    made = aws(cloud, "sagemaker", "create-training-job", "--cli-input-json", json.dumps(request))
    assert made["TrainingJobArn"].endswith("training-job/job-1")
    wait_for_secondary(sagemaker, "job-1", "Training")
    told = aws(cloud, "sagemaker", "describe-training-job", "--training-job-name", "job-1")
    assert told["TrainingJobStatus"] == "InProgress"
    assert told["ResourceConfig"] == request["ResourceConfig"]
    listed = aws(cloud, "sagemaker", "list-training-jobs", "--status-equals", "InProgress")
    assert [line["TrainingJobName"] for line in listed["TrainingJobSummaries"]] == ["job-1"]
    aws(cloud, "sagemaker", "stop-training-job", "--training-job-name", "job-1")
    assert wait_for_end(sagemaker, "job-1")["TrainingJobStatus"] == "Stopped"
    aws(cloud, "sagemaker", "wait", "training-job-completed-or-stopped", "--training-job-name", "job-1")
    groups = aws(cloud, "logs", "describe-log-groups")["logGroups"]
    assert [group["logGroupName"] for group in groups] == ["/aws/sagemaker/TrainingJobs"]


def test_the_command_line_copies_files(cloud: Rehearsal, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(range(256)) * 50_000)
    environment = environment_of(cloud.url)
    command = str(Path(sys.executable).parent / "aws")
    for source, target in ((tmp_path / "data", f"s3://{BUCKET}/x/data"), (f"s3://{BUCKET}/x/data", tmp_path / "back")):
        words = [command, "s3", "cp", str(source), str(target), "--only-show-errors"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "back").read_bytes() == (tmp_path / "data").read_bytes()


def test_the_sdk_reads_waits_for_and_stops_a_job(cloud: Rehearsal, sagemaker: Any, tmp_path: Path) -> None:
    sagemaker.create_training_job(**training_request(script="exec sleep 60"))
    wait_for_secondary(sagemaker, "job-1", "Training")
    said = sdk(
        cloud,
        tmp_path,
        "from sagemaker.core.resources import TrainingJob\n"
        "job = TrainingJob.get('job-1')\n"
        "print(job.training_job_status, job.resource_config.instance_type)\n"
        "job.stop()\n"
        "try:\n    job.wait(poll=1, timeout=60)\n"
        "except Exception as error:\n    print(type(error).__name__)\n"  # it counts Stopped as a failure
        "job.refresh()\n"
        "print(job.training_job_status, job.secondary_status)\n"
        "print([j.training_job_name for j in TrainingJob.get_all(name_contains='job-')])\n",
    )
    assert "InProgress ml.m5.large" in said
    assert "Stopped Stopped" in said
    assert "['job-1']" in said


@pytest.mark.skipif(best_level() != "namespaces", reason="its launcher names /opt/ml, which needs a mount namespace")
def test_a_job_that_the_sdks_model_trainer_makes_runs_to_its_end(cloud: Rehearsal, tmp_path: Path, s3: Any) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text(
        "import os, pathlib, sys\n"
        "print('arguments', sys.argv[1:], flush=True)\n"
        "pathlib.Path(os.environ['SM_MODEL_DIR'], 'weights').write_text(os.environ['SM_HP_LR'])\n"
    )
    image = f"763104351884.dkr.ecr.{REGION}.amazonaws.com/pytorch-training:2.8.0-cpu-py312"
    said = sdk(
        cloud,
        tmp_path,
        "from sagemaker.core.helper.session_helper import Session\n"
        "from sagemaker.train import ModelTrainer\n"
        "from sagemaker.train.configs import Compute, SourceCode, StoppingCondition\n"
        "trainer = ModelTrainer(\n"
        f"    training_image={image!r}, role={control.ROLE!r}, base_job_name='demo',\n"
        f"    sagemaker_session=Session(default_bucket={BUCKET!r}),\n"
        "    source_code=SourceCode(source_dir='source', entry_script='train.py'),\n"
        "    compute=Compute(instance_type='ml.m5.large', instance_count=1, volume_size_in_gb=30),\n"
        "    stopping_condition=StoppingCondition(max_runtime_in_seconds=600),\n"
        "    hyperparameters={'lr': '0.1'})\n"
        "trainer.train(wait=True, logs=True)\n"
        "job = trainer._latest_training_job\n"
        "print('END', job.training_job_name, job.training_job_status, job.model_artifacts.s3_model_artifacts)\n",
    )
    last = said.strip().splitlines()[-1].split()
    assert last[0] == "END"
    assert last[2] == "Completed"
    assert last[3] == f"s3://{BUCKET}/demo/{last[1]}/output/model.tar.gz"
    s3.head_object(Bucket=BUCKET, Key=last[3].removeprefix(f"s3://{BUCKET}/"))
    assert cloud.state()["jobs"][0]["status"] == "Completed"
