"""Which files of a source folder go along with a run, decided by a walk that opens none but the ignore files.

Links inside the folder are followed: a package holds regular files only, and no folders but those on the way to one. What
cannot travel (a link that leads outside, a named pipe, a file that holds keys by its name) is collected as problems, so
that one try shows them all.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import errors, ignore, secrets
from orchestrator.ignore import Rules

MAX_FILES = 20_000
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 2_048  # Linux takes 4,096, with the folder that the package is unpacked into
EVERYTHING = "everything under the folder"
OWN_OUTPUT = "always left out: this command writes its output there"
_MAX_ENTRIES = 5 * MAX_FILES  # files and folders after which the walk ends: links can make them many without end
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that goes along, as the walk met it."""

    path: str  # POSIX, relative to the source folder
    mode: int  # 0o644 or 0o755
    size_bytes: int
    rule: str
    stamp: tuple[int, ...]  # another one means that it has changed since


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file, or a folder with all that it holds, that stays at home."""

    path: str
    rule: str
    is_dir: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    path: str
    included: bool
    rule: str


@dataclass(frozen=True)
class Listing:
    """What a walk found. Its problems are raised by hash_files, together with what the contents add."""

    source_dir: Path  # absolute, without links
    files: tuple[SourceFile, ...]  # sorted by the UTF-8 bytes of their paths
    left_out: tuple[LeftOut, ...]
    problems: tuple[errors.OrchestrateError, ...]
    allow_files: frozenset[str]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def largest(self, count: int) -> tuple[SourceFile, ...]:
        return tuple(sorted(self.files, key=lambda file: (-file.size_bytes, file.path))[:count])


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str
    full_path: str
    rule: str
    rules: Rules  # of the folder that it lies in
    above: tuple[
        tuple[int, int], ...
    ]  # device and inode of the folders that led here and of itself: one twice is a loop


def walk(source_dir: Path, *, script: str | None = None, allow_files: Sequence[str] = ()) -> Listing:
    """List the files of *source_dir* that go along, with their sizes; reads none of them.

    *script* (POSIX, relative) has to be among them. *allow_files* may go along although they look like secrets.
    Raises BadInput at once for a folder that cannot be packed at all: missing, the home folder, over 20,000 files.
    """
    walker = _Walker(_checked_source(source_dir), allow_files)
    walker.run()
    files = tuple(sorted(walker.files, key=lambda file: os.fsencode(file.path)))
    left_out = tuple(sorted(walker.left_out, key=lambda item: os.fsencode(item.path)))
    problems = [*walker.problems]
    problems += _twins([*walker.folders, *(file.path for file in files)])
    listing = Listing(walker.source, files, left_out, (), walker.allow_files)
    problems += _unused_allowances(listing)
    if script is not None:
        problems += _missing_script(listing, script)
    return Listing(listing.source_dir, files, left_out, tuple(problems), listing.allow_files)


def explain(source_dir: Path, path: str | Path, *, allow_files: Sequence[str] = ()) -> Explanation:
    """Whether *path* (a file or folder; absolute, or relative to *source_dir*) goes along, and by which rule.

    Raises BadInput where it does not exist, with the nearest that does, or lies outside.
    """
    walker = _Walker(_checked_source(source_dir), allow_files)
    relative = _relative(walker.source, source_dir, path)
    if relative == ".":
        return Explanation(relative, True, EVERYTHING)
    folder, parts = walker.root(), relative.split("/")
    for depth in range(1, len(parts) + 1):
        part = "/".join(parts[:depth])
        if not os.path.lexists(walker.full_path(part)):
            raise _no_such_file(relative, walk(walker.source))
        try:
            met = walker.judge(part, walker.full_path(part), folder, walker.rules_inside(folder))
        except errors.BadInput as problem:
            return Explanation(relative, False, f"refused: {problem.what}")
        if isinstance(met, LeftOut):
            inside = f" (the folder {shown_path(part)})" if part != relative else ""
            return Explanation(relative, False, met.rule + inside)
        if isinstance(met, _Folder):
            folder = met
        elif depth < len(parts):
            raise _no_such_file(relative, walk(walker.source))
    if isinstance(met, SourceFile) and relative not in walker.allow_files:
        return _explained_by_content(walker, met)
    return Explanation(relative, True, met.rule)


def _explained_by_content(walker: _Walker, file: SourceFile) -> Explanation:
    try:
        with (walker.source / file.path).open("rb") as opened:
            found = next(secrets.find(iter(lambda: opened.read(1 << 17), b"")), None)
    except OSError as error:
        return Explanation(file.path, False, f"refused: cannot read {shown_path(file.path)}: {error.strerror}")
    if found:
        return Explanation(file.path, False, f"refused: it looks like it holds a secret ({found.kind})")
    return Explanation(file.path, True, file.rule)


class _Walker:
    """One walk over a source folder, gathering what it meets."""

    def __init__(self, source: Path, allow_files: Iterable[str]) -> None:
        self.source, self._source = source, str(source)
        self.allow_files = frozenset(os.path.normpath(path) for path in allow_files)
        self.files: list[SourceFile] = []
        self.folders: list[str] = []
        self.left_out: list[LeftOut] = []
        self.problems: list[errors.OrchestrateError] = []
        self._state_dirs = ignore.state_dirs()
        self._own_output = _own_output()

    def root(self) -> _Folder:
        status = self.source.stat()
        return _Folder("", self._source, EVERYTHING, Rules(), ((status.st_dev, status.st_ino),))

    def full_path(self, path: str) -> str:
        return f"{self._source}/{path}"  # many thousand times: pathlib would take half of the walk's time

    def run(self) -> None:
        waiting = [self.root()]
        while waiting:
            folder = waiting.pop()
            try:
                names = sorted(entry.name for entry in Path(folder.full_path).iterdir())
                rules = self.rules_inside(folder)
            except OSError as error:
                self.problems.append(unreadable(self.source, folder.path, error))
                continue
            except errors.BadInput as problem:
                self.problems.append(problem)
                continue
            for name in names:
                met = self._meet(f"{folder.path}/{name}" if folder.path else name, folder, rules)
                if met is not None:
                    waiting.append(met)
            if len(self.files) + len(self.folders) > _MAX_ENTRIES:
                break
        if len(self.files) > MAX_FILES:
            raise _too_many(self.source, self.files)
        if waiting:
            what = f"over {_MAX_ENTRIES:,} files and folders in {shown_path(self._source)}: links multiply them"
            raise errors.BadInput(what, hint="--source-dir PROJECT")

    def _meet(self, path: str, folder: _Folder, rules: Rules) -> _Folder | None:
        """Note what lies at *path*; returns it if it is a folder to go into."""
        try:
            met = self.judge(path, self.full_path(path), folder, rules)
        except errors.BadInput as problem:
            self.problems.append(problem)
            return None
        if isinstance(met, _Folder):
            self.folders.append(path)
            return met
        if isinstance(met, LeftOut):
            self.left_out.append(met)
        else:
            self.files.append(met)
        return None

    def rules_inside(self, folder: _Folder) -> Rules:
        return folder.rules.inside(folder.full_path, folder.path) if folder.path else ignore.rules_of(self.source)

    def judge(self, path: str, full_path: str, folder: _Folder, rules: Rules) -> SourceFile | LeftOut | _Folder:
        """What becomes of the entry at *path* in *folder*, where *rules* hold. Raises BadInput if it cannot travel."""
        try:
            status = os.lstat(full_path)
            is_link = stat.S_ISLNK(status.st_mode)
            is_dir = Path(full_path).is_dir() if is_link else stat.S_ISDIR(status.st_mode)
        except OSError as error:
            raise unreadable(self.source, path, error) from error
        never = ignore.never_packed(full_path, is_dir=is_dir, state_dirs=self._state_dirs)
        if (status.st_dev, status.st_ino) in self._own_output:
            never = OWN_OUTPUT
        if never:
            return LeftOut(path, never, is_dir)
        line = rules.verdict(path, is_dir=is_dir)
        if line is not None and not line.brings_back:
            return LeftOut(path, line.label, is_dir)
        if problem := _name_problem(path):
            raise problem
        if is_link:
            target = self._target(path, full_path)
            if leads := self._leads_to_never_packed(target, is_dir):
                return LeftOut(path, leads, is_dir)
            status = Path(full_path).stat()
        rule = line.label if line is not None else EVERYTHING
        if is_dir:
            return self._entered(path, full_path, rule, rules, folder, status)
        return self._taken(path, target if is_link else path, rule, status)

    def _target(self, path: str, full_path: str) -> str:
        """Where the link at *path* leads, relative to the source folder. Raises BadInput if not to something inside."""
        target = os.path.realpath(full_path)
        shown = f"{shown_path(path)} leads to {shown_path(target)}"
        copy_or_leave = f"copy here what it leads to, or {leave_out(self.source, path)}"
        try:
            Path(full_path).stat()
        except OSError as error:
            what = (
                f"{shown_path(path)} is a link in a loop"
                if Path(target).is_symlink()
                else f"{shown}, which is not there"
            )
            raise errors.BadInput(what, hint=leave_out(self.source, path)) from error
        if target == str(self.source):
            return "."
        if not Path(target).is_relative_to(self.source):
            raise errors.BadInput(f"{shown}, outside the source folder", hint=copy_or_leave)
        return os.path.relpath(target, self.source)

    def _leads_to_never_packed(self, target: str, is_dir: bool) -> str | None:
        parts = target.split("/")
        for depth in range(1, len(parts) + 1):
            full_path = self.full_path("/".join(parts[:depth]))
            rule = ignore.never_packed(full_path, is_dir=is_dir or depth < len(parts), state_dirs=self._state_dirs)
            if rule:
                return f"{rule} (it leads to {shown_path(target)})"
        return None

    def _entered(
        self, path: str, full_path: str, rule: str, rules: Rules, folder: _Folder, status: os.stat_result
    ) -> _Folder:
        identity = (status.st_dev, status.st_ino)
        if identity in folder.above:
            leads = shown_path(os.path.relpath(os.path.realpath(full_path), self.source))
            raise errors.BadInput(
                f"link loop: {shown_path(path)} leads back to {leads}", hint=leave_out(self.source, path)
            )
        return _Folder(path, full_path, rule, rules, (*folder.above, identity))

    def _taken(self, path: str, target: str, rule: str, status: os.stat_result) -> SourceFile:
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            what = f"{shown_path(path)} is {kind}, not a regular file"
            raise errors.BadInput(what, hint=leave_out(self.source, path))
        if path in self.allow_files:
            rule = "--allow-file"
        elif holds := secrets.named_like_secret(path) or (target != path and secrets.named_like_secret(target)):
            what = f"{shown_path(path)} looks like it holds {holds}"
            raise errors.BadInput(what, hint=leave_out(self.source, path, allow=True))
        mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        return SourceFile(path, mode, status.st_size, rule, stamp(status))


def _own_output() -> frozenset[tuple[int, int]]:
    """The regular files that this command writes to, as `submit > train.log` makes one: they grow while it runs."""
    found = set()
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                found.add((status.st_dev, status.st_ino))
    return frozenset(found)


_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def stamp(status: os.stat_result) -> tuple[int, ...]:
    """What tells that a file has been written to or replaced since it was last looked at; its times (ns) come last."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def shown_path(path: str) -> str:
    """*path* as a message may print it: plain where it is printable, else quoted and escaped."""
    return path if path.isprintable() and len(path) <= 200 else errors.shown(path, limit=200)


