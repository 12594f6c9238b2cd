"""What was submitted: one row a run, written before anything is started, and never lost after that.

SQLite in WAL mode with `synchronous=FULL`: a row that was committed is on the disk before the next step begins. Several
commands may use the ledger at once; each change is one transaction that waits for its turn.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput, NotInCatalog, StateError, shown

SCHEMA_VERSION = 1
BUSY_SECONDS = 60.0


class RunState(enum.StrEnum):
    """How a run stands. A state that this version does not know is shown as it is and counts as not ended."""

    CREATED = "created"  # the intent is in the ledger; nothing else has happened
    PACKAGED = "packaged"  # the archive of the code lies ready
    STARTING = "starting"  # asked to start; whether it has is not known yet
    RUNNING = "running"
    STOPPING = "stopping"  # asked to save and end
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # ended because somebody, or a limit, asked for it
    ABANDONED = "abandoned"  # its submit was killed before the script began: nothing ran


ENDED = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED, RunState.ABANDONED})


@dataclass(frozen=True)
class Run:
    """One row of the ledger. Times are UTC, ISO 8601; money is a decimal in a string, USD; plan and request are JSON.

    script_key tells which script this was, so that its earlier runs can be found: an absolute path, or `shipped:NAME`.
    """

    id: str
    name: str
    backend: str
    state: str
    script: str
    script_key: str
    created_at: str
    spec: Mapping[str, Any]
    plan: Mapping[str, Any]
    run_dir: str
    request: Mapping[str, Any] | None = None
    package_digest: str | None = None
    remote_id: str | None = None
    pid: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    estimated_usd: str | None = None
    actual_usd: str | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def seconds(self, now: str | None = None) -> float | None:
        """Seconds from start to end, or to *now* while it runs; None where it never started."""
        if self.started_at is None:
            return None
        end = datetime.fromisoformat(self.ended_at or now or utc_now())
        return max((end - datetime.fromisoformat(self.started_at)).total_seconds(), 0.0)


@dataclass(frozen=True)
class Event:
    """One change of a run's state, and what there is to say about it."""

    at: str
    state: str
    note: str | None


