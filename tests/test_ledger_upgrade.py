"""A ledger that an earlier version wrote is taken over once, with a copy beside it, and never half."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.runs import Ledger, RunState
from tests.conftest import REPOSITORY
from tests.test_runs import a_run, linux_only, without_root_powers

# What the first version made.
FIRST_SCHEMA = """
CREATE TABLE runs (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, backend TEXT NOT NULL, state TEXT NOT NULL, script TEXT NOT NULL,
  script_key TEXT NOT NULL, created_at TEXT NOT NULL, spec TEXT NOT NULL, plan TEXT NOT NULL, run_dir TEXT NOT NULL,
  request TEXT, package_digest TEXT, remote_id TEXT, pid INTEGER, started_at TEXT, ended_at TEXT, exit_code INTEGER,
  reason TEXT, estimated_usd TEXT, actual_usd TEXT
);
CREATE INDEX runs_by_time ON runs (created_at);
CREATE INDEX runs_by_script ON runs (script_key, state);
CREATE TABLE events (
  run_id TEXT NOT NULL REFERENCES runs (id), at TEXT NOT NULL, state TEXT NOT NULL, note TEXT, untold INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX events_by_run ON events (run_id);
CREATE TABLE metrics (
  run_id TEXT NOT NULL REFERENCES runs (id), seq INTEGER NOT NULL, at TEXT NOT NULL, data TEXT NOT NULL,
  PRIMARY KEY (run_id, seq)
);
PRAGMA user_version = 1;
"""
FIRST_COLUMNS = (
    "id, name, backend, state, script, script_key, created_at, spec, plan, run_dir, request, started_at, ended_at,"
    " actual_usd"
)
RUNS = 40


def add_first_run(connection: sqlite3.Connection, run_id: str) -> None:
    """As the first version did."""
    at = "2026-01-01T00:00:00.000+00:00"
    spec, plan = json.dumps({"arguments": ["é"]}), json.dumps({"source_dir": "/p"})
    values = (
        run_id,
        "mlp",
        "local",
        "succeeded",
        "mlp.py",
        "shipped:mlp",
        at,
        spec,
        plan,
        "/nowhere",
        "{}",
        at,
        at,
        "0",
    )
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO runs ({FIRST_COLUMNS}) VALUES ({marks})", values)
    connection.execute("INSERT INTO events (run_id, at, state) VALUES (?, ?, 'succeeded')", (run_id, at))
    connection.execute("INSERT INTO metrics VALUES (?, 0, ?, ?)", (run_id, at, json.dumps({"loss": 0.5})))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of the first version, as it left it."""
    file = tmp_path / "state" / "ledger.sqlite"
    file.parent.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(FIRST_SCHEMA)
        for number in range(RUNS):
            add_first_run(connection, f"r-{number:03d}")
        connection.commit()
    return file


def schema_version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def rows_of_the_first_version(path: Path) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {FIRST_COLUMNS} FROM runs ORDER BY rowid").fetchall()


def copy_of(path: Path) -> Path:
    return path.with_name("ledger.sqlite.v1")


def test_a_ledger_of_the_first_version_is_taken_over_with_all_that_is_in_it(path: Path) -> None:
    before = rows_of_the_first_version(path)
    with Ledger.open(path) as ledger:
        runs = ledger.newest()
        assert len(runs) == RUNS
        assert runs[0].spec == {"arguments": ["é"]}
        assert (runs[0].launch_key, runs[0].billable_seconds, runs[0].told, runs[0].rehearsed) == (
            None,
            None,
            False,
            False,
        )
        assert ledger.metrics("r-000") == [{"loss": 0.5}]
        assert [event.state for event in ledger.events("r-000")] == ["succeeded"]
        ledger.insert(a_run("r-new", launch_key="k", rehearsed=True, endpoint="http://127.0.0.1:1"))
        assert ledger.get("r-new").rehearsed is True
    assert schema_version(path) == 2
    assert rows_of_the_first_version(path)[:RUNS] == before


def test_the_ledger_as_it_was_is_kept_beside_it_for_its_owner_alone(path: Path) -> None:
    before = rows_of_the_first_version(path)
    Ledger.open(path).__exit__()
    assert schema_version(copy_of(path)) == 1
    assert rows_of_the_first_version(copy_of(path)) == before
    assert copy_of(path).stat().st_mode & 0o077 == 0
    names = {file.name.removesuffix("-wal").removesuffix("-shm") for file in path.parent.iterdir()}
    assert names == {"ledger.sqlite", "ledger.sqlite.v1"}


def test_a_ledger_that_was_taken_over_is_as_one_that_is_new(path: Path, tmp_path: Path) -> None:
    def shape(file: Path) -> tuple[object, object]:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            columns = connection.execute("SELECT * FROM pragma_table_info('runs')").fetchall()
            indexes = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'index' ORDER BY 1"
            ).fetchall()
        return columns, indexes

    Ledger.open(path).__exit__()
    Ledger.open(tmp_path / "other" / "ledger.sqlite").__exit__()
    assert shape(path) == shape(tmp_path / "other" / "ledger.sqlite")