def leave_out(source: Path, path: str, *, allow: bool = False) -> str:
    """The hint that gets a file out of the way: a line to type."""
    line = f"leave it out: {_add_line(source, ignore.pattern_for(path))}"
    return f"{line}   or send it: --allow-file {shlex.quote(path)}" if allow else line


def _add_line(source: Path, line: str) -> str:
    own_file = source / ignore.OWN_FILE
    near = os.path.relpath(own_file)
    say = r"printf '%s\n'" if "\\" in line else "echo"  # some shells' echo reads backslashes
    return f"{say} {shlex.quote(line)} >> {shlex.quote(str(own_file) if near.startswith('..') else near)}"


def limited(problems: Sequence[errors.OrchestrateError]) -> Iterator[errors.OrchestrateError]:
    """The first twenty of *problems*, and how many more there are."""
    yield from problems[:_SHOWN_PROBLEMS]
    more = len(problems) - _SHOWN_PROBLEMS
    if more > 0:
        yield errors.BadInput(f"… and {more} more of the source folder's files cannot be packed")


def unreadable(source: Path, path: str, error: OSError) -> errors.BadInput:
    hint = leave_out(source, path) if path else None
    return errors.BadInput(f"cannot read {shown_path(path) or 'the source folder'}: {error.strerror}", hint=hint)


