"""Where the files that ship beside the code lie, in a wheel and in a checkout alike."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def entrypoints_dir() -> Path:
    """The folder of shipped training scripts."""
    for folder in (_PACKAGE / "_bundled" / "entrypoints", _PACKAGE.parent / "entrypoints"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("this installation lacks its entrypoints folder: install orchestrate again")


def entrypoint_names() -> tuple[str, ...]:
    """Names of the shipped training scripts: those whose PEP 723 block has a part for us (the rest are their helpers)."""
    scripts = sorted(entrypoints_dir().glob("*.py"))
    return tuple(path.stem for path in scripts if b"\n# [tool.orchestrate]\n" in path.read_bytes())


def bootstrap_file() -> Path:
    """The file that starts a script in all places."""
    return _PACKAGE / "bootstrap.py"


def samples_file() -> Path:
    """The command that fetches sample data out of packages."""
    return entrypoints_dir() / "samples.py"
