"""Run one training job as SageMaker does: data down, a container on each host, logs and checkpoints out, results up.

    runner = Runner(JobOrder(…), listener)
    ending = runner.run()          # blocks; runner.stop() and runner.reclaim() may be called from any thread

container.py starts the processes, hosts.py knows what is in them; this module is their clock.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from orchestrator.rehearsal import container, hosts
from orchestrator.rehearsal.container import FOLDER, NAMESPACES, Containers, NotRunning
from orchestrator.rehearsal.hosts import Failed, Host, Synced

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
FLUSH_SECONDS = 0.5
EVENT_BYTES, EVENT_OVERHEAD_BYTES = 256 * 1024, 26  # CloudWatch Logs counts 26 bytes on top of each message
BATCH_EVENTS, BATCH_BYTES = 10_000, 1_048_576
MOST_WAITING = 50_000  # lines: beyond, a container waits for the log service as it would for a slow disk
LOG_PATIENCE_SECONDS = 60.0  # for the last lines, should the log service refuse
OUTPUT_PATIENCE_SECONDS = 5.0  # for the end of the output once the container is dead
SYNC_SECONDS = 1.0
PEER_GRACE_SECONDS = 5.0  # for the other hosts once one has failed
POLL_SECONDS = 0.05
TENSORBOARD_FOLDER = f"{container.SAGEMAKER_ROOT}/output/tensorboard"
USER_AGENT = "orchestrate-rehearsal-runner"


@dataclass(frozen=True)
class JobOrder:
    """A training job to run."""

    name: str
    arn: str
    region: str
    request: Mapping[str, Any]  # exactly what create_training_job took
    folder: Path  # the job's own; each attempt has a folder in it
    endpoint: str  # URL of the loopback AWS
    attempt: int = 1
    grace_seconds: float = 120.0  # from SIGTERM to SIGKILL
    level: str | None = None  # "namespaces" or "folder"; None: the best that works here


class Listener(Protocol):
    """Whoever shows how the job stands."""

    def state(self, secondary: str, message: str) -> None: ...


@dataclass(frozen=True)
class Ending:
    """How a job ended."""

    kind: str  # completed, failed, stopped or reclaimed
    exit_codes: tuple[int, ...]  # of each host's container, 128 + n for signal n; empty if none was started
    failure_reason: str | None
    training_seconds: float  # from the start of the download to the end of the upload
    level: str


class Ordered(Exception):
    """The job was told to end before its containers were started."""


class Runner:
    """Runs one attempt of one job, once."""

    def __init__(self, order: JobOrder, listener: Listener) -> None:
        self._order, self._listener = order, listener
        self._lock = threading.Lock()
        self._wanted: str | None = None  # "stopped" or "reclaimed": what others asked for first
        self._codes: dict[int, int] = {}
        self._first_failed: int | None = None
        self._level = order.level or ""

    def stop(self) -> None:
        """End the job as StopTrainingJob does. Returns at once; run() returns when it has ended."""
        self._end("stopped")

    def reclaim(self) -> None:
        """Take the hosts away as a spot interruption does: checkpoints are kept, results are not."""
        self._end("reclaimed")

    def _end(self, kind: str) -> None:
        with self._lock:
            self._wanted = self._wanted or kind

    def run(self) -> Ending:
        """Run the job to its end. What goes wrong in it is told by the Ending."""
        begun = time.monotonic()
        reason = None
        try:
            with clients(self._order) as (s3, logs):
                kind, reason = self._run(s3, logs)
        except Ordered:
            kind = self._wanted or "stopped"
        except Failed as failed:
            kind, reason = "failed", str(failed)
        except NotRunning as problem:
            kind, reason = "failed", f"InternalServerError: {problem}"
        except OSError as error:  # a full disk
            kind, reason = "failed", f"InternalServerError: {error}"
        codes = tuple(code for _, code in sorted(self._codes.items()))
        return Ending(kind, codes, reason, time.monotonic() - begun, self._level)

    def _go_on(self) -> None:
        if self._wanted:
            raise Ordered

    def _run(self, s3: Any, logs: Any) -> tuple[str, str | None]:
        order, request = self._order, self._order.request
        folder = order.folder / f"attempt-{order.attempt}"
        remove(folder)  # of a service that was killed in this attempt
        machines = hosts.plan_hosts(request, folder)
        self._level = order.level or level_for(order.folder)
        # Outside of a mount namespace nothing resolves algo-1: an address is a host's name there.
        apart = self._level == FOLDER and len(machines) > 1
        if apart and sys.platform != "linux":
            raise Failed("InternalServerError: only Linux has an address for each host of a rehearsal: use one host")
        hosts.lay_out(machines, request, {host.name: host.address if apart else host.name for host in machines})
        try:
            self._listener.state("Downloading", "Downloading input data")
            hosts.download_channels(s3, machines, request, order.region, self._go_on)
            synced = self._synced_folders(s3, machines)
            self._go_on()
            self._listener.state("Training", "Training image download completed. Training in progress.")
            kind, reason = self._train(machines, synced, logs)
            if kind != "reclaimed":
                self._listener.state("Uploading", "Uploading generated training model")
                with contextlib.suppress(*([Failed] if reason else [])):  # why the job failed matters more
                    hosts.upload_results(s3, machines, request, folder)
            return kind, reason
        finally:
            for host in machines:
                remove(host.private)

    def _synced_folders(self, s3: Any, machines: list[Host]) -> list[Synced]:
        """Each host's checkpoints, brought from S3, and its TensorBoard folder."""
        request = self._order.request
        found = []
        for host in machines:
            if uri := (request.get("CheckpointConfig") or {}).get("S3Uri"):
                found.append(Synced(s3, host.root / hosts.checkpoint_folder(request), uri))
                found[-1].fetch()
            if board := request.get("TensorBoardOutputConfig"):
                place = host.root / hosts.below_root(
                    board.get("LocalPath") or TENSORBOARD_FOLDER, "TensorBoard's files"
                )
                place.mkdir(parents=True, exist_ok=True)
                uri = f"{board['S3OutputPath'].rstrip('/')}/{self._order.name}/tensorboard-output"
                found.append(Synced(s3, place, uri, growing=True))
        return found

    def _train(self, machines: list[Host], synced: list[Synced], logs: Any) -> tuple[str, str | None]:
        """Run the containers to their end, with their logs and checkpoints; returns how and why they ended."""
        shipper = LogShipper(logs, self._order.name)
        kind = ""
        with hosts.plain_paths(machines) as roots, shipper, syncing(synced) as last_sweep:
            orders = self._container_orders(machines, roots)
            try:
                with Containers(orders, endpoint_address(self._order.endpoint), machines[0].root.parent) as containers:
                    for host, output in zip(machines, containers.outputs, strict=True):
                        shipper.follow(host.name, output)
                    kind = self._watch(containers, len(machines))
            except NotRunning:
                with contextlib.suppress(Failed):
                    last_sweep()
                raise
            # A next attempt has what there is; a failed one has a better reason.
            with contextlib.suppress(*([Failed] if kind in ("reclaimed", "failed") else [])):
                last_sweep()
        if kind == "failed":
            assert self._first_failed is not None
            return kind, hosts.failure_reason(machines[self._first_failed], self._codes[self._first_failed])
        return kind, None

    def _container_orders(self, machines: list[Host], roots: list[Path]) -> container.Orders:
        order, request = self._order, self._order.request
        isolated = bool(request.get("EnableNetworkIsolation"))
        real = self._level == NAMESPACES
        return {
            "level": self._level,
            # Hosts meet on port 7777, which torch binds for all addresses: two jobs at once need two networks.
            "own_network": real and (isolated or len(machines) > 1),
            "forward_port": None if isolated else endpoint_address(order.endpoint)[1],
            "protected": hosts.protected_folders(),
            "hidden": hosts.hidden_folders(),
            "hosts": [
                {
                    "name": host.name,
                    "root": str(host.root),
                    "private": str(host.private),
                    "environment": hosts.container_environment(
                        host, request, order.arn, order.region, order.endpoint, None if real else root
                    ),
                    "command": hosts.command(request, None if real else root),
                    "read_only": hosts.read_only_folders(host, request),
                }
                for host, root in zip(machines, roots, strict=True)
            ],
        }

    def _watch(self, containers: Containers, count: int) -> str:
        """Await the end of all hosts; returns "completed", "failed" or what was asked for while they ran."""
        kind, kill_at = "completed", float("inf")
        while len(self._codes) < count:
            for number, code in containers.ended(POLL_SECONDS):
                self._codes[number] = code
                if code and kind == "completed":
                    kind, self._first_failed = "failed", number
                    kill_at = time.monotonic() + min(PEER_GRACE_SECONDS, self._order.grace_seconds)
                    containers.send(container.STOP)
            if self._wanted and kind == "completed" and len(self._codes) < count:
                kind = self._wanted
                kill_at = time.monotonic() + self._order.grace_seconds
                containers.send(container.STOP)
            if time.monotonic() >= kill_at:
                kill_at = float("inf")
                containers.send(container.KILL)
        return kind