def _checked_source(source_dir: Path) -> Path:
    source = Path(os.path.realpath(source_dir))
    if not source.exists():
        raise errors.BadInput(f"no such folder: {shown_path(str(source_dir))}", hint="--source-dir DIR")
    if not source.is_dir():
        hint = f"name the folder that it lies in: --source-dir {shown_path(str(source.parent))}"
        raise errors.BadInput(f"{shown_path(str(source_dir))} is not a folder", hint=hint)
    home = os.path.realpath(os.environ.get("HOME") or Path.home())
    if source == Path(source.anchor) or Path(home).is_relative_to(source):
        kind = "the home folder" if str(source) == home else "a folder above all projects"
        raise errors.BadInput(f"{shown_path(str(source))} is {kind}, too much to pack", hint="--source-dir PROJECT")
    if str(source) in ignore.state_dirs():
        raise errors.BadInput(
            f"{shown_path(str(source))} is where orchestrate keeps its state", hint="--source-dir PROJECT"
        )
    return source


def _too_many(source: Path, files: Sequence[SourceFile]) -> errors.BadInput:
    folder = ""
    while True:
        # The deepest folder that still holds half of them is the one to talk about.
        below = Counter(_child_folder(file.path, folder) for file in files)
        below.pop("", None)
        child, count = below.most_common(1)[0] if below else ("", 0)
        if 2 * count < len(files):
            break
        folder = child
    where = f"most of them in {shown_path(folder)}/" if folder else "spread over the whole folder"
    hint = f"{leave_out(source, folder)}/   and give data as --data NAME=FOLDER" if folder else "--source-dir PROJECT"
    return errors.BadInput(f"over {MAX_FILES:,} files in {shown_path(str(source))}, {where}", hint=hint)


