"""A rehearsed cloud for a test: `cloud`, clients of it, and requests that it takes. Other tests may import all of this."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rehearsal import control
from orchestrator.rehearsal.runner import Ending
from orchestrator.rehearsal.server import Rehearsal

REGION = "us-east-1"
BUCKET = control.bucket_of(REGION)
IMAGE = f"763104351884.dkr.ecr.{REGION}.amazonaws.com/pytorch-training:2.8.0-cpu-py312-ubuntu22.04-sagemaker"
ENDED = ("Completed", "Failed", "Stopped")
_clients: list[Any] = []


def client(
    cloud: Rehearsal | str, service: str, region: str = REGION, *, attempts: int = 1, timeout: float = 30
) -> Any:
    """A boto3 client of *cloud*, which sends each call once; `close_clients` closes it."""
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=5,
        read_timeout=timeout,
        proxies={},
    )
    url = cloud if isinstance(cloud, str) else cloud.url
    made = _session().client(service, region, endpoint_url=url, config=config)
    _clients.append(made)
    return made


@functools.cache
def _session() -> Any:
    """One for all tests of a process: it reads each service's model once."""
    import boto3

    return boto3.session.Session(control.ACCESS_KEY, control.SECRET_KEY)


def close_clients() -> None:
    while _clients:
        _clients.pop().close()


@contextlib.contextmanager
def rehearsal(folder: Path, **options: Any) -> Iterator[Rehearsal]:
    """A rehearsal in this process, with seconds instead of minutes between SIGTERM and SIGKILL."""
    with Rehearsal(folder, **{"grace_seconds": 3.0, **options}) as cloud:
        try:
            yield cloud
        finally:
            close_clients()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Rehearsal]:
    with rehearsal(tmp_path / "rehearsal") as cloud:
        yield cloud


@pytest.fixture
def sagemaker(cloud: Rehearsal) -> Any:
    return client(cloud, "sagemaker")


@pytest.fixture
def s3(cloud: Rehearsal) -> Any:
    return client(cloud, "s3")


def training_request(name: str = "job-1", script: str = "echo hello", **changes: Any) -> dict[str, Any]:
    """What create_training_job takes for a job that runs *script* in bash; *changes* replace members (None: leave out)."""
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["/bin/bash", "-c"],
            "ContainerArguments": [script],
        },
        "RoleArn": control.ROLE,
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/runs"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }
    request |= changes
    return {key: value for key, value in request.items() if value is not None}


def spot(**changes: Any) -> dict[str, Any]:
    """The members that make a request one for spot machines."""
    condition = {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    checkpoints = {"S3Uri": f"s3://{BUCKET}/checkpoints/", "LocalPath": "/opt/ml/checkpoints"}
    return {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": condition,
        "CheckpointConfig": checkpoints,
        **changes,
    }


def wait_for(
    sagemaker: Any, name: str, reached: Callable[[Mapping[str, Any]], bool], seconds: float = 60
) -> dict[str, Any]:
    """What Describe tells once *reached* holds of it; fails the test after *seconds*."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        told: dict[str, Any] = sagemaker.describe_training_job(TrainingJobName=name)
        if reached(told):
            return told
        time.sleep(0.05)
    pytest.fail(f"{name} is {told['TrainingJobStatus']}/{told['SecondaryStatus']} after {seconds} s")


def wait_for_end(sagemaker: Any, name: str, seconds: float = 60) -> dict[str, Any]:
    return wait_for(sagemaker, name, lambda told: told["TrainingJobStatus"] in ENDED, seconds)


def wait_for_secondary(sagemaker: Any, name: str, secondary: str, seconds: float = 60) -> dict[str, Any]:
    return wait_for(sagemaker, name, lambda told: told["SecondaryStatus"] == secondary, seconds)


def refusal(call: Callable[..., Any], **parameters: Any) -> tuple[str, str]:
    """The code and message with which *call* is refused."""
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError) as caught:
        call(**parameters)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


class ScriptedRunner:
    """A runner that starts nothing: a test tells it how each attempt ends. For what no real job does on demand."""

    def __init__(self, *endings: str, reason: str | None = None) -> None:
        self._endings, self._reason = list(endings), reason
        self.orders: list[Any] = []

    def __call__(self, order: Any, listener: Any) -> Any:
        self.orders.append(order)
        return _Attempt(listener, self._endings.pop(0), self._reason)


class _Attempt:
    def __init__(self, listener: Any, kind: str, reason: str | None) -> None:
        self._listener, self._kind, self._reason, self._told = listener, kind, reason, ""

    def run(self) -> Ending:
        self._listener.state("Downloading", "Downloading input data")
        self._listener.state("Training", "Training in progress.")
        while self._kind == "until told" and not self._told:
            time.sleep(0.01)
        kind = self._told or self._kind
        return Ending(kind, (1 if kind == "failed" else 0,), self._reason if kind == "failed" else None, 1.0, "folder")

    def stop(self) -> None:
        self._told = "stopped"

    def reclaim(self) -> None:
        self._told = "reclaimed"


def environment_of(url: str, region: str = REGION) -> dict[str, str]:
    """The environment of a command that is to see the rehearsal and none of this shell's own AWS settings."""
    import os

    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    away = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return {**kept, "PATH": path, **away, **control.environment(url, region)}