# ── which level ─────────────────────────────────────────────────────────────────────────────────────────────────────


def level_for(folder: Path) -> str:
    """How a job in *folder* runs best on this machine."""
    covered = [Path(path) for path in (*hosts.protected_folders(), *hosts.hidden_folders())]
    if any(folder.resolve().is_relative_to(path.resolve()) for path in covered):
        return FOLDER  # the container would not see its own folder, or not for writing
    return best_level()


@functools.cache
def best_level() -> str:
    """ "namespaces" where this kernel lets this user make a container's view of things, else "folder". Tries it out."""
    if sys.platform != "linux":
        return FOLDER
    script = 'test -d /opt/ml/input && test "$$" = 1 && test "$(uname -n)" = algo-1'
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        request = {
            "TrainingJobName": "probe",
            "AlgorithmSpecification": {"ContainerEntrypoint": ["/bin/sh", "-c", script]},
            "ResourceConfig": {"InstanceCount": 1},
        }
        order = JobOrder("probe", "", "", request, Path(folder), "http://127.0.0.1:1", level=NAMESPACES)
        runner = Runner(order, listener=None)  # type: ignore[arg-type]  # it is not asked
        machines = hosts.plan_hosts(request, Path(folder))
        hosts.lay_out(machines, request, {host.name: host.name for host in machines})
        try:
            orders = runner._container_orders(machines, [machines[0].root])
            with Containers(orders, endpoint_address(order.endpoint), Path(folder)) as containers:
                os.close(containers.outputs[0])
                kind = runner._watch(containers, 1)
        except NotRunning:
            kind = "failed"
        remove(machines[0].private)
    return NAMESPACES if kind == "completed" else FOLDER


