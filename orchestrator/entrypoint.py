"""A training script and what it says about itself, read without importing or running it."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import io
import re
import sys
import tokenize
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import bundled
from orchestrator.errors import BadInput, NotInCatalog, OrchestrateError, raise_all, shown

DEFAULT_SCRIPT = "train.py"
DEFAULT_ENTRYPOINT = "mlp"
MAX_SCRIPT_BYTES = 10_000_000
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # PEP 723's own
_EXTRAS = {"torch": "local", "torchvision": "local", "numpy": "local", "tensorboard": "local"}


@dataclass(frozen=True)
class Entrypoint:
    """A script that can be started: source_dir goes along, script is its place in it (POSIX), chosen says why this one.

    smoke_arguments: what the script's PEP 723 block gives for a run of a few steps, or None where it says nothing.
    metrics: the names that the block says its metric lines hold, for a cloud that must be told them beforehand.
    """

    source_dir: Path
    script: str
    name: str
    chosen: str
    shipped: bool
    dependencies: tuple[str, ...] = ()
    smoke_arguments: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.source_dir / self.script


def find(script: str | None, source_dir: str | None, folder: Path) -> Entrypoint:
    """The script that *script* means in *folder*: a path, a shipped entrypoint's name, or None for the folder's own.

    Raises BadInput or NotInCatalog, all that is wrong with the file at once; its syntax is checked, nothing is run.
    """
    path, chosen, shipped = _locate(script, folder)
    root = _source_root(path, source_dir, folder, shipped)
    text = read_source(path)
    return _described(text, path, root, chosen, shipped)


def _locate(script: str | None, folder: Path) -> tuple[Path, str, bool]:
    if script is None:
        if (folder / DEFAULT_SCRIPT).exists():
            return folder / DEFAULT_SCRIPT, f"./{DEFAULT_SCRIPT} is in this folder", False
        shipped = bundled.entrypoints_dir() / f"{DEFAULT_ENTRYPOINT}.py"
        return shipped, f"no orchestrate.toml and no ./{DEFAULT_SCRIPT} here: the shipped {DEFAULT_ENTRYPOINT!r}", True
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in script):
        raise BadInput(f"the script's name holds a control character: {shown(script)}", hint="name a .py file")
    if script in bundled.entrypoint_names():
        return bundled.entrypoints_dir() / f"{script}.py", f"the shipped entrypoint {script!r}", True
    path = folder / Path(script).expanduser()
    if _exists(path):
        return path, "named on the command line or in orchestrate.toml", False
    raise _missing(script, folder)


def _exists(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except OSError:  # a name too long for the file system is not there either
        return False


def _missing(script: str, folder: Path) -> OrchestrateError:
    import difflib

    shipped = bundled.entrypoint_names()
    parent = (folder / script).parent
    try:
        beside = [str(path.relative_to(folder)) for path in sorted(parent.glob("*.py"))[:500]]
    except (OSError, ValueError):
        beside = []
    near = difflib.get_close_matches(script, [*beside, *shipped], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "shipped entrypoints: " + ", ".join(shipped)
    if "/" in script or "." in script:
        return BadInput(f"no such file: {shown(script)}", hint=hint)
    return NotInCatalog(f"no file and no shipped entrypoint is called {shown(script)}", hint=hint)


def _source_root(path: Path, source_dir: str | None, folder: Path, shipped: bool) -> Path:
    if source_dir is None or shipped:
        return path.parent
    root = folder / Path(source_dir).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise BadInput(f"--source-dir {shown(source_dir)} {what}", hint="name the folder to take along")
    if root.resolve() not in path.resolve().parents:
        raise BadInput(
            f"{shown(str(path))} is outside --source-dir {shown(source_dir)}",
            hint="name a folder that holds the script",
        )
    return root


def read_source(path: Path) -> str:
    """The text of a Python script. Raises BadInput for what cannot be one: a folder, empty, binary, wrong syntax."""
    if path.is_dir():
        inside = next((name for name in (DEFAULT_SCRIPT, "main.py") if (path / name).exists()), "SCRIPT.py")
        raise BadInput(f"{path.name or path} is a folder, not a script", hint=f"name the script: {path / inside}")
    if path.suffix == ".ipynb":
        raise BadInput(f"{path.name} is a notebook, not a script", hint=f"jupyter nbconvert --to script {path.name}")
    if not path.is_file():
        raise BadInput(f"{path.name} is not a regular file, or a link to nowhere", hint="name a .py file")
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_SCRIPT_BYTES else b"\0"
    except OSError as error:
        raise BadInput(
            f"cannot read {path.name}: {error.strerror}", hint=f"check its permissions: ls -l {path}"
        ) from error
    if not data.strip():
        raise BadInput(f"{path.name} is empty", hint="name the script that trains")
    if b"\0" in data:
        raise BadInput(f"{path.name} is not a text file", hint="name a Python script")
    if path.suffix != ".py" and not data.startswith(b"#!"):
        raise BadInput(f"{path.name} is not a Python script (no .py)", hint=f"rename it to {path.stem}.py if it is one")
    return _checked_syntax(path.name, data)


def _checked_syntax(name: str, data: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise BadInput(f"{name} cannot be read as text: {error}", hint="save it as UTF-8") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the script's own SyntaxWarnings are its business when it runs
            ast.parse(text, name)
    except SyntaxError as error:
        raise BadInput(
            f"{name}:{error.lineno}: {error.msg}", hint="mend the syntax error, then submit again"
        ) from error
    except (RecursionError, MemoryError, ValueError) as error:
        raise BadInput(f"{name} cannot be parsed: {error}", hint="is it a Python script?") from error
    return text


def _described(text: str, path: Path, root: Path, chosen: str, shipped: bool) -> Entrypoint:
    block = _inline_metadata(path.name, text)
    dependencies = block.get("dependencies", [])
    own = block.get("tool", {}).get("orchestrate", {})
    smoke, metrics = own.get("smoke"), own.get("metrics", [])
    problems: list[OrchestrateError] = []
    lists = {"dependencies": dependencies, "tool.orchestrate.smoke": smoke, "tool.orchestrate.metrics": metrics}
    for key, value in lists.items():
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            problems.append(BadInput(f"{path.name}: {key} in its script block must be a list of texts"))
    raise_all(problems)
    return Entrypoint(
        source_dir=root.resolve(),
        script=path.resolve().relative_to(root.resolve()).as_posix() if not path.is_symlink() else path.name,
        name=path.stem,
        chosen=chosen,
        shipped=shipped,
        dependencies=tuple(dependencies),
        smoke_arguments=None if smoke is None else tuple(smoke),
        metrics=tuple(metrics),
    )


def _inline_metadata(name: str, text: str) -> dict[str, Any]:
    """PEP 723's `# /// script` block as a table; {} where there is none."""
    blocks = [match for match in _BLOCK.finditer(text.replace("\r\n", "\n")) if match["type"] == "script"]
    if not blocks:
        return {}
    if len(blocks) > 1:
        raise BadInput(f"{name} has {len(blocks)} script blocks", hint="PEP 723 allows one")
    lines = blocks[0]["content"].splitlines(keepends=True)
    content = "".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{name}: its script block is not TOML: {error}", hint="see PEP 723") from error


