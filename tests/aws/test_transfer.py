"""S3: nothing sent twice, nothing overwritten, and what arrives is what was stored."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.aws import transfer
from orchestrator.aws.client import Aws
from orchestrator.aws.folders import survey
from orchestrator.aws.transfer import Bucket
from orchestrator.errors import BadInput, CloudRefused, Conflict
from tests.aws.conftest import OWNER, REGION, Calls
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


def stored(aws: Aws, bucket: Bucket, key: str) -> bytes:
    body = aws.client("s3").get_object(Bucket=bucket.name, Key=key)["Body"]
    with body:
        content: bytes = body.read()
    return content


def store(aws: Aws, bucket: Bucket, key: str, content: bytes, **options: Any) -> None:
    aws.client("s3").put_object(Bucket=bucket.name, Key=key, Body=content, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multipart from 8 MiB on, in parts of S3's least size: as it goes with large files, only sooner."""
    monkeypatch.setattr(transfer, "MULTIPART_BYTES", 8 << 20)
    monkeypatch.setattr(transfer, "PART_BYTES", 5 << 20)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(12 << 20))
    return path


# Sending


def test_what_is_put_is_stored_with_its_checksum_and_not_sent_again(aws: Aws, bucket: Bucket, calls: Calls) -> None:
    told: list[tuple[str, int, int]] = []
    assert bucket.put(b"content", "code/x.tar.gz", progress=lambda *words: told.append(words))
    assert not bucket.put(b"content", "code/x.tar.gz")
    assert stored(aws, bucket, "code/x.tar.gz") == b"content"
    [sent] = calls.of("PutObject")
    assert base64.b64decode(sent["ChecksumSHA256"]) == hashlib.sha256(b"content").digest()
    assert sent["IfNoneMatch"] == "*"
    assert told == [("uploading x.tar.gz", 7, 7)]


