"""The command line against a rehearsed cloud: `cloud` is one that all tests of this process share, `shell` is where one types."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from orchestrator.aws.client import Aws
from orchestrator.rehearsal import control
from orchestrator.runs import Event, Ledger, Run
from tests.conftest import REPOSITORY, Answer, stop_everything, wait_until
from tests.slow.forking import Forks

REGION = "us-east-1"
ROLE, BUCKET = control.role_arn(REGION), control.bucket_of(REGION)
SUBMIT = ("submit", "train.py", "--backend", "sagemaker", "--instance", "ml.m5.large")
REHEARSED = (*SUBMIT, "--rehearse")
NAMED = (*SUBMIT, "--role", ROLE, "--bucket", BUCKET, "--region", REGION)  # with AWS_ENDPOINT_URL in the environment
ALIVE = ("InProgress", "Stopping")

HELLO = """
import os, pathlib
print("hello")
print("[metrics] epoch=0 loss=0.5")
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.txt").write_text("weights")
"""
# Trains until the file `go` is there, beside the project, or it is told to stop: then it saves.
PATIENT = """
import os, pathlib, signal, sys, time
def save(*_):
    pathlib.Path(os.environ["SM_MODEL_DIR"], "saved.txt").write_text("on SIGTERM")
    print("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("[metrics] epoch=0 loss=0.5", flush=True)
go, step = pathlib.Path(sys.argv[1]), 0
while not go.exists():
    time.sleep(0.02)
    step += 1
    if step % 5 == 0:
        print("line", step // 5, flush=True)
print("done")
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.txt").write_text("weights")
"""


@dataclass
class Cloud:
    """A rehearsed cloud in a process of its own."""

    folder: Path
    url: str

    @property
    def environment(self) -> dict[str, str]:
        """What points AWS's clients at it."""
        return control.environment(self.url, REGION)

    def arm(self, *faults: str) -> None:
        control.call(self.url, "POST", "faults", list(faults))

    def clear(self) -> None:
        control.call(self.url, "DELETE", "faults")

    def state(self) -> dict[str, Any]:
        return dict(control.call(self.url, "GET", "state"))

    def calls(self) -> Counter[str]:
        return Counter(self.state()["calls"])

    def jobs(self) -> list[dict[str, Any]]:
        return list(self.state()["jobs"])

    def client(self, service: str) -> Any:
        return self.aws.client(service)

    def __post_init__(self) -> None:
        self.aws = Aws(REGION, endpoint=self.url)

    def settle(self) -> None:
        """Stop what still runs, and wait for it."""
        self.clear()
        for job in self.jobs():
            if job["status"] == "InProgress":
                with contextlib.suppress(ClientError):  # it has just ended
                    self.client("sagemaker").stop_training_job(TrainingJobName=job["name"])
        wait_until(lambda: not any(job["status"] in ALIVE for job in self.jobs()), what="the end of the jobs")


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    made = Cloud(folder, control.ensure(folder, grace_seconds=3, idle_seconds=600).url)
    yield made
    made.aws.close()
    control.stop(folder)


@pytest.fixture
def cloud(standing: Cloud, home: Path) -> Iterator[Cloud]:
    """The cloud of `--rehearse`, of this test's state folder as of every other's."""
    home.mkdir(mode=0o700)
    (home / "rehearsal").symlink_to(standing.folder)
    before = {job["name"] for job in standing.jobs()}
    yield Since(standing.folder, standing.url, before)
    standing.settle()


@dataclass
class Since(Cloud):
    """The cloud, without the jobs that it had before."""

    before: set[str] = field(default_factory=set)

    def jobs(self) -> list[dict[str, Any]]:
        return [job for job in super().jobs() if job["name"] not in self.before]


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A process that has all loaded already, and of which commands are forked."""
    made = Forks(REPOSITORY, {"NO_COLOR": "1"})
    yield made
    made.close()


@dataclass
class Shell:
    """Where commands are typed: a folder with train.py, a state folder, an environment."""

    project: Path
    home: Path
    forks: Forks
    environment: dict[str, str]
    typed: list[Typed] = field(default_factory=list)

    def __call__(self, *words: str, crash_at: str | None = None, **env: str) -> Answer:
        """What a command answers. It is forked, so that it need not load Python's modules first."""
        return self.together(list(words), crash_at=crash_at, **env)[0]

    def together(self, *commands: list[str], crash_at: str | None = None, **env: str) -> list[Answer]:
        told = self.forks.run(*commands, folder=self.project, crash_at=crash_at, env={**self.environment, **env})
        return [Answer(one["code"], one["out"], one["err"]) for one in told]

    def start(self, *words: str, **env: str) -> Typed:
        """A command in a process of its own, left running."""
        self.typed.append(Typed(self, words, env))
        return self.typed[-1]

    def write(self, script: str, name: str = "train.py") -> None:
        (self.project / name).write_text(textwrap.dedent(script))

    def go(self) -> None:
        """Let PATIENT go on to its end."""
        self.gate.touch()

    @property
    def gate(self) -> Path:
        return self.project.parent / "go"

    def runs(self) -> list[Run]:
        with Ledger.open_to_read(self.home / "ledger.sqlite") as ledger:
            return ledger.newest()

    def run(self) -> Run:
        """The only run that there is."""
        (run,) = self.runs()
        return run

    def events(self, run: Run) -> list[Event]:
        with Ledger.open_to_read(self.home / "ledger.sqlite") as ledger:
            return ledger.events(run.id)

    def status(self, *words: str) -> dict[str, Any]:
        answer = self("status", "--json", *words)
        assert answer.code == 0, answer.err
        return dict(answer.json)


class Typed:
    """A command that runs."""

    def __init__(self, shell: Shell, words: tuple[str, ...], env: dict[str, str]) -> None:
        self._out, self._err = (shell.project.parent / f"{name}-{time.monotonic_ns()}" for name in ("out", "err"))
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *words],
                cwd=shell.project,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **shell.environment, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text("utf-8", "replace")

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8", "replace")

    def says(self, text: str, seconds: float = 60) -> None:
        """Wait until it has printed *text*."""

        def said() -> bool:
            return text in self.out or text in self.err

        wait_until(lambda: said() or self.process.poll() is not None, seconds, text)
        assert said(), f"{text!r} is not in:\n{self.out}\n{self.err}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 60) -> Answer:
        self.process.wait(seconds)
        return Answer(self.process.returncode, self.out, self.err)


@pytest.fixture
def shell(cloud: Cloud, home: Path, project: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell whose `submit` goes to *cloud*: with --rehearse, or by its AWS settings."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "SAGEMAKER_"))]:
        monkeypatch.delenv(name)
    nowhere = str(project.parent / "nobody")
    away = {
        "HOME": nowhere,
        "AWS_CONFIG_FILE": f"{nowhere}/config",
        "AWS_SHARED_CREDENTIALS_FILE": f"{nowhere}/credentials",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_COLOR": "1",
        "ORCHESTRATE_HOME": str(home),
    }
    made = Shell(project, home, forks, away)
    made.write(HELLO)
    yield made
    stop_everything(home)
    for typed in made.typed:
        typed.process.wait(30)


@pytest.fixture
def patient(shell: Shell) -> Shell:
    """Its train.py trains until shell.go()."""
    shell.write(PATIENT)
    return shell


def explained(run: Run) -> dict[str, Any]:
    return dict(json.loads((Path(run.run_dir) / "explained.json").read_bytes()))


def faulty(*faults: str) -> tuple[str, ...]:
    """The flags that have a rehearsed cloud misbehave: a submit puts away what was armed before it."""
    return tuple(word for fault in faults for word in ("--fault", fault))


def training(cloud: Cloud) -> dict[str, Any]:
    """The only job there is, once its script runs."""

    def running() -> dict[str, Any] | None:
        jobs = cloud.jobs()
        return jobs[0] if jobs and jobs[0]["secondary"] == "Training" else None

    found: dict[str, Any] = wait_until(running, what="training")
    return found
