"""How the ledger's file is used as SQLite: taking turns, a copy of it, and SQLite's errors in words with a remedy."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import StateError


def keep_copy(path: Path, copy: Path) -> None:
    """Copy the ledger as it is on the disk to *copy*, whole or not at all. The caller holds the ledger's write lock."""
    partial = copy.with_name(f".{copy.name}.part")
    try:
        partial.unlink(missing_ok=True)  # of a command that was killed here
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        # A connection of its own: SQLite does not copy through one that is in the middle of writing.
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(partial)) as target,
        ):
            target.execute("PRAGMA synchronous = FULL")
            source.backup(target)
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)


def use_wal(connection: sqlite3.Connection, patience_seconds: float) -> None:
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
def explained(path: Path) -> Iterator[None]:
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
