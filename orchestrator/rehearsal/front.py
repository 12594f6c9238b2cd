"""What every call meets before moto: whose it is, its faults, its bucket's owner, and our SageMaker.

SageMaker's operations stand here and not in moto's `SageMakerResponse`: a setattr there would hold for the whole process
(two rehearsals share a test process) and bind us to moto's inner request parser, while a front that must name each call for
its faults knows the operation, the region and the account anyway.
"""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from orchestrator.errors import OrchestrateError
from orchestrator.rehearsal.account import MotoAccount
from orchestrator.rehearsal.contract import Refused, over_quota
from orchestrator.rehearsal.faults import Faults, FaultSpec
from orchestrator.rehearsal.training_jobs import TrainingJobs

JSON_TYPE = "application/x-amz-json-1.1"
SCOPE = re.compile(r"Credential=[^/]*/\d{8}/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")
OTHER_ACCOUNT = re.compile(r"/as/(\d{12})(?=/|$)")  # no bucket's name is so short
# Code and HTTP status by kind of fault: of S3, of JSON services, of query services.
CODES = {
    "throttle": (("SlowDown", 503), ("ThrottlingException", 400), ("Throttling", 400)),
    "500": (("InternalError", 500), ("InternalFailure", 500), ("InternalFailure", 500)),
    "expired": (("ExpiredToken", 400), ("ExpiredTokenException", 400), ("ExpiredToken", 403)),
    "denied": (("AccessDenied", 403), ("AccessDeniedException", 400), ("AccessDenied", 403)),
}
WORDS = {
    "throttle": "Rate exceeded",
    "500": "We encountered an internal error. Please try again.",
    "expired": "The security token included in the request is expired",
    "denied": "Access Denied",
}
# Of S3's calls, by method, whether a key is named, and the subresource in the query (the longest match wins).
S3_OPERATIONS = {
    ("HEAD", False, ""): "HeadBucket",
    ("HEAD", True, ""): "HeadObject",
    ("GET", True, ""): "GetObject",
    ("GET", True, "uploadId"): "ListParts",
    ("GET", True, "tagging"): "GetObjectTagging",
    ("GET", False, ""): "ListObjects",
    ("GET", False, "list-type"): "ListObjectsV2",
    ("GET", False, "location"): "GetBucketLocation",
    ("GET", False, "uploads"): "ListMultipartUploads",
    ("GET", False, "versions"): "ListObjectVersions",
    ("PUT", True, ""): "PutObject",
    ("PUT", True, "partNumber"): "UploadPart",
    ("PUT", False, ""): "CreateBucket",
    ("POST", True, "uploads"): "CreateMultipartUpload",
    ("POST", True, "uploadId"): "CompleteMultipartUpload",
    ("POST", False, "delete"): "DeleteObjects",
    ("DELETE", True, ""): "DeleteObject",
    ("DELETE", True, "uploadId"): "AbortMultipartUpload",
    ("DELETE", False, ""): "DeleteBucket",
}


@dataclass(frozen=True)
class Answer:
    """What goes back to the client. *cut*: only so many bytes of the body, then the connection closes."""

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    cut: int | None = None


DROPPED = None  # instead of an Answer: the connection is reset


@dataclass(frozen=True)
class Call:
    """One request, as far as faults and rules look at it."""

    environ: dict[str, Any]
    body: bytes
    service: str
    region: str
    operation: str
    account: str

    @property
    def bucket(self) -> str:
        return str(self.environ["PATH_INFO"]).lstrip("/").partition("/")[0]


def call_of(environ: dict[str, Any], body: bytes, account: str) -> Call:
    """One request taken apart. A path that begins with `/as/ACCOUNT` is that account's, and loses it."""
    other = OTHER_ACCOUNT.match(environ["PATH_INFO"])
    if other:
        account = other.group(1)
        for name in ("PATH_INFO", "REQUEST_URI", "RAW_URI"):
            environ[name] = OTHER_ACCOUNT.sub("", environ[name], count=1) or "/"
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    signed = environ.get("HTTP_AUTHORIZATION", "") or f"Credential={query.get('X-Amz-Credential', [''])[0]}"
    scope = SCOPE.search(signed)
    region, service = scope.groups() if scope else ("us-east-1", "s3")
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        operation = target.rpartition(".")[2]
    elif environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        operation = parse_qs(body.decode("utf-8", "replace")).get("Action", ["?"])[0]
    else:
        operation = _s3_operation(environ, set(query))
    return Call(environ, body, service, region, operation, account)


def _s3_operation(environ: dict[str, Any], query: set[str]) -> str:
    method = environ["REQUEST_METHOD"]
    bucket, _, key = str(environ["PATH_INFO"]).lstrip("/").partition("/")
    if not bucket:
        return "ListBuckets"
    if method == "PUT" and key and "HTTP_X_AMZ_COPY_SOURCE" in environ:
        return "UploadPartCopy" if "partNumber" in query else "CopyObject"
    for (verb, of_key, part), operation in sorted(S3_OPERATIONS.items(), key=lambda item: -len(item[0][2])):
        if verb == method and of_key == bool(key) and (not part or part in query):
            return operation
    return f"{method} {'object' if key else 'bucket'}"


