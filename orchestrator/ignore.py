"""Which files of a source folder stay at home: what never travels, and what .orchestrateignore and .gitignore say.

The rules are git's, with one file more: in every folder `.orchestrateignore` is asked first and wins over `.gitignore`, a
deeper file wins over a higher one, and the last line that matches wins within a file. Only files that a clone or a copy
brings along decide, so .git/info/exclude and the user's own excludes file are not read; nor is git's index, so a tracked
file that a .gitignore names stays out until `.orchestrateignore` says `!name`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator import errors, state

OWN_FILE = ".orchestrateignore"
GIT_FILE = ".gitignore"
_POSIX_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "lower": "a-z",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
    "space": " \t",
}

_VERSION_CONTROL = frozenset({".git", ".hg", ".svn"})
_CACHES = frozenset(
    {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".ipynb_checkpoints", "node_modules", ".tox", ".nox"}
)


def never_packed(full_path: str, *, is_dir: bool, state_dirs: Container[str] = ()) -> str | None:
    """The rule by which this file or folder is always left out, or None. No ignore file can bring it back.

    *state_dirs* are folders that orchestrate itself writes to, as absolute paths without links.
    """
    name = os.path.basename(full_path)
    reason = None
    if name in _VERSION_CONTROL:
        reason = "version control"
    elif name == ".DS_Store" or name.endswith((".pyc", ".pyo")) or (is_dir and name in _CACHES):
        reason = "caches"
    elif is_dir and _is_virtual_environment(full_path, name):
        reason = "virtual environment"
    elif is_dir and (name == ".orchestrate" or full_path in state_dirs):
        reason = "orchestrate's own state"
    return f"always left out: {reason}" if reason else None


def _is_virtual_environment(full_path: str, name: str) -> bool:
    return name in (".venv", "venv") or any(
        os.path.lexists(os.path.join(full_path, mark)) for mark in ("pyvenv.cfg", "conda-meta")
    )


def state_dirs() -> frozenset[str]:
    """Where orchestrate keeps its state and its sample data, as absolute paths without links."""
    folders = (str(state.home()), os.environ.get("ORCHESTRATE_CACHE"))
    return frozenset(os.path.realpath(folder) for folder in folders if folder)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line of an ignore file."""

    label: str  # "src/.gitignore:3: *.log"
    brings_back: bool
    dirs_only: bool
    by_name: bool  # without a slash inside: the last part of the path decides, in whatever folder
    regex: re.Pattern[str]

    def matches(self, path: str, *, is_dir: bool) -> bool:
        """Whether the line names *path* itself (relative to its file, as Latin-1), not merely a folder above it."""
        if self.dirs_only and not is_dir:
            return False
        found = self.regex.search(path.rpartition("/")[2] if self.by_name else path)
        # pathspec's patterns also match below a folder that they name, and mark such a match by the group ps_d. Git
        # asks level by level, which matters where another line brought that folder back.
        return found is not None and found.lastgroup != "ps_d"


@dataclass(frozen=True, slots=True)
class _IgnoreFile:
    skipped: int  # bytes of a path that lead to the ignore file's folder
    above: str  # for a file above the source folder: the way down to it, with a slash at its end, as Latin-1
    patterns: tuple[Pattern, ...]  # the last line first

    def verdict(self, path: str, *, is_dir: bool) -> Pattern | None:
        own_path = self.above + path[self.skipped :]
        return next((line for line in self.patterns if line.matches(own_path, is_dir=is_dir)), None)


