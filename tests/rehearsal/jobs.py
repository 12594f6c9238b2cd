"""Jobs to run on moto's S3 and CloudWatch Logs, and what the tests ask of them."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.rehearsal import container, runner
from orchestrator.rehearsal.runner import Ending, JobOrder, Runner
from tests.bootstrap.conftest import BOOTSTRAP, Files, archive_of, manifest_digest

BUCKET = "rehearsed"
BOOTSTRAP_COMMAND = ["/bin/bash", "-c", "exec python3 -u /opt/ml/input/data/code/bootstrap.py"]


@dataclass
class Seen:
    """A listener that remembers."""

    states: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def state(self, secondary: str, message: str) -> None:
        self.states.append(secondary)
        self.messages.append(message)


@dataclass
class Cloud:
    """moto's S3 and Logs, and jobs that use them."""

    endpoint: str
    s3: Any
    logs: Any

    def put(self, key: str, body: bytes | str) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        body: bytes = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    def keys(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [item["Key"].removeprefix(prefix) for item in found]

    def unpacked(self, key: str) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(self.get(key))) as tar:
            files = [member for member in tar.getmembers() if member.isfile()]
            return {member.name: tar.extractfile(member).read() for member in files}  # type: ignore[union-attr]

    def streams(self, job: str) -> list[str]:
        found = self.logs.describe_log_streams(logGroupName=runner.LOG_GROUP, logStreamNamePrefix=job + "/")
        return [stream["logStreamName"] for stream in found["logStreams"]]

    def lines(self, stream: str) -> list[str]:
        found: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = self.logs.get_log_events(
                logGroupName=runner.LOG_GROUP, logStreamName=stream, startFromHead=True, **token
            )
            found += [event["message"] for event in page["events"]]
            if token == {"nextToken": page["nextForwardToken"]}:
                return found
            token = {"nextToken": page["nextForwardToken"]}


@pytest.fixture(scope="module")
def moto_cloud() -> Iterator[Cloud]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    session = boto3.Session(aws_access_key_id="tests", aws_secret_access_key="tests", region_name="us-east-1")
    s3, logs = (session.client(name, endpoint_url=endpoint) for name in ("s3", "logs"))
    s3.create_bucket(Bucket=BUCKET)
    yield Cloud(endpoint, s3, logs)
    s3.close()
    logs.close()
    server.stop()


@pytest.fixture(params=[container.NAMESPACES, container.FOLDER])
def each_level(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if chosen == container.NAMESPACES and runner.best_level() != chosen:
        pytest.skip("this kernel does not let this user make namespaces")
    return chosen


def job_order(cloud: Cloud, folder: Path, command: list[str], *, level: str | None = None, **fields: Any) -> JobOrder:
    """An order for a job of *command*; *fields* are the request's, or grace_seconds, attempt, name."""
    own = {name: fields.pop(name) for name in ("grace_seconds", "attempt") if name in fields}
    name = fields.pop("name", None) or f"job-{uuid.uuid4().hex[:12]}"
    request = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingInputMode": "File", "ContainerEntrypoint": command},
        "RoleArn": "arn:aws:iam::123456789012:role/trainer",
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        **fields,
    }
    arn = f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{name}"
    return JobOrder(name, arn, "us-east-1", request, folder, cloud.endpoint, level=level, **own)


def channel(name: str, uri: str, **fields: Any) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    source |= {key: fields.pop(key) for key in list(fields) if key.startswith("S3")}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **fields}


def with_bootstrap(cloud: Cloud, folder: Path, files: Files, **fields: Any) -> JobOrder:
    """An order for a job that bootstrap.py starts, as ours are: its package and job.json are in S3."""
    job = {
        "version": 1,
        "run_id": f"r-{uuid.uuid4().hex[:12]}",
        "script": next(iter(files)),
        "arguments": [],
        "hyperparameters": {},
        "environment": {},
        "package_digest": manifest_digest(files),
        "processes": 1,
        "grace_seconds": 60,
        **fields.pop("job", {}),
    }
    prefix = f"ours/{job['run_id']}"
    cloud.put(f"{prefix}/code/bootstrap.py", BOOTSTRAP.read_bytes())
    cloud.put(f"{prefix}/code/package.tar.gz", archive_of(files))
    cloud.put(f"{prefix}/job/job.json", json.dumps(job))
    channels = [channel(name, f"s3://{BUCKET}/{prefix}/{name}/") for name in ("code", "job")]
    return job_order(cloud, folder, BOOTSTRAP_COMMAND, InputDataConfig=channels, **fields)


def run(order: JobOrder, seen: Seen | None = None) -> Ending:
    ending = Runner(order, seen or Seen()).run()
    assert processes_of(order.folder) == []
    return ending


@dataclass
class Started:
    """A job that runs in a thread, as the service runs it."""

    runner: Runner
    thread: threading.Thread
    endings: list[Ending]

    def ended(self) -> Ending:
        self.thread.join(60)
        assert self.endings, "the job did not end"
        return self.endings[0]


def start(order: JobOrder, seen: Seen | None = None) -> Started:
    one, endings = Runner(order, seen or Seen()), []  # type: ignore[var-annotated]
    thread = threading.Thread(target=lambda: endings.append(one.run()))
    thread.start()
    return Started(one, thread, endings)


def host_root(order: JobOrder, host: str = "algo-1") -> Path:
    return order.folder / f"attempt-{order.attempt}" / host


def processes_of(folder: Path) -> list[str]:
    """Live processes of jobs in *folder*, found by their home folder, or by their command."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
            if (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and any(str(folder) in word for word in words)
            ):
                found.append(f"{process.pid} {words[0]}")
        except psutil.Error:
            continue
    return found


WAITING = """
    import os, pathlib, signal, sys, time
    root = pathlib.Path(os.environ["SM_MODEL_DIR"]).parent
    def stop(*_):
        print("saving", flush=True)
        (root / "checkpoints/step.txt").write_text("7")
        (root / "model/weights.txt").write_text("w")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    print("resumed from", [p.read_text() for p in (root / "checkpoints").iterdir()], flush=True)
    (root / "output/data/ready").write_text("")
    while not os.environ.get("LEAVE"):
        time.sleep(0.05)
"""
