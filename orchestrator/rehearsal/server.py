"""The rehearsal's server: a loopback AWS in one process, with our own training jobs."""

from __future__ import annotations

import http.server
import io
import ipaddress
import json
import os
import shutil
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.errors import BadInput, OrchestrateError, StateError
from orchestrator.rehearsal import control
from orchestrator.rehearsal.contract import Quotas
from orchestrator.rehearsal.faults import Faults
from orchestrator.rehearsal.front import Answer, Front, complaint
from orchestrator.rehearsal.job import Setting
from orchestrator.rehearsal.runner import Runner
from orchestrator.rehearsal.training_jobs import TrainingJobs, partition

END_SECONDS = 10.0  # what jobs get to save when the server ends
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}


class MotoAccount:
    """The account's other services, read where moto keeps them: a call over HTTP for each check would be its own load."""

    def __init__(self, account: str) -> None:
        from moto.backends import get_backend

        self.account = account
        self._backend: Any = get_backend
        self._lock = threading.Lock()
        self._prepared: set[str] = set()

    def prepare(self, region: str) -> None:
        """Make the bucket of *region*, and the role, where they are not there."""
        with self._lock:
            if region in self._prepared:
                return
            self._prepared.add(region)
            part = partition(region)
            iam = self._backend("iam")[self.account][part]
            if not any(role.name == control.ROLE for role in iam.get_roles()):
                iam.create_role(control.ROLE, json.dumps(TRUST), "/", None, "", [], None)
            if self.bucket(control.bucket_of(region)) is None:
                self._backend("s3")[self.account][part].create_bucket(control.bucket_of(region), region)

    def forget(self) -> None:
        with self._lock:
            self._prepared.clear()

    def bucket(self, name: str) -> Any:
        """moto's bucket of this name, whoever owns it, or None."""
        backends = self._backend("s3")
        where = backends.bucket_accounts.get(name)
        return None if where is None else backends[where[1]][where[0]].buckets.get(name)

    def make_foreign_bucket(self, name: str, owner: str, region: str) -> None:
        self._backend("s3")[owner][partition(region)].create_bucket(name, region)

    def owner_of(self, name: str) -> str | None:
        bucket = self.bucket(name)
        return None if bucket is None else str(bucket.account_id)

    def bucket_region(self, bucket: str) -> str | None:
        found = self.bucket(bucket)
        return None if found is None else str(found.region_name)

    def has_objects(self, bucket: str, prefix: str) -> bool:
        found = self.bucket(bucket)
        return found is not None and any(key.startswith(prefix) for key in list(found.keys))

    def trusts_sagemaker(self, role_arn: str) -> bool:
        iam = self._backend("iam")[self.account][role_arn.split(":")[1]]
        for role in iam.get_roles():
            if role.arn == role_arn:
                return _trusts(role.assume_role_policy_document)
        return False

    def log_events(self, region: str, group: str, prefix: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
        found = self._backend("logs")[self.account][region].groups.get(group)
        for name, stream in list(found.streams.items()) if found is not None else []:
            if name.startswith(prefix):
                yield name, [(event.timestamp, event.message) for event in list(stream.events)]


def _trusts(document: str) -> bool:
    statements = json.loads(document or "{}").get("Statement", [])
    for statement in [statements] if isinstance(statements, dict) else statements:
        principals = statement.get("Principal", {})
        services = principals.get("Service", []) if isinstance(principals, dict) else []
        names = [services] if isinstance(services, str) else services
        if statement.get("Effect") == "Allow" and "sagemaker.amazonaws.com" in names:
            return True
    return False


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """One thread a connection. Answers only processes of this machine's same user (and root)."""

    daemon_threads = True
    request_queue_size = 128
    ssl_context, multithread, multiprocess = None, True, False  # what werkzeug's handler asks a server for

    def __init__(self, address: tuple[str, int], handler: type, take: Callable[..., Answer | None]) -> None:
        self.take = take
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without http.server's look-up of the host's name

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - the base class's
        return _same_user(client_address, self.server_address)  # type: ignore[arg-type]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        import sys

        if not isinstance(sys.exception() if hasattr(sys, "exception") else sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # a bug keeps its traceback; a lost client is none

    def close_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


def _same_user(peer: tuple[str, int], own: tuple[str, int]) -> bool:
    """Whether the other end of a loopback connection belongs to this user; True where the system does not tell.

    A job is run with this user's rights: on a machine of many users, none of the others may start one.
    """
    here, there = _kernel_address(peer), _kernel_address(own)
    try:
        with Path("/proc/net/tcp").open(encoding="ascii") as table:
            for line in table:
                words = line.split()
                if words[1] == here and words[2] == there:
                    return words[3] == "01" and int(words[7]) in (0, os.geteuid())
    except OSError:
        return True
    return False


def _kernel_address(address: tuple[str, int]) -> str:
    number = struct.unpack("=I", socket.inet_aton(address[0]))[0]
    return f"{number:08X}:{address[1]:04X}"


def _handler() -> type:
    """The request handler's class, made when moto is needed: its import takes a second."""
    from moto.moto_server.werkzeug_app import MotoRequestHandler

    class Handler(MotoRequestHandler):
        """werkzeug's own closes each connection and sends head and body apart; this one keeps it, and sends both at once."""

        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def run_wsgi(self) -> None:
            environ = self.make_environ()
            if environ.get("wsgi.input_terminated"):
                body = environ["wsgi.input"].read()
            else:
                body = self.rfile.read(int(environ.get("CONTENT_LENGTH") or 0))
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            environ |= {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
            answer = self.server.take(environ, body)  # type: ignore[attr-defined]
            if answer is None:
                self._reset()
            else:
                self._send(answer)

        def _send(self, answer: Answer) -> None:
            head = [f"HTTP/1.1 {answer.status}", f"Date: {self.date_time_string()}", "Server: rehearsal"]
            keep = answer.cut is None
            skipped = {"connection", "date", "server", "transfer-encoding"}
            if self.command != "HEAD":  # whose length is that of the body which a GET would bring
                skipped.add("content-length")
            head += [f"{name}: {value}" for name, value in answer.headers if name.lower() not in skipped]
            names = {name.lower() for name, _ in answer.headers}
            if answer.status[:3] != "204" and (self.command != "HEAD" or "content-length" not in names):
                head.append(f"Content-Length: {len(answer.body)}")
            if not keep:
                head.append("Connection: close")
                self.close_connection = True
            body = b"" if self.command == "HEAD" else answer.body[: answer.cut]
            self.wfile.write("\r\n".join([*head, "", ""]).encode("latin-1") + body)

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.close(self.connection.detach())

        def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's
            pass

    return Handler


class Rehearsal:
    """A loopback AWS. The URLs are known after start(); `with Rehearsal(folder) as cloud:` starts and stops it.

    *folder* keeps the jobs' folders and `faults.jsonl`. *grace_seconds* stand between SIGTERM and SIGKILL (120 in the cloud).
    *level* forces how a job's containers are made. moto keeps its state by process: one rehearsal at a time in each.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        account: str = control.ACCOUNT,
        grace_seconds: float = 120.0,
        level: str | None = None,
        faults: Sequence[str] = (),
        quotas: Mapping[str, int] | None = None,
        runner: Callable[..., Any] = Runner,
        stop_asked: threading.Event | None = None,
    ) -> None:
        if not _loopback(host):
            raise BadInput(f"a rehearsal listens on a loopback address alone, not on {host}", hint="leave the host out")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.account, self.level = folder, account, level
        self._address = (host, port)
        self.faults = Faults(folder / "faults.jsonl", faults)
        self.quotas = Quotas(dict(quotas or {}))
        self._grace_seconds, self._runner = grace_seconds, runner
        self._servers: list[_Server] = []
        self._threads: list[threading.Thread] = []
        self.stop_asked = stop_asked or threading.Event()  # set where a client asks the server to end

    def start(self) -> Rehearsal:
        """Raises StateError where the port cannot be had."""
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._stores = MotoAccount(self.account)
        self._forget_everything()
        setting = Setting(
            account=self.account,
            folder=self.folder / "jobs",
            stores=self._stores,
            faults=self.faults,
            quotas=self.quotas,
            endpoint=lambda: self.inner_url,
            grace_seconds=self._grace_seconds,
            level=self.level,
            runner=self._runner,
        )
        self.jobs = TrainingJobs(setting)
        self.front = Front(
            jobs=self.jobs,
            faults=self.faults,
            account=self.account,
            moto=DomainDispatcherApplication(create_backend_app),
            prepare=self._stores.prepare,
            owner_of=self._stores.owner_of,
        )
        handler = _handler()
        self._listen(self._address, handler, self._take)
        self._listen((self._address[0], 0), handler, self._take_inside)
        return self

    def _listen(self, address: tuple[str, int], handler: type, take: Callable[..., Answer | None]) -> None:
        try:
            server = _Server(address, handler, take)
        except OSError as error:
            self._close_servers()
            at = f"{address[0]}:{address[1]}"
            raise StateError(f"cannot listen on {at}: {error.strerror}", hint="choose another --port") from error
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="rehearsal", daemon=True)
        thread.start()
        self._servers.append(server)
        self._threads.append(thread)

    @property
    def url(self) -> str:
        """Where clients call."""
        return self._url(0)

    @property
    def inner_url(self) -> str:
        """Where jobs call: nothing is counted, and no fault is met."""
        return self._url(1)

    def _url(self, number: int) -> str:
        host, port = self._servers[number].server_address[:2]
        return f"http://{host!s}:{port}"

    def stop(self, seconds: float = END_SECONDS) -> list[str]:
        """End the jobs, which get *seconds* to save, and the server. The names of jobs that did not end by then."""
        if not self._servers:
            return []
        late = self.jobs.stop_all(seconds)
        self.front.closing.set()
        self._close_servers()
        self._forget_everything()
        return late

    def _close_servers(self) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.close_connections()
            server.server_close()
        self._servers, self._threads = [], []

    def _forget_everything(self) -> None:
        """moto's memory, which is the process's, and the jobs' folders."""
        from moto.moto_api._internal.models import moto_api_backend

        moto_api_backend.reset()
        self._stores.forget()
        shutil.rmtree(self.folder / "jobs", ignore_errors=True)

    def __enter__(self) -> Rehearsal:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def declare_foreign_bucket(self, name: str, owner: str = "999999999999", region: str = "us-east-1") -> None:
        """A bucket of another account that lets everybody in, as a squatter's would: only its owner gives it away."""
        self._stores.make_foreign_bucket(name, owner, region)

    @property
    def idle_seconds(self) -> float:
        """Since the last call, while no job runs."""
        if any(not job.done.is_set() for job in self.jobs.jobs()):
            return 0.0
        return time.monotonic() - self.front.last_call

    def state(self) -> dict[str, Any]:
        jobs = self.jobs.jobs()
        levels = [job.level for job in jobs if job.level]
        return {
            "url": self.url,
            "pid": os.getpid(),
            "account": self.account,
            "level": self.level or (levels[-1] if levels else None),
            "jobs": [
                {
                    "name": job.name,
                    "arn": job.arn,
                    "region": job.region,
                    "status": job.status,
                    "secondary": job.secondary,
                    "attempt": job.attempt,
                    "level": job.level,
                }
                for job in jobs
            ],
            "calls": dict(self.front.calls),
            "faults": self.faults.texts(),
        }

    def _take_inside(self, environ: dict[str, Any], body: bytes) -> Answer | None:
        return self.front.answer(environ, body, faulty=False)

    def _take(self, environ: dict[str, Any], body: bytes) -> Answer | None:
        path = environ["PATH_INFO"]
        if not path.startswith("/rehearsal/") or "HTTP_AUTHORIZATION" in environ:  # signed: S3, a bucket of that name
            return self.front.answer(environ, body)
        if "HTTP_ORIGIN" in environ:
            return Answer("403 Forbidden", (), b"not for browsers\n")
        try:
            told = self._control(environ["REQUEST_METHOD"], path.removeprefix("/rehearsal/"), body)
        except OrchestrateError as error:
            return complaint(error)
        return Answer("200 OK", (("Content-Type", "application/json"),), json.dumps(told).encode())

    def _control(self, method: str, what: str, body: bytes) -> object:
        """Our own calls, which no AWS has."""
        if (method, what) == ("GET", "state"):
            return self.state()
        if (method, what) == ("DELETE", "faults"):
            self.faults.clear()
        elif (method, what) == ("POST", "faults"):
            self.faults.arm(_texts(body))
        elif (method, what) == ("POST", "stop"):
            self.stop_asked.set()
        else:
            raise BadInput(f"no such call: {method} /rehearsal/{what}")
        return {"faults": self.faults.texts()}


def _texts(body: bytes) -> list[str]:
    try:
        texts = json.loads(body)
    except ValueError as error:
        raise BadInput("faults are given as a JSON list of texts") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadInput("faults are given as a JSON list of texts")
    return texts


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback and ":" not in host
    except ValueError:
        return False
