"""The files that go along with a run: their manifest, whose SHA-256 is the package's name, and the archive of exactly these.

    listing = walk(source_dir)      what goes in, what stays out, how large (reads no file but the ignore files)
    manifest = hash_files(listing)  reads each file: its hash, and no secret in it
    package = build(manifest, …)    the archive, unless that digest is there already

The digest covers path, mode (644 or 755) and contents of each file, and nothing else: not times, owners, umask, folder, or
what zlib makes of them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orchestrator import errors, secrets, state
from orchestrator.tree import (
    Explanation,
    LeftOut,
    Listing,
    SourceFile,
    explain,
    leave_out,
    limited,
    shown_path,
    stamp,
    unreadable,
    walk,
)

__all__ = ["Explanation", "LeftOut", "Listing", "Manifest", "Package", "PackedFile", "build", "explain", "hash_files",
           "manifest_digest", "scan", "walk"]  # fmt: skip

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("reading", "packing"), the bytes done and the bytes in all."""

FORMAT_LINE = b"orchestrate package 1\n"
COMPRESSION_LEVEL = 6
NOTED_BYTES = 1 << 20
_SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system, FAT's
_BLOCK_BYTES = 1 << 17
_TEMPORARY_PREFIX = ".unfinished-"


@dataclass(frozen=True, slots=True)
class PackedFile:
    path: str  # POSIX, relative to the source folder
    mode: int  # 0o644 or 0o755
    size_bytes: int
    sha256: str
    rule: str
    stamp: tuple[int, ...] = dataclasses.field(default=(), repr=False, compare=False)  # to be noted, see _note


@dataclass(frozen=True)
class Manifest:
    source_dir: Path
    files: tuple[PackedFile, ...]  # sorted by the UTF-8 bytes of their paths
    left_out: tuple[LeftOut, ...]
    digest: str
    size_bytes: int

    def largest(self, count: int) -> tuple[PackedFile, ...]:
        return tuple(sorted(self.files, key=lambda file: (-file.size_bytes, file.path))[:count])


@dataclass(frozen=True, slots=True)
class Package:
    digest: str
    path: Path
    size_bytes: int  # of the files
    compressed_bytes: int
    reused: bool


