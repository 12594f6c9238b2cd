"""A root folder as a platform lays it out, and bootstrap.py started in it as a platform starts it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

BOOTSTRAP = Path(__file__).resolve().parents[2] / "orchestrator" / "bootstrap.py"
PATIENCE_SECONDS = 60  # until something that should happen counts as never happening

Files = Mapping[str, "str | bytes"]


def manifest_digest(files: Files, mode: str = "644") -> str:
    """The digest as docs/design.md defines it, computed from the files themselves."""
    text = b"orchestrate package 1\n"
    for path, content in sorted((path.encode(), as_bytes(content)) for path, content in files.items()):
        text += b"%s %s %d:%s\n" % (mode.encode(), hashlib.sha256(content).hexdigest().encode(), len(path), path)
    return hashlib.sha256(text).hexdigest()


def as_bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else textwrap.dedent(content).encode()


def archive_of(files: Files) -> bytes:
    """A .tar.gz of *files*, all of mode 644."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(as_bytes(content)), 0o644
            tar.addfile(member, io.BytesIO(as_bytes(content)))
    return gzip.compress(buffer.getvalue(), mtime=0)


@dataclass
class Ended:
    """How bootstrap.py ended, and what it left behind."""

    code: int
    out: bytes
    err: str
    failure: str | None


@dataclass
class Place:
    """A root folder for one run."""

    root: Path
    run_id: str = field(default_factory=lambda: f"r-{uuid.uuid4().hex[:12]}")
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def lay_out(
        self,
        files: Files,
        *,
        hosts: tuple[str, ...] = ("algo-1",),
        channels: tuple[str, ...] = (),
        archive: bytes | None = None,
        **job: Any,
    ) -> None:
        """Write what a platform writes: configuration, package, job.json (with *job*'s fields instead of the usual)."""
        for folder in ("config", "data/code", "data/job", *(f"data/{name}" for name in channels)):
            (self.root / "input" / folder).mkdir(parents=True, exist_ok=True)
        resources = {"hosts": list(hosts), "current_host": hosts[0], "network_interface_name": "lo"}
        self.write("input/config/resourceconfig.json", resources)
        self.write("input/config/inputdataconfig.json", {name: {} for name in (*channels, "code", "job")})
        shutil.copy(BOOTSTRAP, self.root / "input/data/code/bootstrap.py")
        (self.root / "input/data/code/package.tar.gz").write_bytes(archive_of(files) if archive is None else archive)
        fields = {
            "version": 1,
            "run_id": self.run_id,
            "script": next(iter(files)),
            "arguments": [],
            "hyperparameters": {},
            "environment": {},
            "package_digest": manifest_digest(files),
            "processes": 1,
            "grace_seconds": 60,
        }
        self.write("input/data/job/job.json", {**fields, **job})

    def write(self, path: str, value: object) -> None:
        (self.root / path).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")

    def start(
        self,
        *,
        prefix: Sequence[str] = (),
        python: str = sys.executable,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """bootstrap.py, after the words of *prefix*, in a session of its own; its stdout and stderr are pipes."""
        environment = {**os.environ, "ORCHESTRATE_ROOT": str(self.root), "PYTHONWARNINGS": "error", **(env or {})}
        command = [*prefix, python, str(self.root / "input/data/code/bootstrap.py")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **{**pipes, **options})
        self.started.append(process)
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> Ended:
        """Wait for *process*."""
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        failure = self.root / "output/failure"
        told = failure.read_text(encoding="utf-8") if failure.exists() else None
        return Ended(process.returncode, out or b"", (err or b"").decode("utf-8", "replace"), told)

    def run(self, files: Files, **job: Any) -> Ended:
        """Lay *files* out and run the first of them to its end."""
        self.lay_out(files, **job)
        return self.ended(self.start())

    def alive(self) -> list[psutil.Process]:
        """The processes of this run: the script and all that inherited its environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    process.status() != psutil.STATUS_ZOMBIE
                    and process.environ().get("ORCHESTRATE_RUN_ID") == self.run_id
                ):
                    found.append(process)
        return found


def until(condition: Callable[[], Any]) -> Any:
    """What *condition* returns as soon as that is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
    return value


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A root folder whose name needs quoting."""
    root = tmp_path / "a 'root'; é"
    root.mkdir()
    place = Place(root)
    yield place
    for process in place.started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):  # not read to their ends, which survivors would keep open
            if stream:
                stream.close()
    for left in place.alive():
        with contextlib.suppress(psutil.Error):
            left.kill()


@pytest.fixture(scope="session")
def namespaces() -> list[str]:
    """The words before a command that make it PID 1 of namespaces of its own, as in a container."""
    words = ["unshare", "--user", "--map-root-user", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a user make namespaces")
    return words
