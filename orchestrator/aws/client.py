"""The one place where AWS clients are made: how often a call is tried, how long it waits, and whose credentials it carries."""

from __future__ import annotations

import atexit
import functools
import ipaddress
import os
import threading
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import BadInput, shown

CONNECT_SECONDS = 10.0
POOL_CONNECTIONS = 16
_REHEARSAL_CREDENTIALS = {"aws_access_key_id": "rehearsal", "aws_secret_access_key": "rehearsal"}


class Aws:
    """Clients of one region and one login, or of the loopback service at *endpoint*.

    An *endpoint* gets made-up credentials, and nothing of the user's AWS configuration is read for it. Without one, the
    login is that of the AWS tools: environment, *profile*, SSO, role. Errors of calls are raised as botocore has them.
    Raises BadInput where boto3 is not installed, the profile does not exist, or the endpoint is not on this machine.
    """

    def __init__(self, region: str, *, endpoint: str | None = None, profile: str | None = None) -> None:
        if endpoint is not None:
            _check_endpoint(endpoint)
        self.region, self.endpoint, self.profile = region, endpoint, profile
        self._lock = threading.Lock()  # botocore's sessions do not make clients in several threads at once
        self._session: Any = None
        self._clients: dict[tuple[str, int, float], Any] = {}
        self._account: str | None = None

    def __enter__(self) -> Aws:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def client(self, service: str, *, attempts: int = 3, read_timeout: float = 60) -> Any:
        """The client of *service*, which sends a call at most *attempts* times and waits *read_timeout* seconds for bytes.

        Made once. A client may be used by several threads.
        """
        key = (service, attempts, read_timeout)
        with self._lock:
            if key not in self._clients:
                self._clients[key] = self._made(service, attempts, read_timeout)
            return self._clients[key]

    def account(self) -> str:
        """The twelve digits of the account of this login, asked once. Raises LoginNeeded where there is no login."""
        if self._account is None:
            try:
                answer = self.client("sts").get_caller_identity()
            except Exception as error:
                from orchestrator.aws import explain

                raise explain.refusal(error, doing="ask AWS whose login this is") from error
            self._account = str(answer["Account"])
        return self._account

    def refresh(self) -> None:
        """Forget clients and credentials: the next call reads what a login has written meanwhile."""
        with self._lock:
            self._close_clients()
            self._session = self._account = None

    def close(self) -> None:
        with self._lock:
            self._close_clients()
            self._session = None

    def _close_clients(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _made(self, service: str, attempts: int, read_timeout: float) -> Any:
        if self._session is None:
            self._session = _session(self.profile) if self.endpoint is None else _rehearsal_session()
        from botocore.config import Config

        from orchestrator import __version__

        config = Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=read_timeout,
            max_pool_connections=POOL_CONNECTIONS,
            tcp_keepalive=True,
            user_agent_extra=f"orchestrate/{__version__}",
            request_checksum_calculation="when_supported",
            response_checksum_validation="when_supported",
        )
        if self.endpoint is None:
            return self._session.client(service, region_name=self.region, config=config)
        config = config.merge(Config(s3={"addressing_style": "path"}, proxies={}))  # a proxy cannot reach our loopback
        credentials = _REHEARSAL_CREDENTIALS
        return self._session.client(
            service, region_name=self.region, config=config, endpoint_url=self.endpoint, **credentials
        )


def shared(region: str, endpoint: str | None, profile: str | None) -> Aws:
    """The clients for short questions of one place, made once a process: a list asks for many runs. Closed at its end."""
    return _shared(region, endpoint, profile, os.environ.get("AWS_ENDPOINT_URL"))


@functools.cache
def _shared(region: str, endpoint: str | None, profile: str | None, _: str | None) -> Aws:
    aws = Aws(region, endpoint=endpoint, profile=profile)
    atexit.register(aws.close)
    return aws


def _session(profile: str | None) -> Any:
    boto3, core = _boto3()
    from botocore.exceptions import ProfileNotFound

    try:
        return boto3.Session(profile_name=profile)
    except ProfileNotFound as error:
        known = ", ".join(core.Session().available_profiles) or "none"
        chosen = profile or os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or ""
        hint = f"--profile with one of those that there are ({known}), or: aws configure --profile {chosen}"
        raise BadInput(f"there is no AWS profile {shown(chosen)}", hint=hint) from error


def _rehearsal_session() -> Any:
    """A session that reads neither the environment nor the AWS configuration files."""
    boto3, core = _boto3()
    defaults = core.Session.SESSION_VARIABLES
    unread = {name: (None, None, default, cast) for name, (_, _, default, cast) in defaults.items()}
    for files in ("config_file", "credentials_file"):
        unread[files] = (None, None, os.devnull, None)
    return boto3.Session(botocore_session=core.Session(session_vars=unread))


def _boto3() -> tuple[Any, Any]:
    """The modules boto3 and botocore.session."""
    try:
        import boto3
        import botocore.session
    except ImportError as error:
        hint = "pip install 'orchestrate-ml[sagemaker]'"
        raise BadInput("boto3, which talks to AWS, is not installed", hint=hint) from error
    return boto3, botocore.session


def _check_endpoint(endpoint: str) -> None:
    """Raises BadInput unless *endpoint* is on this machine, or the user's own environment says it."""
    try:
        parts = urlsplit(endpoint)
        host, known = parts.hostname or "", parts.scheme in ("http", "https")
        if known and (host == "localhost" or ipaddress.ip_address(host).is_loopback):
            return
    except ValueError:
        pass
    if endpoint != os.environ.get("AWS_ENDPOINT_URL"):
        hint = "a rehearsal runs on 127.0.0.1; another service of yours: export AWS_ENDPOINT_URL=…"
        raise BadInput(f"{shown(endpoint)} is not an endpoint on this machine", hint=hint)
