"""Unpack an archive that somebody else made: regular files and folders, inside one new folder, or nothing at all.

A parser of its own over `tarfile`'s header blocks: what the standard library would unpack (links, devices, sparse files)
is where archives have broken out of their folder, `filter="data"` of Python 3.11.7 included.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import tarfile
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import BadInput, shown

MOST_BYTES_ANYWAY = 1 << 30  # so much may come out of however small an archive
MOST_NAME_BYTES, MOST_PATH_BYTES = 255, 2_048
MOST_HEADER_BYTES = 1 << 16  # of an extended header: a path and some numbers
_BLOCK_BYTES = 1 << 20
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def unpack(
    archive: Path,
    folder: Path,
    *,
    most_bytes: int = 1 << 40,
    most_files: int = 100_000,
    most_ratio: int = 200,
) -> list[Path]:
    """Unpack *archive* (.tar.gz) into *folder*, which must not be there yet or be empty; returns all that was made.

    Files get mode 644, or 755 where their owner may run them; times and owners are not kept. Raises BadInput, and leaves
    nothing behind, for anything but files and folders with names inside, for two names that some file system takes for
    one, for an archive that is damaged, and for one that holds over *most_files* entries, over *most_bytes*, or (past 1 GiB)
    over *most_ratio* times its own size.
    """
    with _refusing(archive):
        limit = min(most_bytes, max(MOST_BYTES_ANYWAY, most_ratio * archive.stat().st_size))
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", suffix=".part", dir=folder.parent))
        try:
            with gzip.open(archive, "rb") as file:
                made = _Unpacking(beside, _Limited(file, limit), most_files).run()  # type: ignore[arg-type]
            beside.chmod(0o755)
            beside.rename(folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    return [folder / path for path in made]


class _Refused(Exception):
    """Why the archive is not unpacked, in one line."""


@contextlib.contextmanager
def _refusing(archive: Path) -> Iterator[None]:
    """Whatever goes wrong with *archive* is said in one line."""
    name = shown(archive.name)
    try:
        yield
    except _Refused as error:
        hint = "look into it with: tar -tvzf, and unpack by hand what you trust"
        raise BadInput(f"{name} was not unpacked: {error}", hint=hint) from error
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError) as error:
        hint = "fetch it again; if that does not help, it was written damaged"
        raise BadInput(f"{name} is not a whole .tar.gz: {error}", hint=hint) from error
    except OSError as error:
        what = f"{name} cannot be unpacked: {error.strerror or error}"
        raise BadInput(what, hint="free some space, or name another, empty folder") from error


class _Limited:
    """A stream that gives exactly what is asked for, and in all at most *left* bytes."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file, self._left, self._limit = file, left, left

    def take(self, size: int) -> bytes:
        """The next *size* bytes. Raises EOFError where the stream ends before."""
        data = self.some(size)
        while len(data) < size:
            more = self.some(size - len(data))
            if not more:
                raise EOFError("it ends in the middle of a file")
            data += more
        return data

    def some(self, size: int) -> bytes:
        """One to *size* bytes; none at the end."""
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _Refused(f"it unpacks to over {self._limit:,} bytes")
        return data


@dataclass(frozen=True)
class _Member:
    name: str
    kind: bytes
    size: int
    mode: int


