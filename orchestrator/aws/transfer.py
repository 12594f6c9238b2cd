"""To S3 and back: nothing is sent that is there, nothing is overwritten, and what arrives is what was stored."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import glob
import hashlib
import io
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from orchestrator import crashpoints
from orchestrator.aws.client import Aws
from orchestrator.aws.folders import FolderContent, Progress
from orchestrator.errors import BadInput, CloudRefused, Conflict

MULTIPART_BYTES = 64 << 20  # from here on a file is sent in parts
PART_BYTES, MOST_PARTS = 16 << 20, 10_000
COPY_BYTES = 5 << 30  # CopyObject takes no more; larger objects are copied in parts of COPY_PART_BYTES
COPY_PART_BYTES = 512 << 20
THREADS = 4
STALE_UPLOAD = timedelta(hours=24)
TRIES = 5  # in a row without a byte
_BLOCK_BYTES = 1 << 20
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class S3Object:
    key: str
    size: int  # bytes
    etag: str
    modified: datetime


class _Source:
    """What is to be sent, and what S3 will call it: the SHA-256 of the whole, or of its parts' digests."""

    def __init__(self, data: Path | bytes) -> None:
        self.path = data if isinstance(data, Path) else None
        self._data = b"" if isinstance(data, Path) else data
        self.size = os.stat(data).st_size if isinstance(data, Path) else len(data)  # noqa: PTH116 - follows links alike
        step = -(-self.size // MOST_PARTS)
        self.part_bytes = max(PART_BYTES, -(-step // (1 << 20)) << 20)
        self.whole, self.md5, self.parts = self._hashed()

    @property
    def in_parts(self) -> bool:
        return self.size >= MULTIPART_BYTES

    @property
    def composite(self) -> str:
        """S3's checksum of an object that was sent in these parts, without the `-N` that some answers append."""
        return _base64(hashlib.sha256(b"".join(self.parts)).digest())

    def open(self) -> BinaryIO:
        return io.BytesIO(self._data) if self.path is None else self.path.open("rb")

    def _hashed(self) -> tuple[bytes, str, list[bytes]]:
        whole, md5, parts = hashlib.sha256(), hashlib.md5(usedforsecurity=False), []
        left = self.size
        with self.open() as file:
            while left > 0:
                part, left_of_part = hashlib.sha256(), min(left, self.part_bytes)
                left -= left_of_part
                while left_of_part:
                    block = file.read(min(_BLOCK_BYTES, left_of_part))
                    if not block:
                        raise self.changed()
                    left_of_part -= len(block)
                    for hashed in (whole, md5, part):
                        hashed.update(block)
                parts.append(part.digest())
        return whole.digest(), md5.hexdigest(), parts

    def changed(self) -> BadInput:
        return BadInput(f"{self.path} changed while it was sent", hint="submit again once nothing writes to it")


class Bucket:
    """One bucket, every call with *owner*, the account that it has to belong to.

    Errors are raised as botocore has them, but for those that a remedy in one line is known for. With *kms_key*, what is
    put is encrypted with it.
    """

    def __init__(self, aws: Aws, name: str, owner: str, *, kms_key: str | None = None) -> None:
        self.name, self._owner = name, owner
        self._s3 = aws.client("s3", attempts=5)
        self._in_bucket = {"Bucket": name, "ExpectedBucketOwner": owner}
        self._encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}

    def check(self, region: str) -> None:
        """Raises CloudRefused unless the bucket is there, the owner's, and in *region*."""
        try:
            answer = self._s3.head_bucket(**self._in_bucket)
        except Exception as error:
            if _code(error) in _MISSING:
                hint = f"aws s3 mb s3://{self.name} --region {region}   or name another: --bucket"
                raise CloudRefused(f"there is no bucket {self.name}", hint=hint) from error
            if _code(error) in ("403", "AccessDenied"):
                what = f"bucket {self.name} is not account {self._owner}'s, or this login may not use it"
                raise CloudRefused(what, hint="--bucket with one of that account, or ask for s3:ListBucket") from error
            if _code(error) in ("301", "PermanentRedirect"):
                raise self._elsewhere(_header(error, "x-amz-bucket-region") or "another region", region) from error
            raise
        found = answer.get("BucketRegion") or _header(answer, "x-amz-bucket-region")
        if found and found != region:
            raise self._elsewhere(found, region)

    def _elsewhere(self, found: str, region: str) -> CloudRefused:
        what = f"bucket {self.name} is in {found}, and the job would run in {region}: SageMaker takes neither across"
        return CloudRefused(what, hint=f"--region {found}, or --bucket with one in {region}")

    def put(self, source: Path | bytes, key: str, *, progress: Progress | None = None, always: bool = False) -> bool:
        """Store *source* at *key*; False where it was there already and nothing was sent.

        Raises Conflict where something else is at *key*, which stays as it is. always: replace whatever is there, unasked.
        """
        name = source.name if isinstance(source, Path) else key.rpartition("/")[2]
        prepared = _Source(source)
        return self._put(prepared, key, _Counted(f"uploading {name}", progress, prepared.size), always=always)

    def put_folder(self, content: FolderContent, folder: Path, prefix: str, *, progress: Progress | None = None) -> int:
        """Store what is not yet there of a surveyed folder below *prefix*, which ends in /; returns the bytes sent.

        Raises BadInput for a file that is no longer what the survey found.
        """
        there = {found.key: found.size for found in self.list(prefix)}
        counted = _Counted(f"uploading {folder.name}", progress, content.size_bytes)
        sent: list[int] = []

        def send(file: tuple[str, int, str]) -> None:
            path, size_bytes, sha256 = file
            source = _Source(folder / path)
            if source.size != size_bytes or source.whole.hex() != sha256:
                raise source.changed()
            if self._put(source, f"{prefix}{path}", counted, ask_first=f"{prefix}{path}" in there):
                sent.append(size_bytes)

        _in_threads(send, content.files)
        return sum(sent)

    def _put(
        self, source: _Source, key: str, counted: _Counted, *, always: bool = False, ask_first: bool = True
    ) -> bool:
        for _ in range(TRIES):
            if not always and ask_first and self._is_there(source, key):
                counted.add(source.size)
                return False
            crashpoints.reached("object about to be put")
            try:
                (self._send_parts if source.in_parts else self._send_whole)(source, key, counted, always)
            except Exception as error:
                if _code(error) in ("BadDigest", "XAmzContentChecksumMismatch"):
                    raise source.changed() from error
                if _code(error) not in _OUTRUN:
                    raise
                ask_first = True  # another submit has just put it, or ended our upload
            else:
                crashpoints.reached("object put")
                return True
        raise Conflict(f"s3://{self.name}/{key} is being written by others all the time", hint="submit again later")

    def _send_whole(self, source: _Source, key: str, counted: _Counted, always: bool) -> None:
        checksum = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": _base64(source.whole)}
        with source.open() as body:
            self._s3.put_object(
                Key=key, Body=body, **_unless_there(always), **checksum, **self._in_bucket, **self._encryption
            )
        counted.add(source.size)

    def _send_parts(self, source: _Source, key: str, counted: _Counted, always: bool) -> None:
        self._abort_stale(key)
        composite = {"ChecksumAlgorithm": "SHA256", "ChecksumType": "COMPOSITE"}
        upload = self._s3.create_multipart_upload(Key=key, **composite, **self._in_bucket, **self._encryption)
        of_upload = {"Key": key, "UploadId": upload["UploadId"], **self._in_bucket}
        sent: list[int] = []

        def send(number: int) -> dict[str, Any]:
            with source.open() as file:
                file.seek(number * source.part_bytes)
                body = file.read(source.part_bytes)
            checksum = _base64(source.parts[number])
            if _base64(hashlib.sha256(body).digest()) != checksum:
                raise source.changed()
            answer = self._s3.upload_part(
                PartNumber=number + 1, Body=body, ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum, **of_upload
            )
            counted.add(len(body))
            sent.append(len(body))
            return {"PartNumber": number + 1, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

        try:
            parts = _in_threads(send, range(len(source.parts)))
            crashpoints.reached("parts put")
            self._s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **_unless_there(always), **of_upload)
        except BaseException:
            counted.add(-sum(sent))
            with contextlib.suppress(Exception):  # the error that led here is the one to tell
                self._s3.abort_multipart_upload(**of_upload)
            raise

    def _abort_stale(self, key: str) -> None:
        """End what an upload that crashed left of *key*: parts cost money unseen. A younger one may be another submit's."""
        with contextlib.suppress(Exception):  # housekeeping: a login that may not list uploads may still make one
            for page in self._s3.get_paginator("list_multipart_uploads").paginate(Prefix=key, **self._in_bucket):
                for upload in page.get("Uploads", ()):
                    if upload["Key"] == key and datetime.now(UTC) - upload["Initiated"] > STALE_UPLOAD:
                        with contextlib.suppress(Exception):  # its end may have come meanwhile
                            self._s3.abort_multipart_upload(Key=key, UploadId=upload["UploadId"], **self._in_bucket)

    def _is_there(self, source: _Source, key: str) -> bool:
        """Is *source* at *key*, by what S3 itself computed? Raises Conflict where something else is."""
        head = self._head(key)
        if head is None:
            return False
        stored, kind = str(head.get("ChecksumSHA256", "")).partition("-")[0], head.get("ChecksumType")
        if stored:
            same = stored in ((source.composite,) if kind == "COMPOSITE" else (_base64(source.whole), source.composite))
        else:
            same = _md5_of(head) == source.md5
        if not (same and head["ContentLength"] == source.size):
            what = f"s3://{self.name}/{key} is not what belongs there; it was left as it is"
            raise Conflict(what, hint=f"see who wrote it; aws s3 rm s3://{self.name}/{key}   then submit again")
        return True

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            head: dict[str, Any] = self._s3.head_object(Key=key, ChecksumMode="ENABLED", **self._in_bucket)
        except Exception as error:
            if _code(error) in _MISSING:
                return None
            raise
        return head

    def read(self, key: str) -> bytes | None:
        """A small object's content; None where there is none."""
        try:
            answer = self._s3.get_object(Key=key, **self._in_bucket)
        except Exception as error:
            if _code(error) in _MISSING:
                return None
            raise
        with contextlib.closing(answer["Body"]) as body:
            content: bytes = body.read()
        return content

    def copy_prefix(self, from_prefix: str, to_prefix: str) -> int:
        """Copy within the bucket what lies below *from_prefix* and is not yet below *to_prefix*; returns how many objects."""
        there = {found.key for found in self.list(to_prefix)}
        wanted = [(found, f"{to_prefix}{found.key.removeprefix(from_prefix)}") for found in self.list(from_prefix)]
        missing = [(found, key) for found, key in wanted if key not in there]
        _in_threads(lambda pair: self._copy(*pair), missing)
        return len(missing)

    def _copy(self, found: S3Object, key: str) -> None:
        source = {
            "CopySource": {"Bucket": self.name, "Key": found.key},
            "CopySourceIfMatch": found.etag,
            "ExpectedSourceBucketOwner": self._owner,
        }
        crashpoints.reached("object about to be copied")
        if found.size > COPY_BYTES:
            self._copy_parts(found, key, source)
        else:
            try:
                self._s3.copy_object(Key=key, IfNoneMatch="*", **source, **self._in_bucket, **self._encryption)
            except Exception as error:
                if _code(error) not in _OUTRUN:
                    raise
        crashpoints.reached("object copied")

    def _copy_parts(self, found: S3Object, key: str, source: dict[str, Any]) -> None:
        upload = self._s3.create_multipart_upload(Key=key, **self._in_bucket, **self._encryption)
        of_upload = {"Key": key, "UploadId": upload["UploadId"], **self._in_bucket}
        try:
            parts = []
            for number, start in enumerate(range(0, found.size, COPY_PART_BYTES), 1):
                span = f"bytes={start}-{min(start + COPY_PART_BYTES, found.size) - 1}"
                answer = self._s3.upload_part_copy(PartNumber=number, CopySourceRange=span, **source, **of_upload)
                parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
            self._s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **of_upload)
        except BaseException:
            with contextlib.suppress(Exception):  # the error that led here is the one to tell
                self._s3.abort_multipart_upload(**of_upload)
            raise

    def list(self, prefix: str) -> Iterator[S3Object]:
        """The objects whose keys begin with *prefix*, in S3's order. Marks of empty folders (keys that end in /) are not."""
        for page in self._s3.get_paginator("list_objects_v2").paginate(Prefix=prefix, **self._in_bucket):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    yield S3Object(found["Key"], found["Size"], found["ETag"], found["LastModified"])

    def fetch(self, key: str, target: Path, *, progress: Progress | None = None) -> Path:
        """Download *key* to *target*: beside it first, going on where an earlier try stopped, verified, then renamed.

        Verified are the size, and the SHA-256, CRC-32 or MD5 of the whole where S3 tells one (of an object that was
        stored in parts it need not). A target that is verified to be the object already is left as it is. Raises
        CloudRefused where there is no such object or it arrives damaged twice, Conflict where it never stops changing.
        """
        damaged = 0
        for _ in range(TRIES):
            head = self._head(key)
            if head is None:
                hint = f"aws s3 ls s3://{self.name}/{key.rpartition('/')[0]}/"
                raise CloudRefused(f"there is no s3://{self.name}/{key}", hint=hint)
            verified = _verifier(head)
            if verified and target.is_file() and target.stat().st_size == head["ContentLength"] and verified(target):
                return target
            counted = _Counted(f"downloading {target.name}", progress, head["ContentLength"])
            try:
                with _claimed_part(target, head) as (file, part):
                    self._download(key, head, file, counted)
                    if file.tell() == head["ContentLength"] and (verified is None or verified(part)):
                        os.fsync(file.fileno())
                        part.replace(target)
                        _fsync_folder(target.parent)
                        return target
                    part.unlink()
            except Exception as error:
                if _code(error) not in _OUTRUN:
                    raise
                continue  # it was replaced meanwhile: begin anew
            damaged += 1
            if damaged > 1:
                what = f"s3://{self.name}/{key} arrived damaged twice: its checksum is not the one that S3 stores"
                raise CloudRefused(what, hint="check this machine's disk and network, then try again")
        raise Conflict(f"s3://{self.name}/{key} is replaced faster than it can be read", hint="try again later")

    def _download(self, key: str, head: dict[str, Any], file: BinaryIO, counted: _Counted) -> None:
        """Append to *file* what it lacks of the object. Raises what the network did TRIES times in a row without a byte."""
        from botocore.exceptions import BotoCoreError

        size, failures = head["ContentLength"], 0
        have = file.seek(0, os.SEEK_END)
        counted.add(have)
        while have < size:
            before = have
            span = {"Range": f"bytes={have}-", "IfMatch": head["ETag"]}
            answer = self._s3.get_object(Key=key, **span, **self._in_bucket)
            try:
                with contextlib.closing(answer["Body"]) as body:
                    if answer.get("ContentRange") != f"bytes {have}-{size - 1}/{size}":
                        raise CloudRefused(f"s3://{self.name}/{key}: S3 sent another range than was asked for")
                    for block in body.iter_chunks(_BLOCK_BYTES):
                        have += file.write(block)
                        counted.add(len(block))
            except BotoCoreError:  # of a body that broke off: the client tries no more once the headers have come
                failures = failures + 1 if have == before else 0
                if failures >= TRIES:
                    raise
            else:
                if have < size and have == before:
                    raise CloudRefused(f"s3://{self.name}/{key}: S3 sent nothing where {size - have:,} bytes are left")
        file.flush()


class _Counted:
    """Bytes done of those expected, told to whoever wants to know, from any thread."""

    def __init__(self, words: str, progress: Progress | None, total: int) -> None:
        self._words, self._progress, self._total, self._done = words, progress, total, 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            if self._progress:
                self._progress(self._words, self._done, self._total)


def _in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """*work* done on each item, by a few threads, results in order. The first error ends it: nothing more is begun."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="s3") as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextlib.contextmanager
def _claimed_part(target: Path, head: dict[str, Any]) -> Iterator[tuple[BinaryIO, Path]]:
    """The beginning of this very object, beside *target*, to be appended to by this process alone.

    Its name carries the object's ETag: what an earlier object of that key has left is removed.
    """
    part = target.with_name(f".{target.name}.{hashlib.sha256(head['ETag'].encode()).hexdigest()[:16]}.part")
    try:
        while True:
            with part.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # another fetch of it: wait for its end
                if not _is_at(part, file):  # and it has renamed the file
                    continue
                for old in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
                    if old != part:
                        old.unlink(missing_ok=True)
                if file.seek(0, os.SEEK_END) > head["ContentLength"]:
                    file.truncate(0)
                _check_room(part, head["ContentLength"] - file.seek(0, os.SEEK_END))
                yield file, part
                return
    except OSError as error:
        what = f"cannot write {target}: {error.strerror or error}"
        raise BadInput(what, hint="free some space, or name another folder") from error


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _check_room(part: Path, wanted: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if wanted > free:
        what = f"{part.parent} has {free / 1e9:.1f} GB free, and {wanted / 1e9:.1f} GB are still to come"
        raise BadInput(what, hint="free some space, or name another folder")


def _verifier(head: dict[str, Any]) -> Callable[[Path], bool] | None:
    """What tells that a file is the object, by a checksum of the whole that S3 stores; None where it stores none."""
    if head.get("ChecksumType") != "COMPOSITE":
        if wanted := head.get("ChecksumSHA256"):
            return lambda path: _base64(_hashed(path, hashlib.sha256())) == wanted
        if wanted := head.get("ChecksumCRC32"):
            return lambda path: _base64(_crc32(path).to_bytes(4, "big")) == wanted
    if md5 := _md5_of(head):
        return lambda path: _hashed(path, hashlib.md5(usedforsecurity=False)).hex() == md5
    return None


def _md5_of(head: dict[str, Any]) -> str | None:
    """The MD5 in an object's ETag: that of one put in one piece, and not encrypted with a key of KMS or the caller's."""
    etag = head["ETag"].strip('"')
    encrypted = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
    return None if encrypted or "-" in etag else etag


def _hashed(path: Path, digest: Any) -> bytes:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    result: bytes = digest.digest()
    return result


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unless_there(always: bool) -> dict[str, str]:
    return {} if always else {"IfNoneMatch": "*"}


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


_MISSING = ("404", "NoSuchKey", "NotFound", "NoSuchBucket")
# Another put or replaced the object between two of our calls, or ended our multipart upload.
_OUTRUN = ("PreconditionFailed", "412", "ConditionalRequestConflict", "NoSuchUpload")


def _code(error: BaseException) -> str:
    """The service's code in a botocore ClientError; "" in any other error."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _header(answer: Any, name: str) -> str | None:
    response = getattr(answer, "response", answer)
    value: str | None = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(name)
    return value
