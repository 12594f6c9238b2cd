"""How AWS clients are made: whose credentials, how many tries, and no endpoint that is not this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.aws.client import Aws
from orchestrator.errors import BadInput, LoginNeeded
from tests.conftest import REPOSITORY

CREDENTIAL_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


@pytest.fixture
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """AWS configuration files of this test alone; returns the credentials file, which is not there yet."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path / "credentials"


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with 500 and keeps its headers."""

    def do_POST(self) -> None:
        self.server.heard.append(dict(self.headers))  # type: ignore[attr-defined]
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.heard = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def endpoint_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_the_account_is_asked_once(aws: Aws) -> None:
    asked: list[str] = []
    aws.client("sts").meta.events.register("before-call.sts.*", lambda model, **_: asked.append(model.name))
    assert [aws.account(), aws.account()] == ["123456789012"] * 2
    assert asked == ["GetCallerIdentity"]


def test_a_client_is_made_once_and_anew_after_a_refresh(aws: Aws) -> None:
    first = aws.client("s3")
    assert aws.client("s3") is first
    assert aws.client("s3", attempts=1) is not first
    aws.refresh()
    assert aws.client("s3") is not first


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_call_is_sent_no_more_often_than_said(attempts: int, refusing: ThreadingHTTPServer) -> None:
    from botocore.exceptions import ClientError

    with Aws("us-east-1", endpoint=endpoint_of(refusing)) as aws, pytest.raises(ClientError):
        aws.client("sts", attempts=attempts).get_caller_identity()
    assert len(refusing.heard) == attempts  # type: ignore[attr-defined]


def test_nothing_of_the_users_environment_reaches_a_rehearsal(
    refusing: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    real = {
        "AWS_PROFILE": "one-that-is-not-there",
        "AWS_ACCESS_KEY_ID": "AKIAREALREALREALREAL",
        "AWS_SECRET_ACCESS_KEY": "real",
        "AWS_SESSION_TOKEN": "a-real-token",
        "AWS_MAX_ATTEMPTS": "7",
        "AWS_CA_BUNDLE": "/not/there.pem",
        "AWS_ENDPOINT_URL": "https://sts.example.com",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    for name, value in real.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text("[default]\ncredential_process = /bin/false\nregion = eu-west-3\n")
    with Aws("us-east-1", endpoint=endpoint_of(refusing)) as aws, pytest.raises(ClientError):
        aws.client("sts", attempts=1).get_caller_identity()
    [headers] = refusing.heard  # type: ignore[attr-defined]
    assert "Credential=rehearsal/" in headers["Authorization"]
    assert "/us-east-1/sts/" in headers["Authorization"]
    assert "X-Amz-Security-Token" not in headers
    assert "orchestrate/" in headers["User-Agent"]


@pytest.mark.parametrize(
    "endpoint",
    ["http://169.254.169.254", "https://sagemaker.us-east-1.amazonaws.com", "http://10.0.0.1:5000", "file:///etc", "x", "http://[",
     "http://127.0.0.1.example.com", "http://localhost@example.com"],
)  # fmt: skip
def test_an_endpoint_elsewhere_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with pytest.raises(BadInput, match="not an endpoint on this machine"):
        Aws("us-east-1", endpoint=endpoint)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://127.0.0.2"]
)
def test_an_endpoint_on_this_machine_is_taken(endpoint: str) -> None:
    assert Aws("us-east-1", endpoint=endpoint).endpoint == endpoint


def test_an_endpoint_elsewhere_is_taken_where_the_users_environment_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://10.0.0.1:4566")
    assert Aws("us-east-1", endpoint="http://10.0.0.1:4566").endpoint == "http://10.0.0.1:4566"


def test_without_a_login_the_account_is_a_login_needed(no_login: Path) -> None:
    with Aws("us-east-1") as aws, pytest.raises(LoginNeeded) as refused:
        aws.account()
    assert refused.value.hint


def test_credentials_written_meanwhile_are_read_after_a_refresh(
    no_login: Path, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)  # so that the user's own login goes to the loopback
    with Aws("us-east-1") as aws:
        with pytest.raises(LoginNeeded):
            aws.account()
        no_login.write_text("[default]\naws_access_key_id = AKIDONE\naws_secret_access_key = secret\n")
        aws.refresh()
        assert aws.account() == "123456789012"


def test_an_unknown_profile_is_named_with_those_that_there_are(no_login: Path) -> None:
    no_login.write_text("[work]\naws_access_key_id = AKIDONE\naws_secret_access_key = secret\n")
    with Aws("us-east-1", profile="wrok") as aws, pytest.raises(BadInput, match="'wrok'") as refused:
        aws.client("sts")
    assert "(work)" in str(refused.value.hint)


def test_without_boto3_the_line_to_type_is_named(tmp_path: Path) -> None:
    (tmp_path / "boto3.py").write_text("raise ImportError('no boto3')\n")
    code = (
        "from orchestrator.aws.client import Aws\n"
        "from orchestrator.errors import BadInput\n"
        "try: Aws('us-east-1').client('s3')\n"
        "except BadInput as error: print(error.hint)\n"
    )
    path = f"{tmp_path}{os.pathsep}{REPOSITORY}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "pip install 'orchestrate-ml[sagemaker]'", done.stderr
