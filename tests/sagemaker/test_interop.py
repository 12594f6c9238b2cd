"""To the SageMaker SDK and back: a run of ours as its TrainingJob, a plan of ours as its ModelTrainer."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile

import pytest

from orchestrator.rehearsal.runner import best_level
from tests.conftest import REPOSITORY
from tests.sagemaker.conftest import REHEARSED, Cloud, Shell, training

pytestmark = pytest.mark.slow


def python(shell: Shell, script: str) -> str:
    """What *script* prints in a Python of its own; the SDK warns of its own doings."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=shell.project,
        env={**os.environ, **shell.environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_run_is_the_sdks_own_training_job_which_stops_it(patient: Shell, cloud: Cloud) -> None:
    assert patient(*REHEARSED, "--detach", "--", str(patient.gate)).code == 0
    job = training(cloud)
    said = python(
        patient,
        "import orchestrator\n"
        "job = orchestrator.training_job()\n"
        "print(job.training_job_name, job.training_job_status, job.resource_config.instance_type)\n"
        "job.stop()\n",
    )
    assert f"{job['name']} InProgress ml.m5.large" in said
    ended = patient("resume")
    assert ended.code == 6, ended.err
    assert patient.run().state == "stopped"
    assert patient.run().reason == "stopped in the cloud"


def test_a_local_run_is_no_training_job(shell: Shell, cloud: Cloud) -> None:
    assert shell("submit", "train.py").code == 0
    said = python(
        shell,
        "import orchestrator\n"
        "from orchestrator.errors import BadInput\n"
        "try:\n    orchestrator.training_job()\nexcept BadInput as error:\n    print(error.what)\n",
    )
    assert "is a local run" in said


@pytest.mark.skipif(
    best_level() != "namespaces", reason="the SDK's launcher names /opt/ml, which needs a mount namespace"
)
def test_a_plan_is_a_model_trainer_that_trains_to_its_end(shell: Shell, cloud: Cloud) -> None:
    shell.write(
        "import os, pathlib, sys\n"
        "rows = pathlib.Path(os.environ['SM_CHANNEL_ROWS'], 'a.csv').read_text()\n"
        "pathlib.Path(os.environ['SM_MODEL_DIR'], 'weights').write_text(f'{sys.argv[1:]} {rows}')\n"
    )
    (shell.project.parent / "rows").mkdir()
    (shell.project.parent / "rows/a.csv").write_text("1,2")
    said = python(
        shell,
        "import orchestrator\n"
        "trainer = orchestrator.model_trainer('train.py', backend='sagemaker', instance='ml.m5.large', rehearse=True,\n"
        "    hyperparameters={'lr': '0.1'}, data={'rows': '../rows'}, max_hours=1, name='handed-over')\n"
        "print(type(trainer).__name__, trainer.stopping_condition.max_runtime_in_seconds)\n"
        "trainer.train(wait=True, logs=False)\n"
        "job = trainer._latest_training_job\n"
        "print('END', job.training_job_name, job.training_job_status, job.model_artifacts.s3_model_artifacts)\n",
    )
    assert "ModelTrainer 3600" in said
    last = said.strip().splitlines()[-1].split()
    assert (last[0], last[2]) == ("END", "Completed")
    assert last[1].startswith("handed-over-")
    bucket, _, key = last[3].removeprefix("s3://").partition("/")
    packed = cloud.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        member = archive.extractfile(next(one for one in archive.getmembers() if one.name.endswith("weights")))
        assert member is not None
        assert member.read().decode() == "['--lr', '0.1'] 1,2"


def test_a_model_trainer_has_all_that_was_asked_for_and_refuses_what_it_has_no_place_for(
    shell: Shell, cloud: Cloud
) -> None:
    shell.write("print(1)\n")
    (shell.project / ".gitignore").write_text("ignored.bin\n")
    (shell.project / "ignored.bin").write_text("x")
    key = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    said = python(
        shell,
        "import os, orchestrator\n"
        "from orchestrator.errors import BadInput\n"
        "asked = dict(instance='ml.m5.large', rehearse=True, count=2)\n"
        "trainer = orchestrator.model_trainer('train.py', network_isolation=True, encrypt_traffic=True,\n"
        f"    kms_key='{key}', keep_alive_minutes=5, hyperparameters={{'lr': '0.1'}}, metrics=['loss'], **asked)\n"
        "network, compute = trainer.networking, trainer.compute\n"
        "print('NET', network.enable_network_isolation, network.enable_inter_container_traffic_encryption)\n"
        "print('KEYS', trainer.output_data_config.kms_key_id == compute.volume_kms_key_id)\n"
        "print('WARM', compute.keep_alive_period_in_seconds, compute.instance_count)\n"
        "print('FILES', sorted(os.listdir(trainer.source_code.source_dir)))\n"
        "try:\n    orchestrator.model_trainer('train.py', arguments=['--x'], **asked)\n"
        "except BadInput as error:\n    print('REFUSED', error.what)\n",
    )
    assert "NET True True" in said
    assert "KEYS True" in said
    assert "WARM 300 2" in said
    assert "FILES ['.gitignore', 'train.py']" in said
    assert "REFUSED a ModelTrainer has no place for arguments on several machines" in said
