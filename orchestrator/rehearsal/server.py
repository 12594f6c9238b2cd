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
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.errors import BadInput, OrchestrateError, StateError, shown
from orchestrator.rehearsal import control
from orchestrator.rehearsal.account import MotoAccount
from orchestrator.rehearsal.contract import ROLE, Quotas
from orchestrator.rehearsal.faults import Faults
from orchestrator.rehearsal.front import Answer, Front, complaint
from orchestrator.rehearsal.job import Job, Setting
from orchestrator.rehearsal.runner import Runner, best_level
from orchestrator.rehearsal.training_jobs import TrainingJobs

END_SECONDS = 10.0  # what jobs get to save when the server ends


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
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # a bug keeps its traceback; a lost client is none

    def close_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


_ESTABLISHED = "01"


def _same_user(peer: tuple[str, int], own: tuple[str, int]) -> bool:
    """Whether the other end of a loopback connection belongs to this user; True where the system does not tell.

    A job is run with this user's rights: on a machine of many users, none of the others may start one.
    """
    here, there = _kernel_address(peer), _kernel_address(own)
    listed = False
    for table, mapped in (("tcp", ""), ("tcp6", "0000000000000000FFFF0000")):  # Java's clients are IPv6 sockets
        try:
            lines = Path("/proc/net", table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):
            listed = listed or words[1] == there
            if words[1] == mapped + here and words[2] == mapped + there:
                return words[3] == _ESTABLISHED and int(words[7]) in (0, os.geteuid())
    return not listed  # a table without even our own end tells nothing; else the caller has hung up


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
            length = environ.get("CONTENT_LENGTH") or "0"
            if not length.isdecimal():
                self.close_connection = True
                self._send(Answer("400 Bad Request", (), b""))
                return
            chunked = environ.get("wsgi.input_terminated")
            body = environ["wsgi.input"].read() if chunked else self.rfile.read(int(length))
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            environ |= {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
            try:
                answer = self.server.take(environ, body)  # type: ignore[attr-defined]
            except Exception:  # a bug of ours or moto's: seen in the log, and an AWS that is out of order to the client
                traceback.print_exc()
                answer = Answer("500 Internal Server Error", (), b"")
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
        if not 0 <= port <= 65_535:
            raise BadInput(f"there is no port {port}", hint="--port 0 takes any free one")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder, self.account, self.level = folder, account, level
        self._address = (host, port)
        self.faults = Faults(folder / "faults.jsonl", faults)
        self.quotas = Quotas(dict(quotas or {}))
        self._grace_seconds, self._runner = grace_seconds, runner
        self._lock = threading.Lock()
        self._accounts: dict[str, tuple[MotoAccount, TrainingJobs]] = {}
        self._servers: list[_Server] = []
        self._threads: list[threading.Thread] = []
        self.stop_asked = stop_asked or threading.Event()  # set where a client asks the server to end

    def start(self) -> Rehearsal:
        """Raises StateError where the port cannot be had."""
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._forget_everything()
        moto = DomainDispatcherApplication(create_backend_app)
        self.front = Front(account=self.account, open_account=self._open_account, faults=self.faults, moto=moto)
        handler = _handler()
        self._listen(self._address, handler, self._take)
        self._listen((self._address[0], 0), handler, self._take_inside)
        return self

    def _open_account(self, account: str) -> tuple[MotoAccount, TrainingJobs]:
        """An account of the rehearsal. It has one of its own, and takes the part of others for who names their role."""
        with self._lock:
            if account not in self._accounts:
                stores = MotoAccount(account)
                setting = Setting(
                    account=account,
                    folder=self.folder / "jobs" / account,
                    stores=stores,
                    faults=self.faults,
                    quotas=self.quotas,
                    endpoint=lambda: self._as_account(self.inner_url, account),
                    grace_seconds=self._grace_seconds,
                    level=self.level,
                    runner=self._runner,
                )
                self._accounts[account] = stores, TrainingJobs(setting)
            return self._accounts[account]

    def _as_account(self, url: str, account: str) -> str:
        return url if account == self.account else f"{url}/as/{account}"

    def jobs(self) -> list[Job]:
        with self._lock:
            accounts = list(self._accounts.values())
        return [job for _, jobs in accounts for job in jobs.jobs()]

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
        running = [job for job in self.jobs() if not job.done.is_set()]
        for job in running:
            job.stop()
        until = time.monotonic() + seconds
        late = [job.name for job in running if not job.done.wait(max(0.0, until - time.monotonic()))]
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
        with self._lock:
            self._accounts.clear()
        shutil.rmtree(self.folder / "jobs", ignore_errors=True)

    def __enter__(self) -> Rehearsal:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def declare_foreign_bucket(self, name: str, owner: str = "999999999999", region: str = "us-east-1") -> None:
        """A bucket of another account that lets everybody in, as a squatter's would: only its owner gives it away."""
        self._open_account(owner)[0].provide(f"arn:aws:iam::{owner}:role/owner", name, region)

    def provide(self, role: str, bucket: str, region: str) -> str:
        """Make *role* (an ARN, of any account) and *bucket* be there; the URL where that account answers."""
        parts = ROLE.fullmatch(role)
        if parts is None:
            raise BadInput(f"{shown(role)} is not the ARN of a role")
        account = parts.group(2)
        self._open_account(account)[0].provide(role, bucket, region)
        return self._as_account(self.url, account)

    @property
    def idle_seconds(self) -> float:
        """Since the last call, while no job runs."""
        if any(not job.done.is_set() for job in self.jobs()):
            return 0.0
        return time.monotonic() - self.front.last_call

    def state(self) -> dict[str, Any]:
        jobs = self.jobs()
        levels = [job.level for job in jobs if job.level]
        return {
            "url": self.url,
            "pid": os.getpid(),
            "account": self.account,
            "level": self.level or (levels[-1] if levels else best_level()),
            "jobs": [
                {
                    "name": job.name,
                    "arn": job.arn,
                    "account": job.setting.account,
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
            self.faults.arm(_json_of(body, list))
        elif (method, what) == ("POST", "provide"):
            return {"endpoint": self.provide(**_json_of(body, dict))}
        elif (method, what) == ("POST", "stop"):
            self.stop_asked.set()
        else:
            raise BadInput(f"no such call: {method} /rehearsal/{what}")
        return {"faults": self.faults.texts()}


def _json_of(body: bytes, kind: type) -> Any:
    """A JSON list of texts, or an object of texts."""
    try:
        value = json.loads(body)
    except ValueError as error:
        raise BadInput("the body is not JSON") from error
    texts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
        raise BadInput(f"the body is no JSON {kind.__name__} of texts")
    return value


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback and ":" not in host
    except ValueError:
        return False