def missing_imports(entrypoint: Entrypoint) -> tuple[str, ...]:
    """What the script needs and what is not here: modules it imports at its top level, packages that its PEP 723 block names.

    Only unconditional imports count: what stands in `try`, `if` or a function may be optional. A package with a
    requirements.txt is not checked, since that may bring them.
    """
    if (entrypoint.source_dir / "requirements.txt").exists():
        return ()
    tree = ast.parse(read_source(entrypoint.path))
    folders = (entrypoint.path.parent, entrypoint.source_dir)
    missing = [name for name in map(_distribution_name, entrypoint.dependencies) if not _installed(name)]
    for name in dict.fromkeys(_top_level_imports(tree)):
        beside = any((folder / f"{name}.py").exists() or (folder / name).is_dir() for folder in folders)
        if name not in sys.stdlib_module_names and not beside and importlib.util.find_spec(name) is None:
            missing.append(name)
    return tuple(dict.fromkeys(missing))


def _distribution_name(requirement: str) -> str:
    """`torch` of `torch>=2.6; python_version > "3.10"`."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    return match[1] if match else requirement


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    return True


def missing_import_error(entrypoint: Entrypoint, names: tuple[str, ...]) -> BadInput:
    """What to say about *names*, with the install command."""
    if all(name in _EXTRAS for name in names):
        hint = "pip install 'orchestrate-ml[local]', or from a checkout: pip install -e '.[local]'"
    else:
        hint = f"check the spelling, or pip install {' '.join(names)}, or list it in requirements.txt beside the script"
    return BadInput(f"{entrypoint.script} imports what is not installed here: {', '.join(names)}", hint=hint)


def _top_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]