def remove(folder: Path) -> None:
    """Remove *folder*; what cannot be removed stays."""
    for place in ("", "*.private/"):
        for work in folder.glob(f"{place}layer-*/work/work"):  # the kernel's, made with no permissions at all
            work.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


# ── logs and checkpoints ────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def syncing(folders: list[Synced]) -> Iterator[Callable[[], None]]:
    """Copy *folders* to S3 about every second. Gives the function that does so for the last time, or raises Failed."""
    ended = threading.Event()

    def sweep_often() -> None:
        while not ended.wait(SYNC_SECONDS):
            for folder in folders:
                with contextlib.suppress(Failed):  # the next sweep tries again; the last one tells
                    folder.sweep()

    thread = threading.Thread(target=sweep_often, daemon=True)

    def sweep_last() -> None:
        ended.set()
        thread.join()
        for folder in folders:
            folder.sweep(last=True)

    thread.start()
    try:
        yield sweep_last
    finally:
        ended.set()
        thread.join()


class LogShipper:
    """Brings what containers write to CloudWatch Logs, each line an event, in order. Leaving the block awaits the last."""

    def __init__(self, client: Any, job: str) -> None:
        self._client, self._job = client, job
        self._waiting: dict[str, deque[tuple[int, str]]] = {}  # by host: (ms since the epoch, line)
        self._hosts: dict[str, int] = {}  # the seconds since the epoch in its stream's name
        self._streams: dict[str, str] = {}
        self._changed = threading.Condition()
        self._readers: list[threading.Thread] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ship_often, daemon=True)

    def __enter__(self) -> LogShipper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        quiet_since = begun = time.monotonic()
        for reader in self._readers:
            while reader.is_alive() and (now := time.monotonic()) < begun + LOG_PATIENCE_SECONDS:
                reader.join(POLL_SECONDS)
                if any(self._waiting.values()):  # it may stand still because these are too many
                    quiet_since = now
                elif now > quiet_since + OUTPUT_PATIENCE_SECONDS:
                    break
        self._ended.set()
        self._thread.join()

    def follow(self, host: str, output: int) -> None:
        """Read the descriptor *output* to its end, and close it."""
        self._waiting[host], self._hosts[host] = deque(), int(time.time())
        reader = threading.Thread(target=self._read, args=(output, host), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _read(self, output: int, host: str) -> None:
        rest = b""
        with open(output, "rb", buffering=0) as source:
            while data := source.read(1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                while len(rest) > EVENT_BYTES:
                    whole = cut(rest, EVENT_BYTES - EVENT_OVERHEAD_BYTES)
                    lines.append(rest[:whole])
                    rest = rest[whole:]
                self._add(host, lines)
        self._add(host, [rest])

    def _add(self, host: str, lines: list[bytes]) -> None:
        waiting = self._waiting[host]
        with self._changed:
            now = int(time.time() * 1000)
            if waiting:
                now = max(now, waiting[-1][0])  # a clock that was set back
            for line in lines:
                # CloudWatch Logs takes no empty message.
                waiting.extend((now, piece) for piece in pieces(line.removesuffix(b"\r")))
            while len(waiting) > MOST_WAITING and not self._ended.is_set():
                self._changed.wait(1)

    def _ship_often(self) -> None:
        while not self._ended.wait(FLUSH_SECONDS):
            self._ship()
        give_up_at = time.monotonic() + LOG_PATIENCE_SECONDS
        while not self._ship() and time.monotonic() < give_up_at:
            time.sleep(FLUSH_SECONDS)

    def _ship(self) -> bool:
        """Send what waits; returns whether all of it is sent."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            for host, waiting in list(self._waiting.items()):
                stream = self._make(host)
                while batch := self._batch(waiting):
                    events = [{"timestamp": when, "message": text} for when, text in batch]
                    self._client.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=events)
                    with self._changed:
                        for _ in batch:
                            waiting.popleft()
                        self._changed.notify_all()
        except (BotoCoreError, ClientError):
            return False
        return True

    def _batch(self, waiting: deque[tuple[int, str]]) -> list[tuple[int, str]]:
        batch: list[tuple[int, str]] = []
        size = 0
        with self._changed:
            for when, text in waiting:
                size += len(text.encode()) + EVENT_OVERHEAD_BYTES
                if size > BATCH_BYTES or len(batch) == BATCH_EVENTS:
                    break
                batch.append((when, text))
        return batch

    def _make(self, host: str) -> str:
        """The stream of *host*, made when its first line is sent. Each attempt has its own."""
        taken = self._client.exceptions.ResourceAlreadyExistsException
        while host not in self._streams:
            stream = f"{self._job}/{host}-{self._hosts[host]}"
            with contextlib.suppress(taken):
                self._client.create_log_group(logGroupName=LOG_GROUP)
            try:
                self._client.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
            except taken:  # an attempt that began in the same second
                self._hosts[host] += 1
            else:
                self._streams[host] = stream
        return self._streams[host]


def pieces(line: bytes) -> Iterator[str]:
    """*line* as text, in parts that fit an event."""
    data = line.decode("utf-8", "replace").encode()
    while data:
        whole = cut(data, EVENT_BYTES - EVENT_OVERHEAD_BYTES)
        yield data[:whole].decode("utf-8", "replace")
        data = data[whole:]


def cut(data: bytes, most: int) -> int:
    """How many of at most *most* bytes of *data* end with a whole character."""
    if len(data) <= most:
        return len(data)
    whole = most
    while whole > most - 4 and data[whole] & 0xC0 == 0x80:
        whole -= 1
    return whole


# ── the loopback AWS ────────────────────────────────────────────────────────────────────────────────────────────────


def endpoint_address(endpoint: str) -> tuple[str, int]:
    parts = urlsplit(endpoint)
    return parts.hostname or "127.0.0.1", parts.port or 80


@contextlib.contextmanager
def clients(order: JobOrder) -> Iterator[tuple[Any, Any]]:
    """S3 and CloudWatch Logs at the job's endpoint, whatever AWS configuration the caller has."""
    import boto3
    import botocore.session
    from botocore.config import Config

    nothing = {"profile": None, "config_file": os.devnull, "credentials_file": os.devnull, "ca_bundle": None}
    session = boto3.Session(
        aws_access_key_id=hosts.DUMMY_CREDENTIALS,
        aws_secret_access_key=hosts.DUMMY_CREDENTIALS,
        region_name=order.region,
        botocore_session=botocore.session.Session({name: (None, None, value, None) for name, value in nothing.items()}),
    )
    config = Config(
        proxies={},  # those of the environment are not for a loopback address
        retries={"mode": "standard", "total_max_attempts": 8},
        s3={"addressing_style": "path"},
        user_agent_extra=USER_AGENT,
        max_pool_connections=4,
    )
    made = [session.client(name, endpoint_url=order.endpoint, config=config) for name in ("s3", "logs")]
    try:
        yield made[0], made[1]
    finally:
        for client in made:
            client.close()