def test_a_file_is_put_as_bytes_are(aws: Aws, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert bucket.put(tmp_path / "file", "x")
    assert not bucket.put(b"content", "x")


def test_what_another_tool_put_there_is_known_by_its_md5(aws: Aws, bucket: Bucket, calls: Calls) -> None:
    store(aws, bucket, "x", b"content")
    assert not bucket.put(b"content", "x")
    assert calls.writes() == []


@pytest.mark.parametrize("other", [b"poison!", b"longer than it was", b""])
def test_something_else_at_the_key_is_a_conflict_and_stays(
    other: bytes, aws: Aws, bucket: Bucket, calls: Calls
) -> None:
    store(aws, bucket, "x", other)
    with pytest.raises(Conflict, match="is not what belongs there"):
        bucket.put(b"content", "x")
    assert stored(aws, bucket, "x") == other
    assert calls.writes() == []
    assert bucket.put(b"content", "x", always=True)
    assert stored(aws, bucket, "x") == b"content"


@pytest.mark.parametrize("faster", [b"content", b"another"])
def test_another_submit_that_was_faster_is_found_out(faster: bytes, aws: Aws, bucket: Bucket, calls: Calls) -> None:
    def overtake(**_: Any) -> None:
        if not calls.of("PutObject")[1:]:
            store(aws, bucket, "x", faster)

    aws.client("s3", attempts=5).meta.events.register("before-call.s3.PutObject", overtake)
    if faster == b"content":
        assert not bucket.put(b"content", "x")
    else:
        with pytest.raises(Conflict):
            bucket.put(b"content", "x")
    assert stored(aws, bucket, "x") == faster


def test_a_large_file_is_sent_in_parts_each_with_its_checksum(
    small_parts: None, aws: Aws, bucket: Bucket, calls: Calls, large: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    assert bucket.put(large, "x", progress=lambda *words: told.append(words))
    assert stored(aws, bucket, "x") == large.read_bytes()
    parts = calls.of("UploadPart")
    assert sorted(len(part["Body"]) for part in parts) == [2 << 20, 5 << 20, 5 << 20]
    assert all(base64.b64decode(part["ChecksumSHA256"]) == hashlib.sha256(part["Body"]).digest() for part in parts)
    assert [part["PartNumber"] for part in calls.of("CompleteMultipartUpload")[0]["MultipartUpload"]["Parts"]] == [
        1,
        2,
        3,
    ]
    assert calls.of("CompleteMultipartUpload")[0]["IfNoneMatch"] == "*"
    assert told[-1][1:] == (12 << 20, 12 << 20)
    assert not bucket.put(large, "x")
    assert len(calls.of("UploadPart")) == 3


def test_an_upload_in_parts_that_fails_is_aborted(
    small_parts: None, aws: Aws, bucket: Bucket, calls: Calls, large: Path
) -> None:
    def fail(params: dict[str, Any], **_: Any) -> None:
        if params.get("PartNumber") == 2:
            raise RuntimeError("the cable is out")

    aws.client("s3", attempts=5).meta.events.register("provide-client-params.s3.UploadPart", fail)
    with pytest.raises(RuntimeError):
        bucket.put(large, "x")
    assert len(calls.of("AbortMultipartUpload")) == 1
    assert "Uploads" not in aws.client("s3").list_multipart_uploads(Bucket=bucket.name)


def test_what_a_crashed_upload_left_is_ended_by_the_next(
    small_parts: None, aws: Aws, bucket: Bucket, large: Path
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from orchestrator.aws import transfer\n"
        "from orchestrator.aws.client import Aws\n"
        "transfer.MULTIPART_BYTES, transfer.PART_BYTES = 8 << 20, 5 << 20\n"
        "aws = Aws('us-east-1', endpoint=sys.argv[1])\n"
        "transfer.Bucket(aws, sys.argv[2], sys.argv[3]).put(Path(sys.argv[4]), 'x')\n"
    )
    words = [sys.executable, "-c", code, str(aws.endpoint), bucket.name, OWNER, str(large)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ORCHESTRATE_CRASH_AT": "parts put"}
    assert subprocess.run(words, env=environment).returncode == -9
    plain = aws.client("s3")
    plain.create_multipart_upload(Bucket=bucket.name, Key="x-of-another")
    assert len(plain.list_multipart_uploads(Bucket=bucket.name)["Uploads"]) == 2
    assert bucket.put(large, "x")
    assert [one["Key"] for one in plain.list_multipart_uploads(Bucket=bucket.name)["Uploads"]] == ["x-of-another"]
    assert stored(aws, bucket, "x") == large.read_bytes()


def test_two_submits_of_one_large_file_at_once_both_end_well(
    small_parts: None, aws: Aws, bucket: Bucket, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # moto dates each upload to 2010: each submit would take the other's for a crashed one's and end it, as on AWS none does
    monkeypatch.setattr(bucket, "_abort_stale", lambda _: None)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(bucket.put(large, "x"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 2
    assert True in answers
    assert stored(aws, bucket, "x") == large.read_bytes()


def test_a_key_of_kms_is_named_on_every_write(
    small_parts: None, aws: Aws, bucket: Bucket, calls: Calls, large: Path
) -> None:
    key = "arn:aws:kms:us-east-1:123456789012:key/0"
    encrypting = Bucket(aws, bucket.name, OWNER, kms_key=key)
    encrypting.put(b"small", "from/small")
    encrypting.put(large, "large")
    encrypting.copy_prefix("from/", "to/")
    for operation in ("PutObject", "CreateMultipartUpload", "CopyObject"):
        assert {call["SSEKMSKeyId"] for call in calls.of(operation)} == {key}, operation


def test_a_login_that_may_not_list_uploads_may_still_make_them(
    small_parts: None, aws: Aws, bucket: Bucket, calls: Calls, large: Path
) -> None:
    from botocore.exceptions import ClientError

    def deny(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "ListMultipartUploads")

    aws.client("s3", attempts=5).meta.events.register("before-call.s3.ListMultipartUploads", deny)
    assert bucket.put(large, "x")
    assert calls.of("ListMultipartUploads")
    assert stored(aws, bucket, "x") == large.read_bytes()


def test_what_is_read_is_what_is_there_or_nothing(aws: Aws, bucket: Bucket) -> None:
    store(aws, bucket, "x", b"content")
    assert bucket.read("x") == b"content"
    assert bucket.read("y") is None


def test_a_folder_half_sent_is_gone_on_with(aws: Aws, bucket: Bucket, calls: Calls, data: Path) -> None:
    bucket.put(data / "a/two", "data/d/a/two")
    content = survey(data)
    told: list[tuple[str, int, int]] = []
    sent = bucket.put_folder(content, data, "data/d/", progress=lambda *words: told.append(words))
    assert sent == content.size_bytes - 1000
    assert [call["Key"] for call in calls.of("PutObject")].count("data/d/a/two") == 1
    assert {found.key for found in bucket.list("data/d/")} == {f"data/d/{path}" for path, _, _ in content.files}
    assert told[-1] == ("uploading data", content.size_bytes, content.size_bytes)


def test_checkpoints_are_copied_within_the_bucket_and_replace_nothing(aws: Aws, bucket: Bucket, calls: Calls) -> None:
    for name in ("last.pt", "epochs/1.pt", "with space+ü"):
        store(aws, bucket, f"runs/a/checkpoints/{name}", name.encode())
    store(aws, bucket, "runs/b/checkpoints/last.pt", b"newer")
    assert bucket.copy_prefix("runs/a/checkpoints/", "runs/b/checkpoints/") == 2
    assert stored(aws, bucket, "runs/b/checkpoints/with space+ü") == "with space+ü".encode()
    assert stored(aws, bucket, "runs/b/checkpoints/last.pt") == b"newer"
    assert {call["ExpectedSourceBucketOwner"] for call in calls.of("CopyObject")} == {OWNER}
    assert bucket.copy_prefix("runs/a/checkpoints/", "runs/b/checkpoints/") == 0


def test_objects_too_large_for_one_copy_are_copied_in_parts(
    aws: Aws, bucket: Bucket, calls: Calls, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "COPY_BYTES", 8 << 20)
    monkeypatch.setattr(transfer, "COPY_PART_BYTES", 5 << 20)
    store(aws, bucket, "a/x", large.read_bytes())
    assert bucket.copy_prefix("a/", "b/") == 1
    assert len(calls.of("UploadPartCopy")) == 3
    assert stored(aws, bucket, "b/x") == large.read_bytes()


def test_a_list_of_many_pages_is_read_to_its_end(aws: Aws, bucket: Bucket, calls: Calls) -> None:
    for name in ("a", "b+", "c d", "folder/", "folder/ü"):
        store(aws, bucket, f"many/{name}", b"")
    events = aws.client("s3", attempts=5).meta.events
    events.register("provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 2})
    assert [found.key for found in bucket.list("many/")] == ["many/a", "many/b+", "many/c d", "many/folder/ü"]
    assert len(calls.of("ListObjectsV2")) == 3


# The bucket


def test_a_bucket_that_is_there_is_fine(bucket: Bucket) -> None:
    bucket.check(REGION)


def test_a_missing_bucket_is_told_with_the_line_that_makes_it(aws: Aws, calls: Calls) -> None:
    with pytest.raises(CloudRefused, match="no bucket nowhere-to-be-found") as refused:
        Bucket(aws, "nowhere-to-be-found", OWNER).check(REGION)
    assert "aws s3 mb s3://nowhere-to-be-found --region us-east-1" in str(refused.value.hint)


def test_a_bucket_in_another_region_is_told(aws: Aws, calls: Calls) -> None:
    place = {"LocationConstraint": "eu-west-1"}
    aws.client("s3").create_bucket(Bucket="bucket-in-ireland", CreateBucketConfiguration=place)
    with pytest.raises(CloudRefused, match="in eu-west-1, and the job would run in us-east-1"):
        Bucket(aws, "bucket-in-ireland", OWNER).check(REGION)


# Fetching


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_what_is_fetched_is_what_was_stored(size: int, aws: Aws, bucket: Bucket, tmp_path: Path) -> None:
    content = os.urandom(size)
    store(aws, bucket, "x", content)
    told: list[tuple[str, int, int]] = []
    assert bucket.fetch("x", tmp_path / "to", progress=lambda *words: told.append(words)) == tmp_path / "to"
    assert (tmp_path / "to").read_bytes() == content
    assert names(tmp_path) == ["to"]
    assert told[-1] == ("downloading to", size, size)


def test_what_is_there_already_is_not_fetched_again(aws: Aws, bucket: Bucket, calls: Calls, tmp_path: Path) -> None:
    bucket.put(b"content", "x")
    bucket.fetch("x", tmp_path / "to")
    bucket.fetch("x", tmp_path / "to")
    assert len(calls.of("GetObject")) == 1
    (tmp_path / "to").write_bytes(b"CONTENT")
    bucket.fetch("x", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == b"content"


def test_a_missing_object_is_one_line(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(CloudRefused, match="there is no s3://"):
        bucket.fetch("nothing", tmp_path / "to")
    assert names(tmp_path) == []


class Flaky(BaseHTTPRequestHandler):
    """One object of S3's, whose server breaks bodies off as `script` says: after so many bytes, or None for all."""

    def do_HEAD(self) -> None:
        self._answer(200, len(self.server.content))  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        server: Any = self.server
        server.before_get()
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])  # type: ignore[index]
        server.asked.append(start)
        if self.headers["If-Match"] != self._etag():
            body = b"<Error><Code>PreconditionFailed</Code></Error>"
            self._answer(412, len(body))
            self.wfile.write(body)
            return
        left = server.content[start:]
        cut = server.script.pop(0) if server.script else None
        self._answer(206, len(left), f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.wfile.write(server.damage(left)[:cut])
        self.close_connection = True

    def _etag(self) -> str:
        return f'"{hashlib.md5(self.server.content).hexdigest()}"'  # type: ignore[attr-defined]

    def _answer(self, status: int, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", self._etag())
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 18:00:00 GMT")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def flaky() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        made: Any = server
        made.content, made.script, made.asked = os.urandom(300_000), [], []
        made.before_get, made.damage = lambda: None, lambda content: content
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def flaky_bucket(flaky: Any) -> Iterator[Bucket]:
    with Aws(REGION, endpoint=f"http://127.0.0.1:{flaky.server_port}") as aws:
        yield Bucket(aws, "bucket", OWNER)


def test_an_answer_that_breaks_off_is_gone_on_with(flaky: Any, flaky_bucket: Bucket, tmp_path: Path) -> None:
    flaky.script = [100_000, 0, 0, 0, 50_000, 0, 0, 0, 0]
    flaky_bucket.fetch("x", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == flaky.content
    assert flaky.asked == [0, *[100_000] * 4, *[150_000] * 5]


def test_a_download_that_stops_for_good_is_resumed_by_the_next(
    flaky: Any, flaky_bucket: Bucket, tmp_path: Path
) -> None:
    from botocore.exceptions import BotoCoreError

    flaky.script = [120_000, 0, 0, 0, 0, 0]
    with pytest.raises(BotoCoreError):
        flaky_bucket.fetch("x", tmp_path / "to")
    assert not (tmp_path / "to").exists()
    flaky.script, flaky.asked = [], []
    flaky_bucket.fetch("x", tmp_path / "to")
    assert flaky.asked == [120_000]
    assert (tmp_path / "to").read_bytes() == flaky.content
    assert names(tmp_path) == ["to"]


def test_an_object_replaced_in_the_middle_is_fetched_anew(flaky: Any, flaky_bucket: Bucket, tmp_path: Path) -> None:
    new = os.urandom(200_000)
    flaky.script = [120_000]

    def replace() -> None:
        if len(flaky.asked) == 1:
            flaky.content = new

    flaky.before_get = replace
    flaky_bucket.fetch("x", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == new
    assert names(tmp_path) == ["to"]


def test_what_arrives_damaged_is_fetched_again_and_then_refused(
    flaky: Any, flaky_bucket: Bucket, tmp_path: Path
) -> None:
    wrong = [True]
    flaky.damage = lambda content: content[:-1] + b"?" if wrong.pop() else content
    wrong[:] = [False, True]
    flaky_bucket.fetch("x", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == flaky.content
    wrong[:] = [True, True]
    with pytest.raises(CloudRefused, match="damaged twice"):
        flaky_bucket.fetch("x", tmp_path / "again")
    assert names(tmp_path) == ["to"]


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    flaky: Any, flaky_bucket: Bucket, small_disk: Path
) -> None:
    flaky.content = bytes(3_000_000)
    with pytest.raises(BadInput, match="still to come"):
        flaky_bucket.fetch("x", small_disk / "to")
    assert flaky.asked == []
