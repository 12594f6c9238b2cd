"""Unpack an archive that somebody else made: regular files and folders, inside one new folder, or nothing at all.

A parser of its own over `tarfile`'s header blocks: what the standard library would unpack (links, devices, sparse files)
is where archives have broken out of their folder, `filter="data"` of Python 3.11.7 included. No link is ever made: one
that leads to a file in the archive becomes a copy of it, and any other is left out and named.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shlex
import shutil
import tarfile
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import BadInput, shown

MOST_BYTES_ANYWAY = 1 << 30  # so much may come out of however small an archive
MOST_NAME_BYTES, MOST_PATH_BYTES = 255, 2_048
MOST_HEADER_BYTES = 1 << 16  # of an extended header: a path and some numbers
MOST_HOPS = 40  # from link to link, as Linux has it
MOST_TOLD = 5
_BLOCK_BYTES = 1 << 20
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_KINDS = {
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_OUTSIDE = ("..",)


class NotUnpacked(BadInput):
    """What Linux may well write and is not unpacked here: the archive is worth being kept whole."""


def unpack(
    archive: Path,
    folder: Path,
    *,
    most_bytes: int = 1 << 40,
    most_files: int = 100_000,
    most_ratio: int = 200,
    made_of: str = "",
    tell: Callable[[str], None] | None = None,
) -> list[Path]:
    """Unpack *archive* (.tar.gz) into *folder*, which must not be there yet or be empty; returns all that was made.

    Files get mode 644, or 755 where their owner may run them; times and owners are not kept. Links to files in it become
    copies (*made_of*: the folder that it was made of, where absolute links lead); *tell* gets a line that names the others.
    Raises NotUnpacked for what is neither file, folder nor link, for two names that some file system takes for one, and
    for an archive of over *most_files* entries, over *most_bytes*, or (past 1 GiB) over *most_ratio* times its own size;
    BadInput for names that are not inside and for an archive that is damaged. It leaves nothing behind then.
    """
    with _refusing(archive):
        limit = min(most_bytes, max(MOST_BYTES_ANYWAY, most_ratio * archive.stat().st_size))
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", suffix=".part", dir=folder.parent))
        try:
            with gzip.open(archive, "rb") as file:
                unpacking = _Unpacking(beside, _Limited(file, limit), most_files, made_of)  # type: ignore[arg-type]
                made = unpacking.run()
            beside.chmod(0o755)
            beside.rename(folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    if tell and unpacking.left_out:
        tell(f"{shown(archive.name)}: {_links_words(unpacking.left_out)}")
    return [folder / path for path in made]


def _links_words(left_out: list[tuple[str, str]]) -> str:
    words = [f"{shown(path)} (to {shown(target)})" for path, target in left_out[:MOST_TOLD]]
    more = [f"{len(left_out) - MOST_TOLD:,} more"] if len(left_out) > MOST_TOLD else []
    return f"links that lead to no file in it were left out: {', '.join(words + more)}"


class _Refused(Exception):
    """Why the archive is not unpacked, in one line."""


class _Unfit(_Refused):
    """The same, of one that nobody need have meant harm with."""


@contextlib.contextmanager
def _refusing(archive: Path) -> Iterator[None]:
    """Whatever goes wrong with *archive* is said in one line."""
    name = shown(archive.name)
    try:
        yield
    except _Refused as error:
        hint = f"tar -tvzf {shlex.quote(str(archive))}   and unpack by hand what you trust"
        kind = NotUnpacked if isinstance(error, _Unfit) else BadInput
        raise kind(f"{name} was not unpacked: {error}", hint=hint) from error
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
        self.count(len(data))
        return data

    def count(self, size: int) -> None:
        """*size* bytes more are to be written."""
        self._left -= size
        if self._left < 0:
            raise _Unfit(f"it unpacks to over {self._limit:,} bytes")


@dataclass(frozen=True)
class _Member:
    name: str
    kind: bytes
    size: int
    mode: int
    target: str  # of a link


class _Unpacking:
    def __init__(self, folder: Path, stream: _Limited, most_files: int, made_of: str) -> None:
        self._folder, self._stream, self._most_files, self._made_of = folder, stream, most_files, made_of
        self.left_out: list[tuple[str, str]] = []  # symbolic links, and what they said
        self._names: dict[str, str] = {}  # as forgiving file systems compare them, to as they were first written
        self._met: set[str] = set()
        self._files: set[str] = set()
        self._links: dict[str, tuple[str, ...]] = {}  # to where they lead, from the archive's top
        self._said: dict[str, str] = {}  # by the symbolic ones
        self._made: list[str] = []

    def run(self) -> list[str]:
        for count, member in enumerate(self._members(), 1):
            if count > self._most_files or len(self._made) > self._most_files:
                raise _Unfit(f"it holds over {self._most_files:,} files and folders")
            parts = _checked_parts(member.name)
            if member.kind == tarfile.DIRTYPE:
                self._make_folders(parts)
            elif member.kind in _FILES:
                self._write(parts, member)
            elif member.kind in _LINKS:
                self._note_link(parts, member)
            else:
                kind = _KINDS.get(member.kind, f"of the unknown kind {member.kind!r}")
                raise _Unfit(f"{shown(member.name)} is {kind}, and only files and folders are unpacked")
        self._copy_links()
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
            if header.type in _EXTENDED:
                said |= self._extended(header)
                continue
            if header.type in _FILES and "sparse" in said:
                raise _Unfit(f"{shown(header.name)} is a sparse file, and only files and folders are unpacked")
            size = _number(said["size"]) if "size" in said else header.size
            if size < 0 or (header.type in (tarfile.DIRTYPE, *_LINKS) and size):
                raise _Refused(f"{shown(header.name)} says that it has {size} bytes")
            target = said.get("linkpath", header.linkname)
            yield _Member(said.get("path", header.name), header.type, size, header.mode, target)
            said = {}

    def _extended(self, header: tarfile.TarInfo) -> dict[str, str]:
        """What an extended header says of the member after it. Of a global one: nothing, if that does no harm."""
        if not 0 <= header.size <= MOST_HEADER_BYTES:
            raise _Refused(f"it has an extended header of {header.size:,} bytes")
        data = self._stream.take(_padded(header.size))[: header.size]
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            key = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            return {key: data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
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
            if path in self._links:
                raise _Refused(f"{shown(path)} is a link and a folder in it")
            if self._is_new(parts[:depth]):
                (self._folder / path).mkdir(mode=0o755)
                self._made.append(path)

    def _begun(self, parts: tuple[str, ...], member: _Member) -> str:
        """The path of a member that is no folder, with the folders that it is in made."""
        if not parts:
            raise _Refused(f"{shown(member.name)} is not a name inside it")
        self._make_folders(parts[:-1])
        path = "/".join(parts)
        if not self._is_new(parts):
            raise _Refused(f"{shown(path)} is in it twice")
        return path

    def _note_link(self, parts: tuple[str, ...], member: _Member) -> None:
        """Copies are made at the end: what a symbolic link leads to may come after it."""
        path, target = self._begun(parts, member), member.target
        if member.kind == tarfile.LNKTYPE:
            self._links[path] = _checked_parts(target)
            return
        self._said[path] = target
        if self._made_of and target.startswith(f"{self._made_of}/"):
            self._links[path] = tuple(target.removeprefix(f"{self._made_of}/").split("/"))
        elif target.startswith("/") or len(target) > MOST_PATH_BYTES:
            self._links[path] = _OUTSIDE
        else:
            self._links[path] = (*parts[:-1], *target.split("/"))

    def _copy_links(self) -> None:
        for path in self._links:
            source = self._led_to(path)
            if source is not None:
                self._stream.count((self._folder / source).stat().st_size)
                shutil.copy(self._folder / source, self._folder / path)
                self._made.append(path)
            elif path in self._said:
                self.left_out.append((path, self._said[path]))
            else:
                raise _Refused(f"{shown(path)} is a link to what is not in it")

    def _led_to(self, path: str) -> str | None:
        """The file of the archive's that the link at *path* leads to, at last; None where it leads elsewhere."""
        waiting, passed, hops = list(self._links[path]), list[str](), 0
        while waiting:
            part = waiting.pop(0)
            if part == "..":
                if not passed:
                    return None
                passed.pop()
            elif part not in ("", "."):
                passed.append(part)
                further = self._links.get("/".join(passed))
                if further is not None:
                    waiting, passed, hops = [*further, *waiting], [], hops + 1
                    if hops > MOST_HOPS:
                        return None
        found = "/".join(passed)
        return found if found in self._files else None

    def _write(self, parts: tuple[str, ...], member: _Member) -> None:
        path = self._begun(parts, member)
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
            raise _Unfit(f"{shown(met)} and {shown(path)} are one file on some systems")
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
