"""Where runs, packages and the ledger are kept on this machine, readable by their owner alone."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import StateError

RUN_LOCK, SUBMIT_LOCK = "lock", "submit.lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def home() -> Path:
    """The state folder: $ORCHESTRATE_HOME, else the user's own."""
    chosen = os.environ.get("ORCHESTRATE_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_state_path("orchestrate")


def ledger_file() -> Path:
    return home() / "ledger.sqlite"


def packages_dir() -> Path:
    return home() / "packages"


def prices_dir() -> Path:
    """Where files of prices lie that were read since the release."""
    return home() / "prices"


def launch_lock(launch_key: str) -> Path:
    """The lock that whoever launches this very thing holds."""
    return home() / "locks" / launch_key


def run_dir(run_id: str) -> Path:
    return home() / "runs" / run_id


def make_private(folder: Path) -> Path:
    """*folder*, made with mode 0700 where it is not there. Raises StateError if it cannot be."""
    with explained(folder):
        for made in (*(parent for parent in reversed(folder.parents) if parent.is_relative_to(home())), folder):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)  # parents that are made on the way get the umask's mode
    return folder


def write_whole(path: Path, data: bytes) -> None:
    """Write *data* to *path* so that a reader, or the next start after a crash, sees all of it or the file before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def hold_lock(path: Path) -> int | None:
    """Take the lock at *path* for as long as this process lives (the kernel frees it); None where another holds it."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock at *path*, made with its folder, after waiting for whoever has it."""
    import fcntl

    with explained(path):
        make_private(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Does a process live that holds the lock at *path*?"""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError about *path* into one line with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StateError(f"the disk that holds {path} is full", hint=f"free some space, or {_ELSEWHERE}") from error
        raise StateError(f"cannot use {path}: {error.strerror or error}", hint=_ELSEWHERE) from error


_ELSEWHERE = "keep the state elsewhere: export ORCHESTRATE_HOME=/a/folder/you/can/write"
