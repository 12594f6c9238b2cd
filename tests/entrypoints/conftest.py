"""Small IDX data, and the training script both as a module and as a command."""

from __future__ import annotations

import gzip
import importlib.util
import os
import random
import struct
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

ENTRYPOINTS = Path(__file__).resolve().parents[2] / "entrypoints"
MLP = ENTRYPOINTS / "mlp.py"
SAMPLES = ENTRYPOINTS / "samples.py"
Idx = tuple[tuple[int, ...], bytes]


def load(path: Path) -> ModuleType:
    """A script as a module, by its path: entrypoints are files, not a package."""
    spec = importlib.util.spec_from_file_location(f"entrypoint_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mlp() -> ModuleType:
    return load(MLP)


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    return load(SAMPLES)


def idx(shape: Sequence[int], content: bytes) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + content


def write_digits(folder: Path, train: int = 400, test: int = 50, size: int = 8, compress: bool = False) -> Path:
    """Four IDX files of *size* × *size* images: noise with a bright row or two that tells the class."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(7)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = [n % 10 for n in range(count)]
        images = bytearray()
        for label in labels:
            image = bytearray(source.randrange(120) for _ in range(size * size))
            for column in range(size):
                image[(label % size) * size + column] = 160 + 40 * (label // size)
            images += image
        for name, content in (
            (f"{prefix}-images-idx3-ubyte", idx((count, size, size), bytes(images))),
            (f"{prefix}-labels-idx1-ubyte", idx((count,), bytes(labels))),
        ):
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    return write_digits(tmp_path / "digits")


def environment(folder: Path) -> dict[str, str]:
    """This process's, without what a training service would have set, and with one's own outputs under *folder*."""
    foreign = ("SM_", "AIP_", "ORCHESTRATE_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "SM_MODEL_DIR": str(folder / "model"),
        "SM_OUTPUT_DATA_DIR": str(folder / "output"),
        "AIP_CHECKPOINT_DIR": str(folder / "checkpoints"),
    }


def run(
    folder: Path, *words: str, launcher: Sequence[str] = (), timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """The script as a user starts it, its outputs under *folder*; warnings are errors."""
    folder.mkdir(parents=True, exist_ok=True)
    strict = () if launcher else ("-W", "error")
    return subprocess.run(
        [sys.executable, *strict, *launcher, str(MLP), *words],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def arguments(mlp: ModuleType, tmp_path: Path) -> Callable[..., Namespace]:
    """The script's settings for *words*, with outputs under tmp_path / *name*."""

    def parse(*words: str, name: str = "run") -> Namespace:
        folders = [tmp_path / name / kind for kind in ("model", "output", "checkpoints")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        flags = zip(("--model-dir", "--output-dir", "--checkpoint-dir"), map(str, folders), strict=True)
        args: Namespace = mlp.parse_arguments([*words, *(word for pair in flags for word in pair)])
        return args

    return parse
