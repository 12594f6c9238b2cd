"""Copy shipped entrypoints to where they were asked for, whole or not at all."""

from __future__ import annotations

import ast
import filecmp
from pathlib import Path

from orchestrator import bundled
from orchestrator.backends.files import copy_whole, writing_to
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
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in pairs:
            copy_whole(source, target)
    return [target for _, target in pairs]


def _with_neighbours(script: Path) -> list[Path]:
    """*script* and each file beside it that it imports, anywhere in its text."""
    tree = ast.parse(script.read_bytes())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    beside = sorted(path for name in names if (path := script.with_name(f"{name.split('.')[0]}.py")).exists())
    return [script, *(path for path in beside if path != script)]