def test_a_new_ledger_leaves_no_copy(tmp_path: Path) -> None:
    new = tmp_path / "new" / "ledger.sqlite"
    Ledger.open(new).__exit__()
    Ledger.open(new).__exit__()
    assert [file.name for file in new.parent.iterdir()] == ["ledger.sqlite"]


COMMAND = """
import sys
from pathlib import Path
from orchestrator.runs import Ledger
print("ready", flush=True)
sys.stdin.readline()
with Ledger.open(Path(sys.argv[1])) as ledger:
    ledger.set(sys.argv[2], launch_key="of " + sys.argv[2])
"""


def test_of_eight_commands_at_once_one_takes_it_over_and_none_is_lost(path: Path) -> None:
    before = rows_of_the_first_version(path)
    run_ids = [f"r-{number:03d}" for number in range(8)]
    with contextlib.ExitStack() as stack:
        commands = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", COMMAND, str(path), run_id],
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            for run_id in run_ids
        ]
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as held:
            held.execute("BEGIN IMMEDIATE")  # so that all of them see the first version, and then wait for their turn
            for command in commands:
                assert command.stdin is not None
                assert command.stdout is not None
                assert command.stdout.readline() == b"ready\n"
                command.stdin.write(b"go\n")
                command.stdin.flush()
            time.sleep(0.5)
            held.execute("ROLLBACK")
        for command in commands:
            _, errors = command.communicate(timeout=60)
            assert command.returncode == 0, errors
    with Ledger.open(path) as ledger:
        assert [ledger.get(run_id).launch_key for run_id in run_ids] == [f"of {run_id}" for run_id in run_ids]
        assert len(ledger.newest()) == RUNS
    assert schema_version(path) == 2
    assert rows_of_the_first_version(copy_of(path)) == before


def test_a_command_of_the_first_version_that_still_runs_can_write_its_end(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as old:
        Ledger.open(path).__exit__()
        add_first_run(old, "r-late")
        old.commit()
    with Ledger.open(path) as ledger:
        assert ledger.get("r-late").state == RunState.SUCCEEDED


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from orchestrator import runs
    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    {point}
    runs.Ledger.open(Path(sys.argv[1]))
"""
POINTS = {
    "while the copy is made": "runs.Path.replace = killed",
    "between two of its steps": (
        "runs._apply = lambda connection, text:"
        " (connection.execute('ALTER TABLE runs ADD COLUMN launch_key TEXT'), killed())"
    ),
    "before the commit": "runs.max = killed",
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_the_middle_it_is_still_the_old_one_and_the_next_command_takes_it_over(
    path: Path, point: str
) -> None:
    before = rows_of_the_first_version(path)
    done = without_root_powers(KILLED.format(point=POINTS[point]), str(path))
    assert done.returncode == -9, done.stderr
    assert schema_version(path) == 1
    assert rows_of_the_first_version(path) == before
    with Ledger.open(path) as ledger:
        assert len(ledger.newest()) == RUNS
    assert rows_of_the_first_version(copy_of(path)) == before
    assert not list(path.parent.glob("*.part"))


@linux_only
def test_a_disk_with_no_room_for_the_copy_leaves_the_ledger_as_it_was_and_readable(path: Path) -> None:
    code = """
        import resource, signal, sys
        from pathlib import Path
        from orchestrator.errors import StateError
        from orchestrator.runs import Ledger
        path = Path(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        try:
            Ledger.open(path)
        except StateError as error:
            assert "full" in error.what or "disk I/O" in error.what, error.what
        else:
            raise SystemExit("it was taken over")
        with Ledger.open_to_read(path) as ledger:
            assert len(ledger.newest()) == 40
            assert not ledger.writable
    """
    done = without_root_powers(code, str(path))
    assert done.returncode == 0, done.stderr
    assert schema_version(path) == 1
    assert not copy_of(path).exists()


@linux_only
def test_in_a_folder_that_cannot_be_written_the_old_ledger_is_still_listed(path: Path) -> None:
    path.chmod(0o400)
    path.parent.chmod(0o500)
    code = """
        import sys
        from pathlib import Path
        from orchestrator.runs import Ledger
        with Ledger.open_to_read(Path(sys.argv[1])) as ledger:
            assert len(ledger.newest()) == 40
            assert ledger.get("r-001").told is False
            assert ledger.earlier_seconds("shipped:mlp", {"arguments": ["é"]}) == 0.0
            assert ledger.alive() == []
            assert not ledger.writable
    """
    done = without_root_powers(code, str(path))
    path.parent.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert schema_version(path) == 1
