"""A training job under SageMaker's container contract, really run: S3 and CloudWatch Logs are moto's, the rest is ours."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rehearsal import container
from orchestrator.rehearsal.runner import JobOrder, Runner
from tests.conftest import REPOSITORY, wait_until
from tests.rehearsal import jobs
from tests.rehearsal.jobs import (
    BUCKET,
    WAITING,
    Cloud,
    Seen,
    channel,
    host_root,
    job_order,
    processes_of,
    run,
    start,
    with_bootstrap,
)

pytestmark = pytest.mark.slow

moto_cloud, each_level = jobs.moto_cloud, jobs.each_level


def test_a_job_of_ours_runs_from_its_package_to_its_model(moto_cloud: Cloud, tmp_path: Path, each_level: str) -> None:
    moto_cloud.put("data/set/a.txt", "A")
    moto_cloud.put("data/set/deeper/b.txt", "B")
    script = """
        import json, os, pathlib, sys
        data = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"])
        print(sorted(str(p.relative_to(data)) for p in data.rglob("*.txt")), sys.argv[1:])
        print(os.environ["SM_HOSTS"], os.environ["TRAINING_JOB_NAME"])
        pathlib.Path(os.environ["SM_MODEL_DIR"], "weights.txt").write_text("learned")
        pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "notes.txt").write_text("noted")
    """
    order = with_bootstrap(
        moto_cloud,
        tmp_path,
        {"train.py": script},
        level=each_level,
        job={"hyperparameters": {"lr": "0.1"}, "arguments": ["a b"]},
    )
    order.request["InputDataConfig"].append(channel("train", f"s3://{BUCKET}/data/set"))
    seen = Seen()
    ending = run(order, seen)
    assert (ending.kind, ending.exit_codes, ending.failure_reason) == ("completed", (0,), None)
    assert ending.level == each_level
    assert ending.training_seconds > 0
    assert seen.states == ["Downloading", "Training", "Uploading"]
    assert moto_cloud.unpacked(f"out/{order.name}/output/model.tar.gz") == {"weights.txt": b"learned"}
    assert moto_cloud.unpacked(f"out/{order.name}/output/output.tar.gz") == {"notes.txt": b"noted"}
    (stream,) = moto_cloud.streams(order.name)
    assert stream.rpartition("-")[0] == f"{order.name}/algo-1"
    assert len(stream.rpartition("-")[2]) == 10
    lines = moto_cloud.lines(stream)
    assert "['a.txt', 'deeper/b.txt'] ['--lr', '0.1', 'a b']" in lines
    assert f'["algo-1"] {order.name}' in lines


def test_the_configuration_is_laid_out_as_sagemaker_does(moto_cloud: Cloud, tmp_path: Path) -> None:
    moto_cloud.put("data/x", "x")
    order = job_order(
        moto_cloud,
        tmp_path,
        ["/bin/true"],
        HyperParameters={"epochs": "3", "name": 'it\'s "é"'},
        InputDataConfig=[channel("train", f"s3://{BUCKET}/data/x", ContentType="text/csv", InputMode="FastFile")],
        CheckpointConfig={"S3Uri": f"s3://{BUCKET}/ck", "LocalPath": "/opt/ml/checkpoints"},
    )
    assert run(order).kind == "completed"
    config = {path.stem: json.loads(path.read_text()) for path in (host_root(order) / "input/config").iterdir()}
    assert config == {
        "hyperparameters": {"epochs": "3", "name": 'it\'s "é"'},
        "inputdataconfig": {
            "train": {
                "TrainingInputMode": "FastFile",
                "S3DistributionType": "FullyReplicated",
                "RecordWrapperType": "None",
                "ContentType": "text/csv",
            }
        },
        "resourceconfig": {
            "current_host": "algo-1",
            "current_instance_type": "ml.m5.large",
            "current_group_name": "homogeneousCluster",
            "hosts": ["algo-1"],
            "instance_groups": [
                {"instance_group_name": "homogeneousCluster", "instance_type": "ml.m5.large", "hosts": ["algo-1"]}
            ],
            "network_interface_name": "lo",
        },
        "checkpointconfig": {"S3Uri": f"s3://{BUCKET}/ck", "LocalPath": "/opt/ml/checkpoints"},
    }
    assert (host_root(order) / "input/data/train/x").read_text() == "x"


def test_a_job_has_nothing_of_the_callers_environment(
    moto_cloud: Cloud, tmp_path: Path, each_level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "the caller's secret")
    monkeypatch.setenv("AWS_PROFILE", "the caller's secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    show = "import json, os; print(json.dumps(dict(os.environ))); print(os.getcwd())"
    order = job_order(
        moto_cloud, tmp_path, ["python3", "-c", show], level=each_level, Environment={"MINE": "é", "LANG": "C"}
    )
    assert run(order).kind == "completed"
    environment, folder = moto_cloud.lines(moto_cloud.streams(order.name)[0])
    told = json.loads(environment)
    assert "the caller's secret" not in environment
    assert "HTTP_PROXY" not in told
    assert told["AWS_ENDPOINT_URL"] == moto_cloud.endpoint
    assert told["AWS_ACCESS_KEY_ID"] == told["AWS_SECRET_ACCESS_KEY"] == "rehearsal"
    assert (told["TRAINING_JOB_NAME"], told["TRAINING_JOB_ARN"]) == (order.name, order.arn)
    assert (told["AWS_REGION"], told["MINE"], told["LANG"]) == ("us-east-1", "é", "C")
    assert told["HOME"].startswith(str(tmp_path))
    assert told.get("ORCHESTRATE_ROOT") == (None if each_level == container.NAMESPACES else str(host_root(order)))
    assert folder == "/"


def test_stop_gives_the_script_sigterm_and_its_time_to_save(moto_cloud: Cloud, tmp_path: Path, each_level: str) -> None:
    order = with_bootstrap(moto_cloud, tmp_path, {"train.py": WAITING}, level=each_level)
    seen = Seen()
    started = start(order, seen)
    wait_until(lambda: (host_root(order) / "output/data/ready").exists())
    started.runner.stop()
    ending = started.ended()
    assert (ending.kind, ending.failure_reason) == ("stopped", None)
    assert seen.states[-1] == "Uploading"
    assert "saving" in moto_cloud.lines(moto_cloud.streams(order.name)[0])
    assert moto_cloud.unpacked(f"out/{order.name}/output/model.tar.gz") == {"weights.txt": b"w"}
    assert processes_of(tmp_path) == []


def test_who_does_not_stop_in_time_is_killed_and_what_it_left_is_uploaded(
    moto_cloud: Cloud, tmp_path: Path, each_level: str
) -> None:
    script = (
        "trap 'echo deaf' TERM; echo half > /opt/ml/model/m; touch /opt/ml/output/data/on; while :; do sleep 0.05; done"
    )
    order = job_order(moto_cloud, tmp_path, ["/bin/bash", "-c", script], level=each_level, grace_seconds=0.5)
    started = start(order)
    wait_until(lambda: (host_root(order) / "output/data/on").exists())
    started.runner.stop()
    ending = started.ended()
    assert (ending.kind, ending.exit_codes) == ("stopped", (128 + signal.SIGKILL,))
    assert "deaf" in moto_cloud.lines(moto_cloud.streams(order.name)[0])
    assert moto_cloud.unpacked(f"out/{order.name}/output/model.tar.gz") == {"m": b"half\n"}
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("word", ["", "exec "])
def test_only_a_shell_that_execs_lets_sigterm_reach_its_child(
    moto_cloud: Cloud, tmp_path: Path, each_level: str, word: str
) -> None:
    child = (
        "import pathlib, signal, sys, time; signal.signal(15, lambda *_: (print('heard', flush=True), sys.exit(0)));"
        "pathlib.Path(sys.argv[1], 'on').touch(); time.sleep(60)"
    )
    script = f'echo go; {word}python3 -c "$0" /opt/ml/output/data; echo after'
    order = job_order(moto_cloud, tmp_path, ["/bin/bash", "-c", script, child], level=each_level, grace_seconds=1)
    started = start(order)
    wait_until(lambda: (host_root(order) / "output/data/on").exists())
    started.runner.stop()
    ending = started.ended()
    expected = (["go", "heard"], (0,)) if word else (["go"], (128 + signal.SIGKILL,))
    assert (moto_cloud.lines(moto_cloud.streams(order.name)[0]), ending.exit_codes) == expected
    assert ending.kind == "stopped"


def test_a_reclaimed_job_keeps_its_checkpoints_and_goes_on_from_them(
    moto_cloud: Cloud, tmp_path: Path, each_level: str
) -> None:
    name = f"job-{uuid.uuid4().hex[:12]}"
    checkpoints = {"S3Uri": f"s3://{BUCKET}/ck/{name}"}
    order = with_bootstrap(
        moto_cloud, tmp_path, {"train.py": WAITING}, name=name, level=each_level, CheckpointConfig=checkpoints
    )
    seen = Seen()
    started = start(order, seen)
    wait_until(lambda: (host_root(order) / "output/data/ready").exists())
    started.runner.reclaim()
    assert started.ended().kind == "reclaimed"
    assert "Uploading" not in seen.states
    assert moto_cloud.keys(f"ck/{name}/") == ["step.txt"]
    assert moto_cloud.keys(f"out/{name}/") == []

    again = JobOrder(
        **{
            **order.__dict__,
            "attempt": 2,
            "request": {**order.request, "Environment": {"LEAVE": "1"}},
        }
    )
    assert run(again).kind == "completed"
    first, second = sorted(
        moto_cloud.streams(name), key=lambda stream: "resumed from ['7']" in moto_cloud.lines(stream)
    )
    assert "resumed from []" in moto_cloud.lines(first)
    assert "resumed from ['7']" in moto_cloud.lines(second)


def test_a_failure_file_becomes_the_reason(moto_cloud: Cloud, tmp_path: Path, each_level: str) -> None:
    script = "import sys; print('before'); open(sys.argv[0] + '.x', 'w'); raise ValueError('no such label: 11')"
    order = with_bootstrap(moto_cloud, tmp_path, {"train.py": script}, level=each_level)
    ending = run(order)
    assert (ending.kind, ending.exit_codes) == ("failed", (1,))
    assert ending.failure_reason is not None
    assert ending.failure_reason.startswith("AlgorithmError: Traceback (most recent call last):")
    assert ending.failure_reason.endswith("ValueError: no such label: 11, exit code: 1")
    assert b"ValueError" in moto_cloud.unpacked(f"out/{order.name}/output/output.tar.gz")["failure"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "AlgorithmError: , exit code: 3"),
        ("python3 -c 'import os; os.abort()'; exit $?", "AlgorithmError: , exit code: 134"),
        (
            "printf %02000d 0 > /opt/ml/output/failure; exit 1",
            f"AlgorithmError: {'0' * 1024}, exit code: 1",
        ),
    ],
)
def test_the_exit_code_is_told(moto_cloud: Cloud, tmp_path: Path, script: str, reason: str) -> None:
    assert run(job_order(moto_cloud, tmp_path, ["/bin/bash", "-c", script])).failure_reason == reason


def test_a_command_that_is_not_there_fails_with_127(moto_cloud: Cloud, tmp_path: Path, each_level: str) -> None:
    order = job_order(moto_cloud, tmp_path, ["no-such-program"], level=each_level)
    assert run(order).exit_codes == (127,)
    assert moto_cloud.lines(moto_cloud.streams(order.name)[0]) == [
        "cannot start 'no-such-program': No such file or directory"
    ]


def test_an_image_without_an_entry_point_of_ours_is_not_run(moto_cloud: Cloud, tmp_path: Path) -> None:
    order = job_order(
        moto_cloud, tmp_path, [], AlgorithmSpecification={"TrainingImage": "an.image", "TrainingInputMode": "File"}
    )
    reason = run(order).failure_reason
    assert reason is not None
    assert reason.startswith("AlgorithmError: ")
    assert "an.image" in reason


def test_output_arrives_in_order_and_complete(moto_cloud: Cloud, tmp_path: Path) -> None:
    script = "import sys\nfor n in range(10_000): print(n, file=sys.stderr if n % 2 else sys.stdout, flush=True)"
    order = job_order(moto_cloud, tmp_path, ["python3", "-u", "-c", script])
    assert run(order).kind == "completed"
    assert moto_cloud.lines(moto_cloud.streams(order.name)[0]) == [str(n) for n in range(10_000)]


def test_long_lines_are_split_and_odd_bytes_replaced(moto_cloud: Cloud, tmp_path: Path) -> None:
    script = "import os; os.write(1, 'é'.encode() * 300_000 + b'\\n\\n\\xff.\\r\\nlast')"
    order = job_order(moto_cloud, tmp_path, ["python3", "-c", script])
    assert run(order).kind == "completed"
    *long, odd, last = moto_cloud.lines(moto_cloud.streams(order.name)[0])
    assert "".join(long) == "é" * 300_000
    assert max(len(line.encode()) for line in long) <= 256 * 1024 - 26
    assert (odd, last) == ("\ufffd.", "last")


def test_checkpoints_are_mirrored_while_the_job_runs(moto_cloud: Cloud, tmp_path: Path) -> None:
    prefix = f"mirrored/{uuid.uuid4().hex}/"
    moto_cloud.put(prefix + "old/1", "one")
    script = (
        "cat /opt/ml/checkpoints/old/1; rm /opt/ml/checkpoints/old/1; echo two > /opt/ml/checkpoints/2; sleep 60 & wait"
    )
    order = job_order(
        moto_cloud,
        tmp_path,
        ["/bin/bash", "-c", f"trap 'exit 0' TERM; {script}"],
        CheckpointConfig={"S3Uri": f"s3://{BUCKET}/{prefix.rstrip('/')}"},
    )
    started = start(order)
    wait_until(lambda: moto_cloud.keys(prefix) == ["2"])  # the job runs on
    assert not started.endings
    started.runner.stop()
    assert started.ended().exit_codes == (0,)
    assert moto_cloud.get(prefix + "2") == b"two\n"
    assert moto_cloud.lines(moto_cloud.streams(order.name)[0]) == ["one"]


def test_results_may_be_stored_uncompressed_and_nothing_is_stored_of_nothing(moto_cloud: Cloud, tmp_path: Path) -> None:
    script = "mkdir /opt/ml/model/sub; echo w > /opt/ml/model/sub/w"
    plain = {"S3OutputPath": f"s3://{BUCKET}/out/", "CompressionType": "NONE"}
    order = job_order(moto_cloud, tmp_path / "a", ["/bin/bash", "-c", script], OutputDataConfig=plain)
    assert run(order).kind == "completed"
    assert moto_cloud.keys(f"out/{order.name}/output/") == ["model/sub/w"]
    order = job_order(moto_cloud, tmp_path / "b", ["/bin/true"])
    assert run(order).kind == "completed"
    assert moto_cloud.keys(f"out/{order.name}/") == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"InputDataConfig": [channel("train", f"s3://{BUCKET}/nothing/here")]},
            "ClientError: Data download failed:No S3 ",
        ),
        (
            {"InputDataConfig": [channel("train", "s3://no-such-bucket/x")]},
            "ClientError: Data download failed:NoSuchBucket",
        ),
        (
            {"InputDataConfig": [channel("train", f"s3://{BUCKET}/x", InputMode="Pipe")]},
            "ClientError: Data download failed:channel train: a rehearsal has",
        ),
        (
            {"InputDataConfig": [channel("train", f"s3://{BUCKET}/x", S3DataType="ManifestFile")]},
            "ClientError: Data download failed:channel train: a rehearsal has",
        ),
        (
            {"OutputDataConfig": {"S3OutputPath": "s3://no-such-bucket/o"}},
            "ClientError: Artifact upload failed:NoSuchBucket",
        ),
        (
            {"CheckpointConfig": {"S3Uri": "s3://no-such-bucket/c"}},
            "ClientError: Checkpoint download failed:NoSuchBucket",
        ),
    ],
)
def test_what_s3_refuses_is_the_jobs_failure(
    moto_cloud: Cloud, tmp_path: Path, changes: Mapping[str, Any], reason: str
) -> None:
    order = job_order(moto_cloud, tmp_path, ["/bin/bash", "-c", "echo m > /opt/ml/model/m"], **changes)
    ending = run(order)
    assert ending.kind == "failed"
    assert ending.failure_reason is not None
    assert ending.failure_reason.startswith(reason)


def test_the_scripts_failure_is_told_rather_than_that_of_the_upload_after_it(moto_cloud: Cloud, tmp_path: Path) -> None:
    order = job_order(
        moto_cloud,
        tmp_path,
        ["/bin/bash", "-c", "echo why > /opt/ml/output/failure; exit 3"],
        OutputDataConfig={"S3OutputPath": "s3://no-such-bucket/o"},
    )
    assert run(order).failure_reason == "AlgorithmError: why\n, exit code: 3"


def test_a_job_that_is_stopped_before_its_start_starts_nothing(moto_cloud: Cloud, tmp_path: Path) -> None:
    one = Runner(job_order(moto_cloud, tmp_path, ["/bin/true"]), Seen())
    one.stop()
    ending = one.run()
    assert (ending.kind, ending.exit_codes) == ("stopped", ())


def test_no_process_outlives_a_runner_that_was_killed(moto_cloud: Cloud, tmp_path: Path, each_level: str) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom orchestrator.rehearsal.runner import JobOrder, Runner\n"
        "from tests.rehearsal.jobs import Cloud, Seen, job_order\n"
        "script = 'setsid sleep 300 & sleep 300 & touch /opt/ml/output/data/on; sleep 300; echo'\n"
        "order = job_order(Cloud(sys.argv[1], None, None), Path(sys.argv[2]), ['/bin/bash', '-c', script], level=sys.argv[3])\n"
        "Runner(order, Seen()).run()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, moto_cloud.endpoint, str(tmp_path), each_level], cwd=REPOSITORY
    )
    wait_until(lambda: (tmp_path / "attempt-1/algo-1/output/data/on").exists())
    wait_until(lambda: len([one for one in processes_of(tmp_path) if "sleep" in one]) == 3)
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(tmp_path))
