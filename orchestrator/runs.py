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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator import sqlitefile
from orchestrator.errors import BadInput, NotInCatalog, StateError, shown

SCHEMA_VERSION = 2
BUSY_SECONDS = 60.0


class RunState(enum.StrEnum):
    """How a run stands. A state that this version does not know is shown as it is and counts as not ended."""

    CREATED = "created"  # the intent is in the ledger; nothing else has happened
    PACKAGED = "packaged"  # the archive of the code lies ready
    UPLOADED = "uploaded"  # all that goes along lies in the cloud
    STARTING = "starting"  # asked to start; whether it has is not known yet
    ACCEPTED = "accepted"  # the cloud has the job; no script runs yet
    RUNNING = "running"
    STOPPING = "stopping"  # asked to save and end
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # ended because somebody, or a limit, asked for it
    ABANDONED = "abandoned"  # its submit was killed before the script began: nothing ran


ENDED = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED, RunState.ABANDONED})
RAN = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED})  # ended, and there is something to tell of it


@dataclass(frozen=True)
class Run:
    """One row of the ledger. Times are UTC, ISO 8601; money is a decimal in a string, USD; plan and request are JSON.

    script_key tells which script this was, so that its earlier runs can be found: an absolute path, or `shipped:NAME`.
    launch_key tells what was asked for: two runs of the same key asked for the same thing. remote_status is the cloud's
    own word. told: somebody was told that it was launched, or how it ended. rehearsed: it ran on a cloud's stand-in here,
    at *endpoint*.
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
    launch_key: str | None = None
    region: str | None = None
    remote_status: str | None = None
    billable_seconds: int | None = None
    told: bool = False
    rehearsed: bool = False
    endpoint: str | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def seconds(self, now: str | None = None) -> float | None:
        """Seconds from start to end, or to *now* while it runs; None where it never started."""
        if self.started_at is None:
            return None
        end = datetime.fromisoformat(self.ended_at or now or utc_now())
        return max((end - datetime.fromisoformat(self.started_at)).total_seconds(), 0.0)

    def age(self, now: str | None = None) -> float:
        """Seconds since it was asked for, to its end or to *now*, by the calendar: a laptop's sleep counts."""
        end = datetime.fromisoformat(self.ended_at or now or utc_now())
        return max((end - datetime.fromisoformat(self.created_at)).total_seconds(), 0.0)


@dataclass(frozen=True)
class Event:
    """One change of a run's state, and what there is to say about it."""

    at: str
    state: str
    note: str | None