class _Unpacking:
    def __init__(self, folder: Path, stream: _Limited, most_files: int) -> None:
        self._folder, self._stream, self._most_files = folder, stream, most_files
        self._names: dict[str, str] = {}  # as forgiving file systems compare them, to as they were first written
        self._met: set[str] = set()
        self._files: set[str] = set()
        self._made: list[str] = []

    def run(self) -> list[str]:
        for count, member in enumerate(self._members(), 1):
            if count > self._most_files or len(self._made) > self._most_files:
                raise _Refused(f"it holds over {self._most_files:,} files and folders")
            parts = _checked_parts(member.name)
            if member.kind == tarfile.DIRTYPE:
                self._make_folders(parts)
            elif member.kind in _FILES:
                self._write(parts, member)
            else:
                kind = _KINDS.get(member.kind, f"of the unknown kind {member.kind!r}")
                raise _Refused(f"{shown(member.name)} is {kind}, and only files and folders are unpacked")
        return self._made

    def _members(self) -> Iterator[_Member]:
        """Each member with the stream at its content, which the caller reads; empty blocks and extended headers aside."""
        said: dict[str, str] = {}
        while True:
            block = self._stream.take(tarfile.BLOCKSIZE)
            if not block.strip(b"\0"):
                if said:
                    raise _Refused("it ends in the middle of a header")
                while self._stream.some(_BLOCK_BYTES):  # to the end: only there gzip's checksum is compared
                    pass
                return
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
                said |= self._extended(header)
                continue
            if header.type in _FILES and "sparse" in said:
                raise _Refused(f"{shown(header.name)} is a sparse file, and only files and folders are unpacked")
            size = _number(said["size"]) if "size" in said else header.size
            if size < 0 or (header.type == tarfile.DIRTYPE and size):
                raise _Refused(f"{shown(header.name)} says that it has {size} bytes")
            yield _Member(said.get("path", header.name), header.type, size, header.mode)
            said = {}

    def _extended(self, header: tarfile.TarInfo) -> dict[str, str]:
        """What an extended header says of the member after it. Of a global one: nothing, if that does no harm."""
        if not 0 <= header.size <= MOST_HEADER_BYTES:
            raise _Refused(f"it has an extended header of {header.size:,} bytes")
        data = self._stream.take(_padded(header.size))[: header.size]
        if header.type == tarfile.GNUTYPE_LONGNAME:
            return {"path": data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
        said = _pax_records(data)
        if header.type == tarfile.XGLTYPE:
            if said.keys() & {"path", "size", "linkpath", "sparse"}:
                raise _Refused("it has a global header that renames files")
            return {}
        return said

    def _make_folders(self, parts: tuple[str, ...]) -> None:
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if path in self._files:
                raise _Refused(f"{shown(path)} is a file and a folder in it")
            if self._is_new(parts[:depth]):
                (self._folder / path).mkdir(mode=0o755)
                self._made.append(path)

    def _write(self, parts: tuple[str, ...], member: _Member) -> None:
        if not parts:
            raise _Refused(f"{shown(member.name)} is not a name inside it")
        self._make_folders(parts[:-1])
        path = "/".join(parts)
        if not self._is_new(parts):
            raise _Refused(f"{shown(path)} is in it twice")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self._folder / path, flags, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
            left = member.size
            while left:
                block = self._stream.take(min(left, _BLOCK_BYTES))
                left -= len(block)
                file.write(block)
            os.fchmod(file.fileno(), 0o755 if member.mode & 0o100 else 0o644)
        self._stream.take(_padded(member.size) - member.size)
        self._files.add(path)
        self._made.append(path)

    def _is_new(self, parts: tuple[str, ...]) -> bool:
        """Has this name not been met? Raises for one that differs from another only in case or in how accents are written."""
        path = "/".join(parts)
        alike = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        met = self._names.setdefault(alike, path)
        if met != path:
            raise _Refused(f"{shown(met)} and {shown(path)} are one file on some systems")
        known = path in self._met
        self._met.add(path)
        return not known


def _checked_parts(name: str) -> tuple[str, ...]:
    """*name* as the names of folders and a file; () for the archive's own top. Raises _Refused if it leads elsewhere."""
    encoded = name.encode("utf-8", "surrogateescape")
    if "\0" in name or "\\" in name or re.match(r"[A-Za-z]:(/|$)", name) or len(encoded) > MOST_PATH_BYTES:
        raise _Refused(f"{shown(name)} is not a name inside it")
    parts = tuple(part for part in name.rstrip("/").split("/") if part != ".")
    if any(part in ("", "..") or len(part.encode("utf-8", "surrogateescape")) > MOST_NAME_BYTES for part in parts):
        raise _Refused(f"{shown(name)} is not a name inside it")
    return parts


def _pax_records(data: bytes) -> dict[str, str]:
    """The records `<length> <key>=<value>\\n` of an extended header."""
    said: dict[str, str] = {}
    while data:
        digits, space, _ = data[:8].partition(b" ")
        length = _number(digits.decode("ascii", "replace"))
        record, data = data[len(digits) + 1 : length], data[length:]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not (space and key and equals and record.endswith(b"\n")):
            raise _Refused("it has an extended header that cannot be read")
        if key in (b"path", b"size", b"linkpath"):
            said[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse."):
            said["sparse"] = "yes"
    return said


def _number(digits: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", digits):
        raise _Refused("it has an extended header that cannot be read")
    return int(digits)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
