"""Both price services on loopback. They refuse what the real ones would: it is them that judge the requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = Any
API_KEY = "AIzaSyD-a-key-of-this-test-alone-0123456"
SERVICE = "/v1/services/C7E2-9256-1C43/skus"


class Service(ThreadingHTTPServer):
    """A service that answers with *entries*, page by page."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.entries: list[Json] = []
        self.page_size = 2
        self.heard: list[Json] = []
        """Every request that was answered with entries, and all headers in `headers`."""
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.faults: dict[int, tuple[int, Json]] = {}
        """By number of the request, from 0: status and body of an answer that comes in its place."""
        self.requests = 0
        self.forever = False
        """Give the same token again and again."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running(handler: type[BaseHTTPRequestHandler]) -> Iterator[Service]:
    with Service(handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Service
    content_type = "application/json"

    def log_message(self, *_: object) -> None:
        pass

    def begin(self) -> tuple[int, Json] | None:
        """The fault of this request, if it has one."""
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.server.paths.append(self.path)
        number = self.server.requests
        self.server.requests += 1
        return self.server.faults.get(number)

    def send(self, status: int, body: Json) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", self.content_type)
        self.send_header("Content-Length", str(len(data)))
        if status in (301, 302):
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(data)


# AWS


def aws_fault(code: str, message: str, status: int = 400) -> tuple[int, Json]:
    """An error as the service's protocol has it."""
    return status, {"__type": code, "Message": message}


@cache
def _model() -> Any:
    import botocore.session

    return botocore.session.Session().get_service_model("pricing")


class Pricing(_Handler):
    """`pricing:GetProducts`, by botocore's own model of its input, with the service's own limits."""

    content_type = "application/x-amz-json-1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.begin()
        self.send(*(fault or self._answer(body)))

    def _answer(self, body: bytes) -> tuple[int, Json]:
        if self.headers.get("X-Amz-Target") != "AWSPriceListService.GetProducts":
            return aws_fault("UnknownOperationException", str(self.headers.get("X-Amz-Target")))
        if "/pricing/aws4_request" not in self.headers.get("Authorization", ""):
            return aws_fault("MissingAuthenticationTokenException", "Missing Authentication Token")
        asked = json.loads(body)
        wrong = self._wrong(asked)
        if wrong:
            return aws_fault("InvalidParameterException", wrong)
        if asked["ServiceCode"] != "AmazonSageMaker":
            return aws_fault("InvalidParameterException", "Invalid ServiceCode")
        found = [entry for entry in self.server.entries if _matches(entry, asked.get("Filters", []))]
        token, first = asked.get("NextToken"), 0
        if token is not None:
            first = int(token.removeprefix("page-")) if token.removeprefix("page-").isdigit() else -1
            if first not in range(1, len(found) + 1):
                return aws_fault("InvalidNextTokenException", "NextToken is invalid")
        self.server.heard.append(asked)
        size = min(asked.get("MaxResults", 100), self.server.page_size)
        answer: Json = {
            "FormatVersion": "aws_v1",
            "PriceList": [json.dumps(one) for one in found[first : first + size]],
        }
        if first + size < len(found):
            answer["NextToken"] = "page-1" if self.server.forever else f"page-{first + size}"
        return 200, answer

    def _wrong(self, asked: Json) -> str | None:
        from botocore.validate import ParamValidator

        shape = _model().operation_model("GetProducts").input_shape
        report = ParamValidator().validate(asked, shape)
        if report.has_errors():
            return str(report.generate_report())
        if set(asked) - set(shape.members):
            return f"unknown members {set(asked) - set(shape.members)}"
        if not 1 <= asked.get("MaxResults", 100) <= 100:
            return "MaxResults must be between 1 and 100"
        if asked.get("FormatVersion", "aws_v1") != "aws_v1":
            return "FormatVersion must be aws_v1"
        kinds = _model().shape_for("FilterType").enum
        bad = [one["Type"] for one in asked.get("Filters", []) if one["Type"] not in kinds]
        return f"Filter.Type must be one of {kinds}" if bad else None


def _matches(entry: Json, filters: Json) -> bool:
    product = entry["product"]
    attributes = {**product["attributes"], "productFamily": product["productFamily"]}
    return all(attributes.get(one["Field"]) == one["Value"] for one in filters)


# Google


def google_fault(status: int, message: str, word: str) -> tuple[int, Json]:
    return status, {"error": {"code": status, "message": message, "status": word}}


class Billing(_Handler):
    """The Cloud Billing Catalog's list of SKUs, and the place where a service account gets its token."""

    def do_POST(self) -> None:
        body = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        self.server.paths.append(self.path)
        if self.path != "/token" or "assertion" not in body:
            self.send(*google_fault(400, "invalid_grant", "INVALID_ARGUMENT"))
            return
        self.send(200, {"access_token": "a-token-of-this-test", "expires_in": 3600, "token_type": "Bearer"})

    def do_GET(self) -> None:
        fault = self.begin()
        self.send(*(fault or self._answer()))

    def _answer(self) -> tuple[int, Json]:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        key = self.headers.get("X-Goog-Api-Key") or query.pop("key", None)
        if self.headers.get("Authorization") != "Bearer a-token-of-this-test":
            if key is None:
                words = "Method doesn't allow unregistered callers (callers without established identity)."
                return google_fault(403, words, "PERMISSION_DENIED")
            if key != API_KEY:
                return google_fault(400, f"API key not valid: {key}. Please pass a valid API key.", "INVALID_ARGUMENT")
        if parts.path != SERVICE:
            return google_fault(404, "Requested entity was not found.", "NOT_FOUND")
        unknown = set(query) - {"currencyCode", "pageSize", "pageToken", "startTime", "endTime"}
        if unknown:
            return google_fault(400, f"Unknown name {unknown}", "INVALID_ARGUMENT")
        if not 1 <= int(query.get("pageSize", 5000)) <= 5000:
            return google_fault(400, "Page size must be at most 5000.", "INVALID_ARGUMENT")
        if query.get("currencyCode") != "USD":
            return google_fault(400, "this catalog is in USD", "INVALID_ARGUMENT")
        token = query.get("pageToken", "")
        first = int(token.removeprefix("page-")) if token.removeprefix("page-").isdigit() else 0
        if token and not 0 < first <= len(self.server.entries):
            return google_fault(400, "page_token is invalid", "INVALID_ARGUMENT")
        self.server.heard.append(query)
        last = first + self.server.page_size
        more = last < len(self.server.entries)
        following = "page-1" if self.server.forever else f"page-{last}" if more else ""
        return 200, {"skus": self.server.entries[first:last], "nextPageToken": following}