class Front:
    """Takes each call of a client. *moto* is a WSGI application; *account* is meant where the path names none."""

    def __init__(
        self,
        *,
        account: str,
        open_account: Callable[[str], tuple[MotoAccount, TrainingJobs]],
        faults: Faults,
        moto: Callable[..., Iterable[bytes]],
    ) -> None:
        self.account, self.faults = account, faults
        self._open_account, self._moto = open_account, moto
        self.calls: Counter[str] = Counter()
        self.last_call = time.monotonic()
        self.closing = threading.Event()
        self._lock = threading.Lock()

    def answer(self, environ: dict[str, Any], body: bytes, *, faulty: bool = True) -> Answer | None:
        """The answer to one request. *faulty*: a client's, which may meet a fault; a job's own calls do not."""
        if "HTTP_ORIGIN" in environ:  # a page in somebody's browser; no AWS client sends it
            return Answer("403 Forbidden", (), b"not for browsers\n")
        self.last_call = time.monotonic()
        call = call_of(environ, body, self.account)
        self._open_account(call.account)[0].prepare(call.region)
        if not faulty:
            return self._dispatch(call)
        with self._lock:
            self.calls[call.operation] += 1
        fault = self.faults.on_call(call.operation)
        if fault is None:
            return self._dispatch(call)
        return self._with_fault(fault, call)

    def _with_fault(self, fault: FaultSpec, call: Call) -> Answer | None:
        kind = fault.kind
        if kind in CODES or kind in ("500-before", "quota"):
            return refusal(call, _error(kind.removesuffix("-before"), call))
        if kind == "reset-before":
            return DROPPED
        if kind in ("hang-before", "slow"):
            self.closing.wait(fault.seconds)
            return DROPPED if kind == "hang-before" else self._dispatch(call)
        answer = self._dispatch(call)
        if kind == "500-after":
            return refusal(call, _error("500", call))
        if kind == "truncated":
            return replace(answer, cut=len(answer.body) // 2)
        if kind == "hang-after":
            self.closing.wait(fault.seconds)
        return DROPPED

    def _dispatch(self, call: Call) -> Answer:
        try:
            if call.service == "sagemaker" and call.environ.get("HTTP_X_AMZ_TARGET", "").startswith("SageMaker."):
                params = _parsed(call.body)
                jobs = self._open_account(call.account)[1]
                if jobs.answers(call.operation, params):
                    return _json("200 OK", jobs.call(call.operation, params, call.region))
            self._check_owners(call)
        except Refused as error:
            return refusal(call, error)
        return self._from_moto(call)

    def _check_owners(self, call: Call) -> None:
        """Hold x-amz-expected-bucket-owner, which moto does not read."""
        if call.service not in ("s3", "s3express"):
            return
        source = call.environ.get("HTTP_X_AMZ_COPY_SOURCE", "").lstrip("/").partition("/")[0]
        for header, bucket in (("EXPECTED", call.bucket), ("SOURCE_EXPECTED", source)):
            wanted = call.environ.get(f"HTTP_X_AMZ_{header}_BUCKET_OWNER")
            owner = self._open_account(call.account)[0].owner_of(bucket)
            if wanted is not None and owner is not None and wanted != owner:
                raise Refused("AccessDenied", "Access Denied", 403)

    def _from_moto(self, call: Call) -> Answer:
        # Overrides whatever the client sent: moto would let it choose another account.
        environ = {**call.environ, "HTTP_X_MOTO_ACCOUNT_ID": call.account, "wsgi.input": io.BytesIO(call.body)}
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _error: Any = None) -> Callable[[bytes], None]:
            started[:] = [status, headers]
            return lambda _data: None

        chunks = self._moto(environ, start_response)
        try:
            body = b"".join(chunks)
        finally:
            getattr(chunks, "close", lambda: None)()
        return Answer(started[0], tuple(started[1]), body)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        params = json.loads(body or b"{}")
    except ValueError as error:
        raise Refused("SerializationException", "The request body is not JSON.") from error
    if not isinstance(params, dict):
        raise Refused("SerializationException", "Start of structure or map found where not expected.")
    return params


def _error(kind: str, call: Call) -> Refused:
    """What AWS answers for a fault of *kind*: S3, the services that speak JSON, and those of queries (STS, IAM) differ."""
    style = 0 if call.service == "s3" else 1 if "HTTP_X_AMZ_TARGET" in call.environ else 2
    if kind == "quota":
        config = _parsed(call.body).get("ResourceConfig", {})
        return over_quota(config.get("InstanceType", "ml.m5.large"), 0, 0, config.get("InstanceCount", 1))
    code, status = CODES[kind][style]
    message = WORDS[kind]
    if kind == "denied" and call.service != "s3":
        action = f"{call.service}:{call.operation}"
        why = f"because no identity-based policy allows the {action} action"
        message = f"User: arn:aws:iam::{call.account}:user/rehearsal is not authorized to perform: {action} {why}"
    return Refused(code, message, status)


def refusal(call: Call, error: Refused) -> Answer:
    """*error* in the words of the call's protocol."""
    status = f"{error.status} {'Internal Server Error' if error.status == 500 else 'Refused'}"
    if "HTTP_X_AMZ_TARGET" in call.environ:
        return _json(status, {"__type": error.code, "message": error.message})
    code, message = escape(error.code), escape(error.message)
    inner = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>rehearsal</RequestId></Error>"
    if call.service != "s3":
        inner = f"<ErrorResponse>{inner}<RequestId>rehearsal</RequestId></ErrorResponse>"
    body = (
        b"" if call.environ["REQUEST_METHOD"] == "HEAD" else f'<?xml version="1.0" encoding="UTF-8"?>\n{inner}'.encode()
    )
    return Answer(status, (("Content-Type", "application/xml"),), body)


def _json(status: str, value: object) -> Answer:
    headers = (("Content-Type", JSON_TYPE), ("x-amzn-RequestId", "rehearsal"))
    return Answer(status, headers, json.dumps(value, allow_nan=False).encode())


def complaint(error: OrchestrateError) -> Answer:
    """An error of our own control calls."""
    body = json.dumps({"what": error.what, "hint": error.hint}).encode()
    return Answer("400 Bad Request", (("Content-Type", "application/json"),), body)