_JSON_FIELDS = {"spec", "plan", "request"}
_COLUMNS = tuple(field.name for field in fields(Run))
_SCHEMA = """
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
"""


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Ledger:
    """The runs of this state folder. Use as a context manager; every method is one transaction."""

    def __init__(self, connection: sqlite3.Connection, path: Path, *, writable: bool = True) -> None:
        self._connection = connection
        self._connection.row_factory = sqlite3.Row
        self.path = path
        self.writable = writable

    @classmethod
    def open(cls, path: Path, *, patience_seconds: float = BUSY_SECONDS) -> Ledger:
        """The ledger at *path*, made with mode 0600 where there is none. Waits *patience_seconds* for its turn.

        Raises StateError where the folder cannot be used, the file is no ledger, or a newer version wrote it.
        """
        from orchestrator import state

        state.make_private(path.parent)
        with _explained(path), state.explained(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(path, timeout=patience_seconds, isolation_level=None)
            try:
                _prepare(connection, path, patience_seconds)
            except BaseException:
                connection.close()
                raise
        return cls(connection, path)

    @classmethod
    def open_to_read(cls, path: Path) -> Ledger:
        """The ledger at *path* for looking only: also in a folder that cannot be written, and empty where there is none."""
        if path.parent.exists() and not path.parent.is_dir():
            raise StateError(
                f"{path.parent} is a file, not a folder", hint="export ORCHESTRATE_HOME=/a/folder/you/can/write"
            )
        if not path.exists():
            connection = sqlite3.connect(":memory:", isolation_level=None)
            connection.executescript(_SCHEMA)
            return cls(connection, path, writable=False)
        try:
            return cls.open(path)
        except StateError:
            for mode in ("mode=ro", "immutable=1"):
                with contextlib.suppress(sqlite3.Error):
                    uri = f"{path.as_uri()}?{mode}"
                    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
                    connection.execute("SELECT count(*) FROM runs").fetchone()
                    return cls(connection, path, writable=False)
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    # Writing

    def insert(self, run: Run) -> None:
        """Write a new run's row. From here on the run is never lost."""
        values = [_stored(name, getattr(run, name)) for name in _COLUMNS]
        marks = ", ".join("?" * len(_COLUMNS))
        with self._transaction() as do:
            do(f"INSERT INTO runs ({', '.join(_COLUMNS)}) VALUES ({marks})", values)  # noqa: S608 - our own names
            do("INSERT INTO events (run_id, at, state) VALUES (?, ?, ?)", [run.id, run.created_at, run.state])

    def move(
        self,
        run_id: str,
        state: RunState,
        *,
        note: str | None = None,
        untold: bool = False,
        unless: Collection[RunState] = ENDED,
        **changes: Any,
    ) -> bool:
        """Move a run to *state* and set *changes* with it. False, and nothing done, where it is in one of *unless*.

        untold: the next command says *note* to whoever types it (see take_untold).
        """
        now = utc_now()
        if state == RunState.RUNNING:
            changes.setdefault("started_at", now)
        if state in ENDED:
            changes.setdefault("ended_at", now)
            changes.setdefault("reason", note)
        with self._transaction() as do:
            row = do("SELECT state FROM runs WHERE id = ?", [run_id]).fetchone()
            if row is None or row[0] in ENDED or row[0] in unless:
                return False
            names = ["state", *changes]
            values = [str(state), *(_stored(name, value) for name, value in changes.items())]
            assignments = ", ".join(f"{name} = ?" for name in names)
            do(f"UPDATE runs SET {assignments} WHERE id = ?", [*values, run_id])  # noqa: S608 - our own names
            event = [run_id, changes.get("ended_at", now), str(state), note, int(untold)]
            do("INSERT INTO events (run_id, at, state, note, untold) VALUES (?, ?, ?, ?, ?)", event)
        return True

    def add_metrics(self, run_id: str, lines: Iterable[tuple[int, str, Mapping[str, float]]]) -> None:
        """Keep metric lines as (number within the run, time, values). A number that is there already changes nothing."""
        rows = [(run_id, seq, at, json.dumps(dict(values))) for seq, at, values in lines]
        with self._transaction(), _explained(self.path):
            self._connection.executemany("INSERT OR IGNORE INTO metrics VALUES (?, ?, ?, ?)", rows)

    def take_untold(self) -> list[tuple[str, str]]:
        """(run id, note) of what happened while nobody looked, each handed out once."""
        query = "SELECT rowid, run_id, note FROM events WHERE untold = 1 AND note IS NOT NULL ORDER BY rowid"
        if not self._read(query, []):
            return []
        with self._transaction() as do:
            rows = do(query, []).fetchall()
            do("UPDATE events SET untold = 0 WHERE untold = 1", [])
        return [(run_id, note) for _, run_id, note in rows]

    # Reading

    def get(self, reference: str | None) -> Run:
        """The run whose id is or begins with *reference*; None means the newest.

        Raises NotInCatalog where there is none, BadInput where several match.
        """
        if reference is None:
            newest = self.newest(1)
            if not newest:
                raise NotInCatalog("there are no runs yet", hint="orchestrate submit")
            return newest[0]
        rows = self._read("SELECT * FROM runs WHERE substr(id, 1, ?) = ? ORDER BY id", [len(reference), reference])
        exact = [row for row in rows if row["id"] == reference]
        if not rows or not reference:
            raise NotInCatalog(f"no run {shown(reference)}", hint="orchestrate list shows their ids")
        if len(rows) > 1 and not exact:
            names = ", ".join(row["id"] for row in rows[:5])
            raise BadInput(f"{shown(reference)} matches {len(rows)} runs: {names}", hint="type one more letter")
        return _run(exact[0] if exact else rows[0])

    def newest(self, limit: int | None = None) -> list[Run]:
        """Runs, newest first."""
        rows = self._read("SELECT * FROM runs ORDER BY rowid DESC LIMIT ?", [-1 if limit is None else limit])
        return [_run(row) for row in rows]

    def alive(self) -> list[Run]:
        """Runs that have not ended as far as the ledger knows."""
        marks = ", ".join("?" * len(ENDED))
        rows = self._read(f"SELECT * FROM runs WHERE state NOT IN ({marks})", [str(state) for state in ENDED])  # noqa: S608
        return [_run(row) for row in rows]

    def events(self, run_id: str) -> list[Event]:
        rows = self._read("SELECT at, state, note FROM events WHERE run_id = ? ORDER BY rowid", [run_id])
        return [Event(row["at"], row["state"], row["note"]) for row in rows]

    def metrics(self, run_id: str) -> list[dict[str, float]]:
        """Every metric line of a run, in its order."""
        rows = self._read("SELECT data FROM metrics WHERE run_id = ? ORDER BY seq", [run_id])
        return [json.loads(row["data"]) for row in rows]

    def last_metrics(self, run_id: str) -> dict[str, float]:
        """The newest value of every metric in the last 500 lines of a run."""
        query = "SELECT data FROM metrics WHERE run_id = ? ORDER BY seq DESC LIMIT 500"
        merged: dict[str, float] = {}
        for row in reversed(self._read(query, [run_id])):
            merged |= json.loads(row["data"])
        return merged

    def earlier_seconds(self, script_key: str, arguments: Mapping[str, Any]) -> float | None:
        """Seconds that the newest successful run of this script with the same arguments took; None if there is none."""
        rows = self._read(
            "SELECT * FROM runs WHERE script_key = ? AND state = ? ORDER BY rowid DESC LIMIT 50",
            [script_key, str(RunState.SUCCEEDED)],
        )
        same = [run for run in map(_run, rows) if all(run.spec.get(key) == value for key, value in arguments.items())]
        return same[0].seconds() if same else None

    def _read(self, query: str, values: list[Any]) -> list[sqlite3.Row]:
        with _explained(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        with _explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")  # takes its turn now, so that what it read stays true
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise


def _prepare(connection: sqlite3.Connection, path: Path, patience_seconds: float) -> None:
    _use_wal(connection, patience_seconds)
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL does not sync on commit
    connection.execute("PRAGMA foreign_keys = ON")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StateError(
            f"{path} was written by a newer orchestrate (schema {version}, this one knows {SCHEMA_VERSION})",
            hint="pip install --upgrade orchestrate-ml",
        )
    if version == 0:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:  # nobody was faster
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")


def _use_wal(connection: sqlite3.Connection, patience_seconds: float) -> None:
    """Switching to WAL does not wait for its turn as everything else does, so the first commands at once must retry."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one line with a remedy."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        elsewhere = "keep the state elsewhere: export ORCHESTRATE_HOME=/a/folder/you/can/write"
        if "full" in text:
            raise StateError(f"the disk that holds {path} is full", hint=f"free some space, or {elsewhere}") from error
        if "readonly" in text or "unable to open" in text or "disk I/O" in text:
            raise StateError(f"cannot write {path}: {text}", hint=elsewhere) from error
        if "locked" in text:
            hint = "wait for the other orchestrate command, or see who holds it: lsof " + str(path)
            raise StateError(f"{path} is locked by another process", hint=hint) from error
        if "not a database" in text or "malformed" in text:
            hint = f"put it aside (mv {path.name} {path.name}.damaged) and keep it: a new one is begun"
            raise StateError(f"{path} is damaged: {text}", hint=hint) from error
        raise


def _stored(name: str, value: Any) -> Any:
    if name in _JSON_FIELDS and value is not None:
        return json.dumps(value, ensure_ascii=False)
    return value


def _run(row: sqlite3.Row) -> Run:
    values = {name: row[name] for name in _COLUMNS}
    for name in _JSON_FIELDS:
        values[name] = None if values[name] is None else json.loads(values[name])
    return Run(**values)
