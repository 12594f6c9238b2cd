"""A loopback S3, STS and CloudWatch Logs (moto's), and clients of it that say what they were asked."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.aws.client import Aws
from orchestrator.aws.transfer import Bucket

OWNER = "123456789012"  # the account of moto's buckets
REGION = "us-east-1"
_numbers = itertools.count(1)


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is such a thing: for tests that rename files by the ten thousand."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="orchestrate-test-", dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(moto_endpoint: str) -> Iterator[Aws]:
    with Aws(REGION, endpoint=moto_endpoint) as made:
        yield made


class Calls(list[tuple[str, dict[str, Any]]]):
    """Each call that an S3 client was asked to make: operation and parameters."""

    def of(self, operation: str) -> list[dict[str, Any]]:
        return [parameters for name, parameters in self if name == operation]

    def writes(self) -> list[str]:
        return [name for name, _ in self if name.startswith(("Put", "Upload", "Copy", "Create", "Complete"))]


@pytest.fixture
def bucket_name(aws: Aws) -> str:
    name = f"bucket-{next(_numbers)}"
    aws.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def calls(aws: Aws, bucket_name: str) -> Iterator[Calls]:
    """What Bucket asks S3 for; at the end, that each call of it named the account that has to own the bucket."""
    made = Calls()

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        made.append((model.name, dict(params)))

    aws.client("s3", attempts=5).meta.events.register("provide-client-params.s3.*", note)
    yield made
    strangers = [name for name, parameters in made if parameters.get("ExpectedBucketOwner") != OWNER]
    assert not strangers


@pytest.fixture
def bucket(aws: Aws, bucket_name: str, calls: Calls) -> Bucket:
    return Bucket(aws, bucket_name, OWNER)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder of five files."""
    folder = tmp_path / "data"
    (folder / "a/b").mkdir(parents=True)
    for number, name in enumerate(["a/b/one.npz", "a/two", "ümläut", "empty", ".hidden"]):
        (folder / name).write_bytes(b"x" * 1000 * number if name != "empty" else b"")
    return folder
