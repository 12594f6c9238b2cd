"""What a real client makes of a service's answer on the wire, told apart by what can be done about it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("botocore", reason="comes with the sagemaker extra")

from orchestrator.aws import explain
from orchestrator.aws.explain import Kind


def http(status: str, body: str, kind: str = "application/x-amz-json-1.1", missing: int = 0) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body) + missing}\r\nConnection: close\r\n\r\n"
    return (head + body).encode()


@contextmanager
def service(reply: bytes | None) -> Iterator[str]:
    """A service that reads a request and sends *reply* as it stands; None: it never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                _read_request(connection)
                if reply is None:
                    over.wait(10)
                else:
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        over.set()
        thread.join()


def _read_request(connection: socket.socket) -> None:
    """All of it, body included: to close on bytes that nobody read resets the connection, and takes the answer along."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(65536)
    head, _, body = got.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
    while len(body) < int(length):
        body += connection.recv(65536)


def asked(url: str) -> Any:
    """What a real client makes of what *url* answers when it is asked for a job."""
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "sagemaker",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=0.5, connect_timeout=2, proxies={}),
    )
    try:
        return client.describe_training_job(TrainingJobName="x")
    finally:
        client.close()


def refused_by(url: str) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the question
        asked(url)
    return caught.value


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (http("400 Bad Request", '{"__type": "ThrottlingException", "message": "Rate exceeded"}'), Kind.THROTTLED),
        (http("429 Too Many Requests", ""), Kind.THROTTLED),
        (
            http("400 Bad Request", '{"__type": "com.amazonaws.sagemaker#ResourceInUse", "message": "in use"}'),
            Kind.EXISTS,
        ),
        (
            http("400 Bad Request", '{"__type": "ValidationException", "message": "Requested resource not found."}'),
            Kind.MISSING,
        ),
        (http("400 Bad Request", '{"__type": "ExpiredTokenException", "message": "expired"}'), Kind.EXPIRED),
        (http("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>", "text/xml"), Kind.DENIED),
        (http("500 Internal Server Error", "<html>oops</html>", "text/html"), Kind.AMBIGUOUS),
        (http("503 Service Unavailable", ""), Kind.AMBIGUOUS),
        (b"", Kind.AMBIGUOUS),
        (b"not http at all\r\n\r\n", Kind.AMBIGUOUS),
        (None, Kind.AMBIGUOUS),
    ],
    ids=lambda value: "nothing" if value is None else str(value)[:60],
)
def test_what_a_real_client_makes_of_an_answer_is_told_apart(reply: bytes | None, kind: Kind) -> None:
    with service(reply) as url:
        error = refused_by(url)
    assert explain.classify(error) is kind, repr(error)
    assert explain.refusal(error, doing="ask").what.isprintable()


def test_a_port_where_nobody_listens_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert explain.classify(refused_by(f"http://127.0.0.1:{port}")) is Kind.UNREACHABLE
    assert explain.classify(refused_by("http://no-such-host.invalid")) is Kind.UNREACHABLE


@pytest.mark.parametrize(
    "reply",
    [
        http("200 OK", "<html>log in to the hotel's network</html>", "text/html"),
        http("200 OK", '{"TrainingJobName": "x", "Trai', missing=100),
    ],
    ids=["captive portal", "cut short"],
)
def test_the_client_takes_an_unreadable_200_for_an_answer_with_nothing_in_it(reply: bytes) -> None:
    """So whoever calls must look for what the answer is to hold: no error of the SDK's tells."""
    with service(reply) as url:
        answered = asked(url)
    assert "TrainingJobStatus" not in answered
