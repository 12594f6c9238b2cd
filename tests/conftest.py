"""What the tests share: a state folder of their own, and the command line as a user runs it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Orchestrate = Callable[..., Answer]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder that this test alone uses."""
    folder = tmp_path / "state"
    monkeypatch.setenv("ORCHESTRATE_HOME", str(folder))
    monkeypatch.setenv("NO_COLOR", "1")
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to type commands in."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def orchestrate(home: Path, project: Path) -> Iterator[Orchestrate]:
    """The command line in a process of its own, typed in *project*."""

    def run(*words: str, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 120) -> Answer:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=cwd or project,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
        )
        return Answer(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    yield run
    stop_everything(home)


def start(*words: str, cwd: Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """The command line, left running."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def wait_until(condition: Callable[[], Any], seconds: float = 30, what: str = "it") -> Any:
    """The first true value of *condition*; fails the test after *seconds*."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    pytest.fail(f"{what} did not come about within {seconds} s")


def all_of(terminal: int) -> bytes:
    """All that was written to a terminal so far: one read may give only a part of it."""
    parts = []
    while select.select([terminal], [], [], 0.2)[0]:
        try:
            parts.append(os.read(terminal, 65536))
        except OSError:  # its other end is closed, and nothing is left
            break
    return b"".join(parts)


def processes_of(folder: Path) -> list[int]:
    """Live processes whose command line or environment names *folder*: commands, and all that runs have started."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            words = " ".join([*process.cmdline(), *process.environ().values()])
            if str(folder) in words:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def stop_everything(folder: Path) -> None:
    import psutil

    for pid in processes_of(folder):
        try:
            psutil.Process(pid).kill()
        except psutil.Error:
            continue


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB. Skipped where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
