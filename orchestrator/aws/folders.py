"""What a data folder holds: each file's size and SHA-256, and one digest of it all, so that it is uploaded once."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import state
from orchestrator.errors import BadInput, OrchestrateError, raise_all, shown

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done and the bytes in all."""

FORMAT_LINE = b"orchestrate folder 1\n"
NOTED_BYTES = 1 << 20  # smaller files are read each time
MOST_FILES = 1_000_000
MOST_PATH_BYTES = 900  # S3 takes keys of 1,024 bytes, with our prefix
_MOST_PROBLEMS = 10
_NOTES = "orchestrate folder 1"
_SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system, FAT's
_BLOCK_BYTES = 1 << 20

Stamp = tuple[int, ...]


@dataclass(frozen=True)
class FolderContent:
    """A folder's files, sorted by the UTF-8 bytes of their paths: (POSIX path in the folder, bytes, SHA-256 in hex)."""

    digest: str
    files: tuple[tuple[str, int, str], ...]
    size_bytes: int


@dataclass(frozen=True)
class _Met:
    path: str
    size_bytes: int
    stamp: Stamp


def survey(folder: Path, *, seen_file: Path | None = None, progress: Progress | None = None) -> FolderContent:
    """Read *folder* whole. Links to what lies in it are followed; nothing is left out, for it is data.

    With *seen_file*, a file of 1 MiB and more that has kept its inode, size and times is not read again. Raises
    BadInput, or Problems, for links that lead out or in a loop, what is neither file nor folder, what cannot be read, a
    file that changes meanwhile, and a folder with no file in it.
    """
    met = _walk(folder)
    size_bytes, done_bytes = sum(one.size_bytes for one in met), 0
    noted = _noted(seen_file)
    files: list[tuple[str, int, str]] = []
    notes: dict[str, tuple[Stamp, str]] = {}
    for one in met:
        known = noted.get(one.path)
        if known is not None and known[0] == one.stamp:
            notes[one.path] = known
            sha256 = known[1]
            done_bytes += one.size_bytes
        else:
            now_ns, hashed = time.time_ns(), hashlib.sha256()
            for block in _blocks(folder, one):
                hashed.update(block)
                done_bytes += len(block)
                if progress:
                    progress("reading", done_bytes, size_bytes)
            sha256 = hashed.hexdigest()
            if one.size_bytes >= NOTED_BYTES and now_ns - max(one.stamp[-2:]) > _SETTLED_NS:
                notes[one.path] = (one.stamp, sha256)
        if progress:
            progress("reading", done_bytes, size_bytes)
        files.append((one.path, one.size_bytes, sha256))
    if seen_file is not None and notes != noted:
        _note(seen_file, notes)
    return FolderContent(_digest(files), tuple(files), size_bytes)


def _digest(files: list[tuple[str, int, str]]) -> str:
    digest = hashlib.sha256(FORMAT_LINE)
    for path, size_bytes, sha256 in files:
        name = path.encode()
        digest.update(b"%b %d %d:%b\n" % (sha256.encode(), size_bytes, len(name), name))
    return digest.hexdigest()


def _noted(seen_file: Path | None) -> dict[str, tuple[Stamp, str]]:
    if seen_file is None:
        return {}
    try:
        notes = json.loads(seen_file.read_text("utf-8"))[_NOTES]
        return {path: (tuple(stamp), sha256) for path, stamp, sha256 in notes}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _note(seen_file: Path, notes: dict[str, tuple[Stamp, str]]) -> None:
    rows = [(path, stamp, sha256) for path, (stamp, sha256) in notes.items()]
    with state.explained(seen_file):
        state.make_private(seen_file.parent)
        state.write_whole(seen_file, json.dumps({_NOTES: rows}).encode())


