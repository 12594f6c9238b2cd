"""Copy files that runs left, whole or not at all, and nothing over what is there."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.backends import Artifact
from orchestrator.errors import BadInput, raise_all


def copy_artifacts(found: Sequence[Artifact], folder: Path) -> list[Path]:
    """Copy a run's files into *folder*, with their paths within the run. Raises BadInput where one would be replaced."""
    targets = [folder / artifact.path for artifact in found]
    raise_all(
        BadInput(f"{target} is there already and differs", hint="--to another folder")
        for artifact, target in zip(found, targets, strict=True)
        if target.exists() and not (target.is_file() and filecmp.cmp(artifact.place, target, shallow=False))
    )
    with writing_to(folder):
        for artifact, target in zip(found, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_whole(Path(artifact.place), target)
    return targets


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"cannot write into {folder}: {error.strerror or error}", hint="name another folder") from error


def copy_whole(source: Path, target: Path) -> None:
    """Copy beside and rename, so that no reader ever sees half a file."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