def scan(
    source_dir: Path,
    *,
    script: str | None = None,
    allow_files: Sequence[str] = (),
    packages_dir: Path | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """walk and hash_files in one."""
    listing = walk(source_dir, script=script, allow_files=allow_files)
    return hash_files(listing, packages_dir=packages_dir, progress=progress)


def hash_files(listing: Listing, *, packages_dir: Path | None = None, progress: Progress | None = None) -> Manifest:
    """Read and hash each file of *listing*, looking for keys on the way.

    With *packages_dir*, a large file is not read again if it is the one that the last build there noted. Raises BadInput,
    or Problems, for all that is wrong: what the walk met, files that cannot be read, that have changed since the walk, or
    that hold a key.
    """
    noted = _noted(packages_dir, listing.source_dir) if packages_dir else {}
    files: list[PackedFile] = []
    problems: list[errors.OrchestrateError] = []
    total = _Counted("reading", listing.size_bytes, progress)
    for file in listing.files:
        sha256 = noted.get((file.path, *file.stamp))
        try:
            if sha256:
                total.add(file.size_bytes)
                files.append(PackedFile(file.path, file.mode, file.size_bytes, sha256, file.rule, file.stamp))
            else:
                files.append(_read(listing, file, problems, total))
        except errors.BadInput as problem:
            problems.append(problem)
    errors.raise_all(limited([*listing.problems, *problems]))
    return Manifest(listing.source_dir, tuple(files), listing.left_out, manifest_digest(files), listing.size_bytes)


def manifest_digest(files: Iterable[PackedFile]) -> str:
    """The package's name: 64 hex digits. bootstrap.py computes the same from what it unpacks."""
    digest = hashlib.sha256(FORMAT_LINE)
    for file in sorted(files, key=lambda file: file.path.encode()):
        path = file.path.encode()
        digest.update(b"%o %s %d:%s\n" % (file.mode, file.sha256.encode(), len(path), path))
    return digest.hexdigest()


def build(manifest: Manifest, packages_dir: Path, *, progress: Progress | None = None) -> Package:
    """Make the archive `<digest>.tar.gz` in *packages_dir*, unless it is there.

    Whoever reads *packages_dir* sees all of the archive or nothing. Raises BadInput if a file is no longer what the
    manifest says, StateError if the archive cannot be written; either way nothing is left behind.
    """
    path = packages_dir / f"{manifest.digest}.tar.gz"
    with state.explained(packages_dir):
        reused = path.is_file()
        if not reused:
            state.make_private(packages_dir)
            _remove_stale(packages_dir)
            try:
                _write_archive(manifest, path, _Counted("packing", manifest.size_bytes, progress))
            except errors.BadInput:
                _notes_file(packages_dir, manifest.source_dir).unlink(
                    missing_ok=True
                )  # should it be they that are wrong
                raise
        _note(manifest, packages_dir)
        return Package(manifest.digest, path, manifest.size_bytes, path.stat().st_size, reused)


class _Counted:
    """How many of the bytes are done, told to whoever wants to know."""

    def __init__(self, stage: str, total_bytes: int, progress: Progress | None) -> None:
        self._stage, self._total_bytes, self._progress = stage, total_bytes, progress
        self._done_bytes = 0

    def add(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        if self._progress:
            self._progress(self._stage, self._done_bytes, self._total_bytes)


def _read(listing: Listing, file: SourceFile, problems: list[errors.OrchestrateError], total: _Counted) -> PackedFile:
    """*file* with its hash; what it holds of keys is added to *problems*."""
    digest, now_ns = hashlib.sha256(), time.time_ns()

    def hashed_blocks() -> Iterator[bytes]:
        for block in _blocks(listing.source_dir, file.path, file.stamp):
            digest.update(block)
            total.add(len(block))
            yield block

    allowed = file.path in listing.allow_files
    if allowed:
        collections.deque(hashed_blocks(), maxlen=0)
    else:
        problems += _secrets_in(listing.source_dir, file.path, hashed_blocks())
    settled = now_ns - max(file.stamp[-2:]) > _SETTLED_NS
    note = file.stamp if settled and not allowed and file.size_bytes >= NOTED_BYTES else ()
    return PackedFile(file.path, file.mode, file.size_bytes, digest.hexdigest(), file.rule, note)


def _notes_file(packages_dir: Path, source_dir: Path) -> Path:
    return packages_dir / f"seen-{hashlib.sha256(os.fsencode(source_dir)).hexdigest()[:16]}.json"


def _noted(packages_dir: Path, source_dir: Path) -> dict[tuple[object, ...], str]:
    """The hashes of the large files that the last build noted, by path and stamp; none where the notes cannot be read."""
    try:
        notes = json.loads(_notes_file(packages_dir, source_dir).read_text("utf-8"))
        return {(path, *stamp): sha256 for path, stamp, sha256 in notes[secrets.FORMS]}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _note(manifest: Manifest, packages_dir: Path) -> None:
    """Note the large files' hashes, so that the next package of this folder need not read those that stay as they are.

    As in git's index, a file is known by its device, inode, size and times, and noted only if it was last written some
    seconds before it was read: a later change then changes a time. Smaller files, so all code, are read each time.
    """
    notes = [(file.path, file.stamp, file.sha256) for file in manifest.files if file.stamp]
    path = _notes_file(packages_dir, manifest.source_dir)
    data = json.dumps({secrets.FORMS: notes}).encode()
    if notes and not (path.exists() and path.read_bytes() == data):
        state.write_whole(path, data)


def _secrets_in(source_dir: Path, path: str, blocks: Iterable[bytes]) -> Iterator[errors.BadInput]:
    first: dict[str, secrets.Found] = {}
    for found in secrets.find(blocks):
        first.setdefault(found.kind, found)
    for found in first.values():
        where = shown_path(path)
        with contextlib.suppress(OSError):  # should it be gone meanwhile, the message stands without the line
            where = f"{where}:{secrets.line_of(source_dir / path, found.offset)}"
        what = f"{where} looks like a secret ({found.kind})"
        yield errors.BadInput(what, hint=leave_out(source_dir, path, allow=True))


def _blocks(source_dir: Path, path: str, expected: tuple[int, ...] | None = None) -> Iterator[bytes]:
    """The contents of a file, which has to keep the stamp *expected*. Raises BadInput if it does not or cannot be read."""
    try:
        # O_NONBLOCK: should it have become a named pipe meanwhile, opening it must not wait for a writer.
        descriptor = os.open(f"{source_dir}/{path}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            if expected and stamp(os.fstat(descriptor)) != expected:
                raise _changed(source_dir, path)
            while block := file.read(_BLOCK_BYTES):
                yield block
            if expected and stamp(os.fstat(descriptor)) != expected:
                raise _changed(source_dir, path)
    except FileNotFoundError as error:
        raise _changed(source_dir, path) from error
    except OSError as error:
        raise unreadable(source_dir, path, error) from error


def _changed(source_dir: Path, path: str) -> errors.BadInput:
    hint = f"run it again; if something keeps writing to it, {leave_out(source_dir, path)}"
    return errors.BadInput(f"{shown_path(path)} changed while it was packed", hint=hint)


def _write_archive(manifest: Manifest, path: Path, total: _Counted) -> None:
    with_gzips_header = 16 + zlib.MAX_WBITS  # one without a name or a time in it
    compressor = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, with_gzips_header)
    with _temporary_file(path.parent) as (file, temporary):
        for packed in manifest.files:
            for block in _tar_blocks(manifest.source_dir, packed, total):
                file.write(compressor.compress(block))
        file.write(compressor.compress(bytes(2 * tarfile.BLOCKSIZE)))  # the end of a tar
        file.write(compressor.flush())
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, path)
    _fsync_folder(path.parent)


def _tar_blocks(source_dir: Path, packed: PackedFile, total: _Counted) -> Iterator[bytes]:
    """A file as it stands in the archive. Raises BadInput if it is no longer the one in the manifest."""
    header = tarfile.TarInfo(packed.path)  # mtime, uid and gid stay 0: same files, same archive
    header.size, header.mode = packed.size_bytes, packed.mode
    yield header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
    digest, left_bytes = hashlib.sha256(), packed.size_bytes
    for block in _blocks(source_dir, packed.path):
        left_bytes -= len(block)
        if left_bytes < 0:
            break
        digest.update(block)
        total.add(len(block))
        yield block
    if left_bytes or digest.hexdigest() != packed.sha256:
        raise _changed(source_dir, packed.path)
    yield bytes(-packed.size_bytes % tarfile.BLOCKSIZE)


@contextlib.contextmanager
def _temporary_file(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file in *folder* that is gone in the end, unless it has been renamed. Its lock says that its maker lives."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY_PREFIX, dir=folder)
        with open(descriptor, "wb") as file:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_nlink:  # else another process took it for an orphan before it was locked
                    yield file, Path(name)
                    return
            finally:
                Path(name).unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Remove what crashed runs have left half written: the kernel has freed their locks."""
    for orphan in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError), orphan.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            orphan.unlink()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
