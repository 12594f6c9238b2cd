"""Copy shipped entrypoints and finished runs' files to where they were asked for, whole or not at all."""

from __future__ import annotations

import ast
import contextlib
import filecmp
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator import bundled
from orchestrator.backends import Artifact
from orchestrator.errors import BadInput, NotInCatalog, raise_all, shown
from orchestrator.spec import suggestion


def copy_entrypoint(name: str, folder: Path, *, force: bool) -> list[Path]:
    """Copy the shipped script *name*, and the files beside it that it imports, into *folder*. The script comes first.

    Raises NotInCatalog for an unknown name, BadInput where a file would be replaced without *force*.
    """
    known = bundled.entrypoint_names()
    if name not in known:
        raise NotInCatalog(f"no shipped entrypoint is called {shown(name)}", hint=suggestion(name, known))
    sources = _with_neighbours(bundled.entrypoints_dir() / f"{name}.py")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file, not a folder", hint="name a folder")
    pairs = [(source, folder / source.name) for source in sources]
    raise_all(
        BadInput(f"{target} is there already", hint="--force replaces it, or copy into another folder")
        for source, target in pairs
        if target.exists() and not (target.is_file() and (force or filecmp.cmp(source, target, shallow=False)))
    )
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in pairs:
            _copy_whole(source, target)
    return [target for _, target in pairs]


def _with_neighbours(script: Path) -> list[Path]:
    """*script* and each file beside it that it imports, anywhere in its text."""
    tree = ast.parse(script.read_bytes())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    beside = sorted(path for name in names if (path := script.with_name(f"{name.split('.')[0]}.py")).exists())
    return [script, *(path for path in beside if path != script)]


def copy_artifacts(found: Sequence[Artifact], folder: Path) -> list[Path]:
    """Copy a run's files into *folder*, with their paths within the run. Raises BadInput where one would be replaced."""
    targets = [folder / artifact.path for artifact in found]
    raise_all(
        BadInput(f"{target} is there already and differs", hint="--to another folder")
        for artifact, target in zip(found, targets, strict=True)
        if target.exists() and not (target.is_file() and filecmp.cmp(artifact.place, target, shallow=False))
    )
    with _writing_to(folder):
        for artifact, target in zip(found, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_whole(Path(artifact.place), target)
    return targets


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"cannot write into {folder}: {error.strerror or error}", hint="name another folder") from error


def _copy_whole(source: Path, target: Path) -> None:
    """Copy beside and rename, so that no reader ever sees half a file."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