def _child_folder(path: str, folder: str) -> str:
    """The folder directly in *folder* that holds the file *path*, or "" where there is none."""
    prefix = f"{folder}/" if folder else ""
    if not path.startswith(prefix) or "/" not in path[len(prefix) :]:
        return ""
    return prefix + path[len(prefix) :].split("/", 1)[0]


def _name_problem(path: str) -> errors.BadInput | None:
    name = path.rpartition("/")[2]
    reason = None
    try:
        if len(name.encode()) > MAX_NAME_BYTES:
            reason = f"the name has over {MAX_NAME_BYTES} bytes"
        elif len(path.encode()) > MAX_PATH_BYTES:
            reason = f"the path has over {MAX_PATH_BYTES:,} bytes"
    except UnicodeEncodeError:
        reason = "the name is not UTF-8"
    return errors.BadInput(f"cannot pack {shown_path(path)}: {reason}", hint="rename it") if reason else None


def _twins(paths: Iterable[str]) -> Iterator[errors.BadInput]:
    """Names that macOS takes for one: they differ only in case, or in how an accent is written."""
    import unicodedata

    seen: dict[str, str] = {}
    for path in paths:
        key = path.lower() if path.isascii() else unicodedata.normalize("NFC", path).lower()
        twin = seen.setdefault(key, path)
        if twin != path:
            what = f"{twin!a} and {path!a} are one name where case and accents do not count, as on macOS"
            yield errors.BadInput(what, hint="rename one of them")


def _unused_allowances(listing: Listing) -> Iterator[errors.OrchestrateError]:
    for path in sorted(listing.allow_files - {file.path for file in listing.files}):
        yield from _absent(listing, path, f"--allow-file {shown_path(path)}: it")


def _missing_script(listing: Listing, script: str) -> Iterator[errors.OrchestrateError]:
    path = os.path.normpath(script)
    if all(file.path != path for file in listing.files):
        yield from _absent(listing, path, f"the script {shown_path(path)}")


def _absent(listing: Listing, path: str, who: str) -> Iterator[errors.OrchestrateError]:
    """Why *path* is not among the files: a rule, or no such file. Nothing where it is among the problems."""
    for item in listing.left_out:
        if path == item.path or (item.is_dir and path.startswith(f"{item.path}/")):
            final = item.rule.startswith("always")
            hint = (
                None
                if final
                else f"bring it back: {_add_line(listing.source_dir, '!' + ignore.pattern_for(item.path))}"
            )
            yield errors.BadInput(f"{who} is left out by {item.rule}", hint=hint)
            return
    if not os.path.lexists(listing.source_dir / path):
        yield _no_such_file(path, listing)


def _no_such_file(path: str, listing: Listing) -> errors.BadInput:
    import difflib

    known = [*(file.path for file in listing.files), *(item.path for item in listing.left_out)]
    nearest = difflib.get_close_matches(path, known, n=1)
    hint = f"did you mean {shown_path(nearest[0])}?" if nearest else None
    return errors.BadInput(f"no such file in the source folder: {shown_path(path)}", hint=hint)


def _relative(source: Path, source_as_given: Path, path: str | Path) -> str:
    """*path* relative to *source*, without following links below it. Raises BadInput if it lies outside."""
    full_path = os.path.normpath(source / path)
    for folder in (source, source_as_given.absolute()):
        if Path(full_path).is_relative_to(folder):
            return os.path.relpath(full_path, folder)
    raise errors.BadInput(f"{shown_path(str(path))} is outside {shown_path(str(source))}")