def _blocks(folder: Path, met: _Met) -> Iterator[bytes]:
    changed = BadInput(f"{_shown(folder, met.path)} changed while it was read", hint=_AGAIN)
    try:
        # O_NONBLOCK: should it have become a named pipe meanwhile, opening it must not wait for a writer.
        descriptor = os.open(folder / met.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            if _stamp(os.fstat(descriptor)) != met.stamp:
                raise changed
            while block := file.read(_BLOCK_BYTES):
                yield block
            if _stamp(os.fstat(descriptor)) != met.stamp:
                raise changed
    except FileNotFoundError as error:
        raise changed from error
    except OSError as error:
        raise _unreadable(folder, met.path, error) from error


def _stamp(status: os.stat_result) -> Stamp:
    """What tells that a file has been written to or replaced; its times (ns) come last."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass
class _Walk:
    folder: Path
    real: Path
    found: list[_Met] = field(default_factory=list)
    problems: list[OrchestrateError] = field(default_factory=list)
    entries: int = 0

    def enter(self, path: str, above: frozenset[tuple[int, int]]) -> None:
        """Everything below *path* ("" at the top); *above* are the folders that lead here."""
        waiting = [(path, above)]
        while waiting:
            here, above = waiting.pop()
            try:
                names = os.listdir(self.folder / here)  # noqa: PTH208 - names, not paths
            except OSError as error:
                self.problems.append(_unreadable(self.folder, here, error))
                continue
            self.entries += len(names)
            if self.entries > MOST_FILES:
                what = f"{shown(self.folder)} holds over {MOST_FILES:,} files and folders"
                self.problems.append(BadInput(what, hint="pack them into fewer, larger files"))
                return
            for name in names:
                inside = f"{here}/{name}" if here else name
                try:
                    below = self.judge(inside, above)
                except OSError as error:
                    self.problems.append(_unreadable(self.folder, inside, error))
                except BadInput as problem:
                    self.problems.append(problem)
                else:
                    if below is not None:
                        waiting.append((inside, below))
                if len(self.problems) >= _MOST_PROBLEMS:
                    return

    def judge(self, path: str, above: frozenset[tuple[int, int]]) -> frozenset[tuple[int, int]] | None:
        """Take the file at *path*, or return what is above the entries of the folder that it is. Raises BadInput."""
        _check_name(self.folder, path)
        full = self.folder / path
        if full.is_symlink():
            self._check_link(path, full)
        status = full.stat()
        if stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                raise BadInput(f"{_shown(self.folder, path)} is a link in a loop", hint="remove the link")
            return above | {identity}
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{_shown(self.folder, path)} is neither a file nor a folder", hint="move it out of there")
        self.found.append(_Met(path, status.st_size, _stamp(status)))
        return None

    def _check_link(self, path: str, full: Path) -> None:
        try:
            target = full.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            what = f"{_shown(self.folder, path)} is a link that leads nowhere or in a loop"
            raise BadInput(what, hint="remove the link") from error
        if not target.is_relative_to(self.real):
            what = f"{_shown(self.folder, path)} leads to {shown(target)}, outside the folder"
            raise BadInput(what, hint="put a copy of what it leads to in its place")


def _walk(folder: Path) -> list[_Met]:
    try:
        real = folder.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as error:
        raise BadInput(f"there is no folder {shown(folder)}", hint="--data NAME=FOLDER with one that exists") from error
    if not stat.S_ISDIR(status.st_mode):
        raise BadInput(f"{shown(folder)} is not a folder", hint="--data NAME=FOLDER, with the folder that holds it")
    walk = _Walk(folder, real)
    walk.enter("", frozenset({(status.st_dev, status.st_ino)}))
    raise_all(walk.problems)
    if not walk.found:
        raise BadInput(f"{shown(folder)} holds no file", hint="--data NAME=FOLDER with one that holds data")
    return sorted(walk.found, key=lambda met: met.path.encode())


def _check_name(folder: Path, path: str) -> None:
    try:
        size_bytes = len(path.encode())
    except UnicodeEncodeError as error:
        what = f"{_shown(folder, path)} has a name that is not UTF-8, and S3 takes no other"
        raise BadInput(what, hint="rename it") from error
    if size_bytes > MOST_PATH_BYTES:
        what = f"{_shown(folder, path)}: a path of {size_bytes} bytes is more than a key in S3 can have"
        raise BadInput(what, hint="rename it, or the folders that it is in")


def _unreadable(folder: Path, path: str, error: OSError) -> BadInput:
    what = f"cannot read {_shown(folder, path)}: {error.strerror or error}"
    return BadInput(what, hint="make it readable, or move it out of there")


def _shown(folder: Path, path: str) -> str:
    full = str(folder / path)
    return full if full.isprintable() and len(full) <= 300 else shown(full, limit=300)


_AGAIN = "submit again once nothing writes to it"