_JSON_FIELDS = {"spec", "plan", "request"}
_BOOL_FIELDS = {"told", "rehearsed"}
_COLUMNS = tuple(field.name for field in fields(Run))
_SCHEMA = """
CREATE TABLE runs (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, backend TEXT NOT NULL, state TEXT NOT NULL, script TEXT NOT NULL,
  script_key TEXT NOT NULL, created_at TEXT NOT NULL, spec TEXT NOT NULL, plan TEXT NOT NULL, run_dir TEXT NOT NULL,
  request TEXT, package_digest TEXT, remote_id TEXT, pid INTEGER, started_at TEXT, ended_at TEXT, exit_code INTEGER,
  reason TEXT, estimated_usd TEXT, actual_usd TEXT, launch_key TEXT, region TEXT, remote_status TEXT,
  billable_seconds INTEGER, told INTEGER NOT NULL DEFAULT 0, rehearsed INTEGER NOT NULL DEFAULT 0, endpoint TEXT
);
CREATE INDEX runs_by_time ON runs (created_at);
CREATE INDEX runs_by_script ON runs (script_key, state);
CREATE INDEX runs_by_launch ON runs (launch_key);
CREATE TABLE events (
  run_id TEXT NOT NULL REFERENCES runs (id), at TEXT NOT NULL, state TEXT NOT NULL, note TEXT, untold INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX events_by_run ON events (run_id);
CREATE TABLE metrics (
  run_id TEXT NOT NULL REFERENCES runs (id), seq INTEGER NOT NULL, at TEXT NOT NULL, data TEXT NOT NULL,
  PRIMARY KEY (run_id, seq)
);
"""
# What each schema has over the one before it.
_UPGRADES = {
    2: """
ALTER TABLE runs ADD COLUMN launch_key TEXT;
ALTER TABLE runs ADD COLUMN region TEXT;
ALTER TABLE runs ADD COLUMN remote_status TEXT;
ALTER TABLE runs ADD COLUMN billable_seconds INTEGER;
ALTER TABLE runs ADD COLUMN told INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN rehearsed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN endpoint TEXT;
CREATE INDEX runs_by_launch ON runs (launch_key);
""",
}


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
        with sqlitefile.explained(path), state.explained(path):
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
                uri = f"{path.as_uri()}?{mode}"
                connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
                try:
                    connection.execute("SELECT count(*) FROM runs").fetchone()
                except sqlite3.Error:
                    connection.close()
                else:
                    return cls(connection, path, writable=False)
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    # Writing

    def insert(self, run: Run, *, admit: Callable[[Callable[[str], list[Run]]], None] | None = None) -> None:
        """Write a new run's row. From here on the run is never lost.

        admit: asked first, in the same transaction, so that no other run comes between its yes and the row; what it raises
        leaves the ledger as it was. It is given a function: the cloud runs that have not ended or ended since a time (UTC).
        """
        values = [_stored(name, getattr(run, name)) for name in _COLUMNS]
        marks = ", ".join("?" * len(_COLUMNS))
        with self._transaction() as do:
            if admit is not None:
                admit(self.billed_since)
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

        The state that it has already is no event, unless there is a *note*. A run has started when it first ran.
        untold: the next command says *note* to whoever types it (see take_untold).
        """
        now = utc_now()
        if state in ENDED:
            changes.setdefault("ended_at", now)
            changes.setdefault("reason", note)
        with self._transaction() as do:
            row = do("SELECT state, started_at FROM runs WHERE id = ?", [run_id]).fetchone()
            if row is None or row["state"] in ENDED or row["state"] in unless:
                return False
            if state == RunState.RUNNING and row["started_at"] is None:
                changes.setdefault("started_at", now)
            _assign(do, run_id, {"state": str(state), **changes})
            if state != row["state"] or note is not None:
                event = [run_id, changes.get("ended_at", now), str(state), note, int(untold)]
                do("INSERT INTO events (run_id, at, state, note, untold) VALUES (?, ?, ?, ?, ?)", event)
        return True

    def set(self, run_id: str, **changes: Any) -> None:
        """Set columns of a run, ended or not, that are no change of its state: what it cost, the cloud's own word."""
        if "state" in changes:
            raise ValueError("a run's state is changed by move() alone")
        with self._transaction() as do:
            _assign(do, run_id, changes)

    def mark_told(self, run_id: str) -> None:
        """Somebody was told that this run was launched, or how it ended: asking again means another run."""
        self.set(run_id, told=True)

    def add_metrics(self, run_id: str, lines: Iterable[tuple[int, str, Mapping[str, float]]]) -> None:
        """Keep metric lines as (number within the run, time, values). A number that is there already changes nothing."""
        rows = [(run_id, seq, at, json.dumps(dict(values))) for seq, at, values in lines]
        with self._transaction(), sqlitefile.explained(self.path):
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
        rows = self._read(
            "SELECT * FROM runs ORDER BY created_at DESC, rowid DESC LIMIT ?", [-1 if limit is None else limit]
        )
        return [_run(row) for row in rows]

    def alive(self) -> list[Run]:
        """Runs that have not ended as far as the ledger knows."""
        marks = ", ".join("?" * len(ENDED))
        rows = self._read(f"SELECT * FROM runs WHERE state NOT IN ({marks})", [str(state) for state in ENDED])  # noqa: S608
        return [_run(row) for row in rows]

    def billed_since(self, since: str) -> list[Run]:
        """Runs in a cloud, no rehearsals, that have not ended or ended at *since* (UTC, ISO 8601) or later; oldest first."""
        ended = [str(state) for state in ENDED]
        marks = ", ".join("?" * len(ended))
        query = (
            "SELECT * FROM runs WHERE backend != 'local' AND rehearsed = 0"  # noqa: S608 - question marks alone
            f" AND (state NOT IN ({marks}) OR coalesce(ended_at, created_at) >= ?) ORDER BY rowid"
        )
        return [_run(row) for row in self._read(query, [*ended, since])]

    def same(self, launch_keys: Collection[str], asked_at: str = "9999") -> Run | None:
        """The newest run that asked for one of these things and still stands for it; None if there is none.

        That is one that has not ended, one whose end nobody was told of, or one that was made after *asked_at* (UTC): whoever
        asked then asked at the same time.
        """
        keys, ran, ended = list(launch_keys), [str(state) for state in RAN], [str(state) for state in ENDED]
        marks, ran_marks, ended_marks = (", ".join("?" * len(values)) for values in (keys, ran, ended))
        query = (
            f"SELECT * FROM runs WHERE launch_key IN ({marks})"  # noqa: S608 - question marks alone
            f" AND (state NOT IN ({ended_marks}) OR (state IN ({ran_marks}) AND (told = 0 OR created_at >= ?)))"
            " ORDER BY rowid DESC LIMIT 1"
        )
        rows = self._read(query, [*keys, *ended, *ran, asked_at])
        return _run(rows[0]) if rows else None

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

    def earlier_seconds(
        self, script_key: str, arguments: Mapping[str, Any], *, rehearsed: bool = False
    ) -> float | None:
        """Seconds that the newest successful run of this script with the same arguments took; None if there is none.

        *arguments* are compared with the runs' specs; where they name no backend, local runs are meant. Rehearsed runs
        count for a rehearsal alone: they took this machine's time, not that of the one that they are named for.
        """
        rows = self._read(
            "SELECT * FROM runs WHERE script_key = ? AND state = ? AND backend = ? ORDER BY rowid DESC LIMIT 50",
            [script_key, str(RunState.SUCCEEDED), arguments.get("backend", "local")],
        )
        for run in map(_run, rows):
            alike = all(run.spec.get(key) == value for key, value in arguments.items())
            if alike and run.rehearsed == rehearsed:
                return run.seconds()
        return None

    def _read(self, query: str, values: list[Any]) -> list[sqlite3.Row]:
        with sqlitefile.explained(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        with sqlitefile.explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")  # takes its turn now, so that what it read stays true
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise


def _prepare(connection: sqlite3.Connection, path: Path, patience_seconds: float) -> None:
    sqlitefile.use_wal(connection, patience_seconds)
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL does not sync on commit
    connection.execute("PRAGMA foreign_keys = ON")
    version = _version(connection)
    if version > SCHEMA_VERSION:
        raise StateError(
            f"{path} was written by a newer orchestrate (schema {version}, this one knows {SCHEMA_VERSION})",
            hint="pip install --upgrade orchestrate-ml",
        )
    if version < SCHEMA_VERSION:
        connection.execute("BEGIN IMMEDIATE")
        version = _version(connection)  # read again: another command may have been faster
        if version == 0:
            _apply(connection, _SCHEMA)
        else:
            if version < SCHEMA_VERSION:
                sqlitefile.keep_copy(path, path.with_name(f"{path.name}.v{version}"))
            for newer in range(version + 1, SCHEMA_VERSION + 1):
                _apply(connection, _UPGRADES[newer])
        connection.execute(f"PRAGMA user_version = {max(version, SCHEMA_VERSION)}")
        connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _apply(connection: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";\n"):
        connection.execute(statement)


def _assign(do: Any, run_id: str, changes: Mapping[str, Any]) -> None:
    """Set columns of a run's row; writes nothing where they are so already."""
    if not changes:
        return
    for name in changes:
        if name not in _COLUMNS or name == "id":
            raise ValueError(f"a run has no column {name!r} that changes")
    assignments = ", ".join(f"{name} = ?" for name in changes)
    values = [_stored(name, value) for name, value in changes.items()]
    differs = " OR ".join(f"{name} IS NOT ?" for name in changes)
    do(f"UPDATE runs SET {assignments} WHERE id = ? AND ({differs})", [*values, run_id, *values])  # noqa: S608 - our own names


def _stored(name: str, value: Any) -> Any:
    if name in _JSON_FIELDS and value is not None:
        return json.dumps(value, ensure_ascii=False)
    return value


def _run(row: sqlite3.Row) -> Run:
    there = set(row.keys())  # a ledger that is read where it cannot be written may be of an older schema
    values = {name: row[name] for name in _COLUMNS if name in there}
    for name in _JSON_FIELDS:
        values[name] = None if values[name] is None else json.loads(values[name])
    for name in _BOOL_FIELDS & there:
        values[name] = bool(values[name])
    return Run(**values)