@dataclass(frozen=True, slots=True)
class Rules:
    """The ignore files that have a say in one folder, the one that is asked first in front."""

    own: tuple[_IgnoreFile, ...] = ()
    git: tuple[_IgnoreFile, ...] = ()

    def verdict(self, path: str, *, is_dir: bool) -> Pattern | None:
        """The line that decides about *path* (POSIX, relative to the source folder), or None where none names it.

        Asks about this one path: as in git, what lies in a folder that is left out is left out with it.
        """
        # Git matches bytes, which Latin-1 shows as one character each: `?` is half of an "é". A newline cannot stand in
        # an ignore file, yet has to count as any other character to `*`, `?` and the pattern's end.
        path = os.fsencode(path).decode("latin-1").replace("\n", "\0")
        for ignore_file in (*self.own, *self.git):
            line = ignore_file.verdict(path, is_dir=is_dir)
            if line is not None:
                return line
        return None

    def inside(self, full_path: str, folder: str) -> Rules:
        """These rules and those of the ignore files in *folder* (relative to the source folder, "" for itself).

        Raises BadInput when an ignore file cannot be read.
        """
        return self._with(full_path, skipped=len(os.fsencode(folder)) + 1 if folder else 0, above="", shown_in=folder)

    def _with(self, full_path: str, *, skipped: int, above: str, shown_in: str) -> Rules:
        own = _read(os.path.join(full_path, OWN_FILE), os.path.join(shown_in, OWN_FILE))
        git = _read(os.path.join(full_path, GIT_FILE), os.path.join(shown_in, GIT_FILE))
        if not own and not git:
            return self
        return Rules(
            own=((_IgnoreFile(skipped, above, own),) if own else ()) + self.own,
            git=((_IgnoreFile(skipped, above, git),) if git else ()) + self.git,
        )


def rules_of(source_dir: Path) -> Rules:
    """The rules in *source_dir*: its own ignore files and, in a git repository, those of the folders above it.

    Raises BadInput when an ignore file cannot be read.
    """
    rules = Rules()
    for parent in _above_in_repository(source_dir):
        parts = source_dir.relative_to(parent).parts
        above = os.fsencode("/".join(parts)).decode("latin-1")
        rules = rules._with(str(parent), skipped=0, above=f"{above}/", shown_in="/".join(".." for _ in parts))
    return rules.inside(str(source_dir), "")


def _above_in_repository(source_dir: Path) -> list[Path]:
    """The folders above *source_dir* up to the one that holds .git, the highest first; none outside a repository."""
    above: list[Path] = []
    for folder in (source_dir, *source_dir.parents):
        above.append(folder)
        if (folder / ".git").exists():
            return above[:0:-1]
    return []


def _read(path: str, label: str) -> tuple[Pattern, ...]:
    if not os.path.isfile(path):
        return ()
    try:
        text = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    except OSError as error:
        raise errors.BadInput(f"cannot read {errors.shown(label)}: {error.strerror}") from error
    return tuple(_parse(text, label))[::-1]


def _parse(text: str, label: str) -> Iterator[Pattern]:
    for number, raw_line in enumerate(text.split("\n"), 1):
        line = _without_trailing_spaces(raw_line.removesuffix("\r"))
        if not line or line.startswith("#"):
            continue
        brings_back = line.startswith("!")
        body = line[1:] if brings_back else line
        dirs_only = body.endswith("/")
        body = body.removesuffix("/")
        regex = _translated(body)
        if regex is not None:
            named = f"{label}:{number}: {line.encode('latin-1').decode('utf-8', 'replace')}"
            named = named if named.isprintable() else errors.shown(named)
            yield Pattern(named, brings_back, dirs_only, "/" not in body, regex)


def _without_trailing_spaces(line: str) -> str:
    bare = line.rstrip(" ")
    escaped = (len(bare) - len(bare.rstrip("\\"))) % 2 == 1
    return f"{bare} " if escaped and bare != line else bare


def _translated(body: str) -> re.Pattern[str] | None:
    """The regular expression for a line without its `!` and last slash; None for a line that, as in git, names nothing."""
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    if body.startswith(("!", "#")):
        body = f"\\{body}"
    if body[-1:].isspace():  # pathspec would strip it: a tab, or in Latin-1 the last byte of "à"
        body = body[:-1].removesuffix("\\") + f"[{body[-1]}]"
    for name, members in _POSIX_CLASSES.items():
        body = body.replace(f"[:{name}:]", members)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # `[[]` is a set of one bracket, today and in this reading
            regex, _ = GitIgnoreSpecPattern.pattern_to_regex(body)
            # pathspec lets `[!x]` match a slash, git does not.
            return re.compile(regex.replace("[^", "[^/")) if regex is not None else None
    except (ValueError, re.error):
        return None


def pattern_for(path: str) -> str:
    """The ignore file's line that names *path* (POSIX, relative to that file) and nothing else, however odd it is."""
    literal = re.sub(r"([\\\[\]*?])", r"\\\1", path)
    one_each = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "?", literal)
    return "/" + re.sub(r" $", r"\\ ", one_each)
