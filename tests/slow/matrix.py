"""The crash-and-retry matrix of SageMaker submits: kill at a step, with a fault on a call, go on, and ask the cloud what it has.

    python -m tests.slow.matrix --runs 500 --seed 1        # prints the figures that docs/reliability.md quotes

The judge is the rehearsed cloud, not the tool: how many jobs it has of each name, and whether each ran and left its model.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.rehearsal import control
from orchestrator.runs import Ledger, Run
from tests.conftest import REPOSITORY
from tests.slow.forking import Forks

REGION = "us-east-1"
STEPS = (
    "flags read",
    "script found",
    "data ready",
    "package hashed",
    "plan made",
    "launch lock held",
    "ledger open",
    "intent written",
    "archive ready",
    "packaged written",
    "login checked",
    "bucket checked",
    "object about to be put",
    "object put",
    "bootstrap uploaded",
    "package uploaded",
    "folder complete",
    "data uploaded",
    "checkpoints copied",
    "job file uploaded",
    "uploaded written",
    "starting written",
    "create about to be sent",
    "create answered",
    "accepted written",
    "started",
    "let go",
)
KINDS = (
    "throttle", "500-before", "500-after", "reset-before", "reset-after", "hang-before", "hang-after", "quota", "expired",
    "denied",
)  # fmt: skip
CALLS = ("CreateTrainingJob", "DescribeTrainingJob", "PutObject", "HeadObject", "HeadBucket", "GetCallerIdentity")
SCRIPT = """
import os, pathlib
print("[metrics] loss=1")
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.txt").write_text(os.environ["ORCHESTRATE_RUN_ID"])
"""
MOST_TRIES = 20
NOBODY, ANOTHER = "http://127.0.0.1:9", "/as/999988887777"  # a dead network, and a login of another account


@dataclass
class Figures:
    """What came of the runs. Every list names the seeds at fault."""

    runs: int = 0
    kills: int = 0
    faults: int = 0
    tries: int = 0
    elsewhere: int = 0  # commands that met a dead network or another account
    steps: set[str] = field(default_factory=set)
    pairs: set[tuple[str, str]] = field(default_factory=set)
    twice: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    without_model: list[int] = field(default_factory=list)
    never_through: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.twice or self.lost or self.without_model or self.never_through)


class Matrix:
    """One rehearsed cloud, one ledger, and a process to fork commands from."""

    def __init__(self, folder: Path) -> None:
        self.project, self.home = folder / "project", folder / "state"
        self.project.mkdir()
        (self.project / "train.py").write_text(SCRIPT)
        (self.project / "data").mkdir()
        (self.project / "data" / "rows.csv").write_text("1\n")
        self.cloud = control.ensure(folder / "cloud", level="folder", grace_seconds=2)
        self._folder = folder / "cloud"
        environment = {"ORCHESTRATE_HOME": str(self.home), "NO_COLOR": "1", "AWS_EC2_METADATA_DISABLED": "true"}
        self.forks = Forks(REPOSITORY, environment | control.environment(self.cloud.url, REGION))

    def close(self) -> None:
        self.forks.close()
        control.stop(self._folder)

    def words(self, name: str, *more: str) -> list[str]:
        """A submit of the run called *name*."""
        role, bucket = control.role_arn(REGION), control.bucket_of(REGION)
        place = ["--backend", "sagemaker", "--instance", "ml.m5.xlarge", "--role", role, "--bucket", bucket]
        return ["submit", "train.py", *place, "--region", REGION, "--data", "rows=data", "--name", name, "--yes", *more]

    def arm(self, *faults: str) -> None:
        control.call(self.cloud.url, "DELETE", "faults")
        if faults:
            control.call(self.cloud.url, "POST", "faults", list(faults))

    def jobs(self) -> dict[str, list[dict[str, Any]]]:
        """The cloud's jobs by our run's name."""
        found = collections.defaultdict(list)
        for job in control.call(self.cloud.url, "GET", "state")["jobs"]:
            found[job["name"].removeprefix("orc-").rpartition("-")[0]].append(job)
        return found

    def ledger(self) -> dict[str, list[Run]]:
        """What the tool knows, newest first, by our run's name."""
        found = collections.defaultdict(list)
        with Ledger.open_to_read(self.home / "ledger.sqlite") as ledger:
            for run in ledger.newest():
                found[run.name].append(run)
        return found

    def one(self, seed: int, figures: Figures) -> None:
        """One run: killed at a step or not, with up to two faults, until it goes through."""
        dice = random.Random(seed)
        name = f"seed-{seed}"
        (self.project / "train.py").write_text(f"# {seed}\n{SCRIPT}")  # so that there is something to upload
        (self.project / "data" / "rows.csv").write_text(f"{seed}\n")
        step = None if dice.random() < 0.1 else STEPS[seed % len(STEPS)]
        every = [pair for pair in itertools.product(KINDS, CALLS) if pair[0] != "quota" or pair[1] == CALLS[0]]
        chosen = [every[(seed // len(STEPS) * 7 + seed) % len(every)]] if dice.random() < 0.9 else []
        chosen += [dice.choice(every)] if dice.random() < 0.2 else []
        self.arm(*(f"{kind}:{call}:count={dice.choice((1, 1, 2, 4))}" for kind, call in chosen))
        figures.faults += len(chosen)
        figures.steps |= {step} if step else set()
        figures.pairs |= set(chosen)
        more = ["--instance", "ml.m5.xlarge,ml.m5.large"] if seed % 3 == 0 else []
        words = self.words(name, "--detach", *more)
        self._try(words, step, figures)
        for _ in range(MOST_TRIES):
            known = [run for run in self.ledger()[name] if run.state != "abandoned"]
            next_step = dice.choice(STEPS) if dice.random() < 0.2 else None
            by_id = known and dice.random() < 0.4
            place = dice.choice((NOBODY, self.cloud.url + ANOTHER)) if dice.random() < 0.2 else None
            figures.elsewhere += place is not None
            answer = self._try(["resume", known[0].id, "--detach"] if by_id else words, next_step, figures, place)
            if answer["code"] == 0:
                return
        figures.never_through.append(f"{seed}: {answer['code']} {answer['err'][-300:]}")

    def _try(self, words: list[str], step: str | None, figures: Figures, place: str | None = None) -> dict[str, Any]:
        env = {} if place is None else {"AWS_ENDPOINT_URL": place}
        (answer,) = self.forks.run(words, folder=self.project, crash_at=step, env=env)
        figures.tries += 1
        figures.kills += answer["code"] == -9
        return answer

    def settled(self, seconds: float = 300) -> None:
        """Wait until the cloud has nothing more to do."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            states = [job["status"] for jobs in self.jobs().values() for job in jobs]
            if not {"InProgress", "Stopping"} & set(states):
                return
            time.sleep(0.2)
        raise TimeoutError(f"jobs still run: {collections.Counter(states)}")

    def judge(self, seeds: range, figures: Figures) -> None:
        """Ask the cloud what it has, and compare it with the ledger."""
        self.arm()
        self.settled()
        self.forks.run(
            ["list", "--all"], folder=self.project, timeout=900
        )  # asks for those that were alive when last seen
        jobs, ledger = self.jobs(), self.ledger()
        for seed in seeds:
            name = f"seed-{seed}"
            made = jobs.get(name, [])
            known = {run.remote_id for run in ledger.get(name, []) if run.state == "succeeded"}
            if len(made) > 1:
                figures.twice.append(seed)
            if not made or {job["name"] for job in made} != known:
                figures.lost.append(seed)
            if any(job["status"] != "Completed" for job in made) or not self._model_of(made):
                figures.without_model.append(seed)

    def _model_of(self, made: list[dict[str, Any]]) -> bool:
        from orchestrator.aws.client import shared

        aws = shared(REGION, self.cloud.url, None)
        key = f"orchestrate/runs/{made[0]['name']}/output/model.tar.gz" if made else ""
        listed = aws.client("s3").list_objects_v2(Bucket=control.bucket_of(REGION), Prefix=key)
        return bool(made) and listed["KeyCount"] == 1


def run(folder: Path, seeds: range, tell: Any = None, most_seconds: float = float("inf")) -> Figures:
    """All of *seeds*, one after the other, or as many as *most_seconds* allow; the figures."""
    figures, began = Figures(), time.monotonic()
    matrix = Matrix(folder)
    try:
        for seed in seeds:
            if time.monotonic() - began > most_seconds:
                break
            matrix.one(seed, figures)
            figures.runs += 1
            if tell and figures.runs % 20 == 0:
                tell(f"{figures.runs} runs, {figures.kills} kills, {time.monotonic() - began:.0f} s")
        matrix.judge(seeds[: figures.runs], figures)
    finally:
        matrix.close()
    figures.seconds = time.monotonic() - began
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further run after so long")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds = range(options.seed, options.seed + options.runs)
        figures = run(Path(folder), seeds, lambda line: print(line, file=sys.stderr, flush=True), options.seconds)
    print(
        f"{figures.runs} runs, {figures.tries} commands, {figures.kills} killed at {len(figures.steps)} steps,"
        f" {figures.faults} faults of {len(figures.pairs)} kinds, {figures.elsewhere} met a dead network or another account,"
        f" {figures.seconds:.0f} s\n"
        f"launched twice: {figures.twice}\nlost: {figures.lost}\nwithout a model: {figures.without_model}\n"
        f"never through: {figures.never_through}"
    )
    return 0 if figures.clean else 1


if __name__ == "__main__":
    sys.exit(main())
