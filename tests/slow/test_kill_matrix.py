"""kill -9 at every step of a submit: no run is lost, nothing runs twice or on, and the next command goes through.

A run at which the record mode finds a step that is not in POINTS fails, so no new step can escape the matrix.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Orchestrate, processes_of, start, wait_until

pytestmark = pytest.mark.slow

COMMAND_POINTS = (
    "flags read",
    "script found",
    "data ready",
    "package hashed",
    "plan made",
    "ledger open",
    "intent written",
    "archive ready",
    "packaged written",
    "starting written",
    "root laid out",
    "request written",
    "supervisor started",
    "started",
    "watch started",
    "end seen",
    "receipt printed",
)
SUPERVISOR_POINTS = (
    "supervisor: lock held",
    "supervisor: running written",
    "supervisor: script started",
    "supervisor: exit written",
    "supervisor: end written",
)
DETACHED_POINTS = ("let go",)
POINTS = COMMAND_POINTS + SUPERVISOR_POINTS
BEFORE_THE_INTENT = COMMAND_POINTS[: COMMAND_POINTS.index("intent written")]

SCRIPT = """
import os, sys, time
with open(os.environ["TRAINED"], "a") as file:
    file.write(os.environ["ORCHESTRATE_RUN_ID"] + "\\n")
for step in range(5):
    print(f"[metrics] step={step} loss=1", flush=True)
    time.sleep(0.1)
"""


@pytest.fixture
def trained(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the script notes each of its starts."""
    path = project.parent / "trained"
    monkeypatch.setenv("TRAINED", str(path))
    (project / "train.py").write_text(SCRIPT)
    return path


def starts(trained: Path) -> list[str]:
    return trained.read_text().split() if trained.exists() else []


def recorded(project: Path, *words: str) -> list[str]:
    record = project.parent / "record"
    process = start("submit", *words, cwd=project, env={"ORCHESTRATE_CRASH_RECORD": str(record)})
    process.communicate(timeout=60)
    assert process.returncode == 0
    return record.read_text().splitlines()


def test_every_step_is_in_the_matrix(orchestrate: Orchestrate, project: Path, home: Path, trained: Path) -> None:
    assert set(recorded(project)) == set(POINTS)
    assert len(POINTS) >= 12
    detached = recorded(project, "--detach")
    wait_until(lambda: not processes_of(home), what="the end of the detached run")
    assert set(detached) - set(POINTS) == set(DETACHED_POINTS)


def killed_at(point: str, project: Path, *words: str) -> int:
    """Submit, with SIGKILL at *point*, and wait until nobody is left."""
    process = start("submit", *words, cwd=project, env={"ORCHESTRATE_CRASH_AT": point})
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode


def check_what_is_left(point: str, orchestrate: Orchestrate, home: Path, trained: Path) -> None:
    wait_until(lambda: not processes_of(home), seconds=60, what=f"the end of every process after {point!r}")
    runs = wait_until(lambda: settled(orchestrate), seconds=60, what=f"an ended run after {point!r}")
    if point in BEFORE_THE_INTENT:
        assert runs == [], "nothing was written yet"
    else:
        assert len(runs) == 1, f"{point!r}: the run was lost or doubled"
        assert len(starts(trained)) <= 1, f"{point!r}: it ran twice"
        if runs[0]["state"] == "succeeded":
            assert starts(trained) == [runs[0]["id"]], f"{point!r}: a success that did not run"
        if runs[0]["state"] == "abandoned":
            assert starts(trained) == [], f"{point!r}: it ran although the ledger says that nothing did"
    if (home / "ledger.sqlite").exists():
        with sqlite3.connect(home / "ledger.sqlite") as ledger:
            assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        ledger.close()


def settled(orchestrate: Orchestrate) -> list[dict[str, object]] | None:
    """The runs, once all have ended; an empty list in a list's place where there is none."""
    answer = orchestrate("list", "--json")
    assert answer.code == 0, answer.err
    runs: list[dict[str, object]] = answer.json
    done = all(run["state"] in ("succeeded", "failed", "stopped", "abandoned") for run in runs)
    return _Runs(runs) if done else None


class _Runs(list[dict[str, object]]):
    """A list that is true when it is empty, so that waiting for it can end."""

    def __bool__(self) -> bool:
        return True


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_step_nothing_is_lost_and_the_next_submit_goes_through(
    point: str, orchestrate: Orchestrate, project: Path, home: Path, trained: Path
) -> None:
    code = killed_at(point, project)
    assert (code == -9) == (point in COMMAND_POINTS), f"the command ended with {code} at {point!r}"
    check_what_is_left(point, orchestrate, home, trained)
    before = starts(trained)
    answer = orchestrate("submit", "--json")
    assert answer.code == 0, answer.err
    assert starts(trained) == [*before, answer.json["id"]]
    leftovers = [path.name for path in (home / "packages").iterdir() if not path.name.endswith(".tar.gz")]
    assert not leftovers, f"{point!r} left {leftovers} in packages/"


@pytest.mark.parametrize("point", [*DETACHED_POINTS, *SUPERVISOR_POINTS])
def test_killed_at_a_step_of_a_detached_submit(
    point: str, orchestrate: Orchestrate, project: Path, home: Path, trained: Path
) -> None:
    killed_at(point, project, "--detach")
    check_what_is_left(point, orchestrate, home, trained)


def test_a_power_cut_at_any_step_leaves_a_ledger_that_opens(
    orchestrate: Orchestrate, project: Path, home: Path, trained: Path
) -> None:
    """The database file and its log as they are at a kill, with the log cut at every frame, still hold what was committed."""
    killed_at("starting written", project)
    database, log = (home / "ledger.sqlite").read_bytes(), (home / "ledger.sqlite-wal").read_bytes()
    frame = 24 + int.from_bytes(log[8:12], "big")
    seen = []
    for cut in [*range(32, len(log), frame), len(log)]:
        folder = home.parent / f"cut-{cut}"
        folder.mkdir()
        (folder / "ledger.sqlite").write_bytes(database)
        (folder / "ledger.sqlite-wal").write_bytes(log[:cut])
        with sqlite3.connect(folder / "ledger.sqlite") as ledger:
            assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            if ledger.execute("SELECT count(*) FROM sqlite_master WHERE name = 'runs'").fetchone()[0]:
                seen.append(ledger.execute("SELECT state FROM runs").fetchall())
        ledger.close()
    assert seen[-1] == [("starting",)]
    assert json.dumps(seen).count("starting") >= 1
