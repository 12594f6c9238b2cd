"""How fast a source folder is packed, against `tar czf` of the same files at the same level, in one run.

    python benchmarks/package.py            5,000 small files and 200 MB of data, 5 rounds: 4 minutes, 1 GB of disk
    python benchmarks/package.py --rounds 1 --data-mb 20

Each round times, in this order and each in a fresh process: our first pack (walk, hash, search for secrets, archive),
`tar czf`, and our second pack of the unchanged folder. Ratios are of the same round; medians of all are shown. Memory is the
peak of our process for the data file and for one twice its size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL_FILES = 5_000
MB = 10**6

PACK = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from orchestrator import package
manifest = package.scan(Path(sys.argv[1]), packages_dir=Path(sys.argv[2]))
hashed = time.perf_counter()
built = package.build(manifest, Path(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"scan": hashed - started, "build": time.perf_counter() - hashed, "peak_mb": peak / 1e6,
                  "reused": built.reused, "archive_mb": built.compressed_bytes / 1e6,
                  "files": [file.path for file in manifest.files]}))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--data-mb", type=int, default=200)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-package-") as folder:
        source = Path(folder, "project")
        make_tree(source, chosen.data_mb)
        rounds = [one_round(source, Path(folder)) for _ in range(chosen.rounds)]
        show(rounds, chosen.data_mb)
        make_data(source / "data.bin", 2 * chosen.data_mb)
        peak_mb = our_pack(source, Path(folder, "twice"))["peak_mb"]
        print(f"peak memory: {median(rounds, 'peak_mb'):.0f} MB, with twice the data {peak_mb:.0f} MB")


def make_tree(source: Path, data_mb: int) -> None:
    """Small source files of 0.2 to 8 kB, the data file, and beside them a .git and a .venv of 2,000 files each."""
    chance = random.Random(0)
    words = [
        "loss",
        "model",
        "optimizer.step()",
        "return",
        "for batch in loader:",
        "self.hidden_layers",
        "0.001",
        "\n    ",
    ]
    for number in range(SMALL_FILES):
        folder = source / f"package_{number // 100}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"module_{number}.py").write_text(" ".join(chance.choices(words, k=chance.randrange(30, 1000))))
    for beside in (".git/objects", ".venv/lib"):
        (source / beside).mkdir(parents=True)
        for number in range(2000):
            (source / beside / str(number)).write_bytes(chance.randbytes(2000))
    (source / ".gitignore").write_text("*.log\n*.tmp\nbuild/\n/runs/\n**/outputs/*.bin\n!keep.log\n")
    make_data(source / "data.bin", data_mb)
    time.sleep(3)  # a file written within the last two seconds is read again by the next pack


def make_data(path: Path, data_mb: int) -> None:
    """Megabytes of noise and of rows of numbers, in turn: one half does not compress, the other does as tables do."""
    chance = random.Random(1)
    rows = "".join(
        f"{chance.random():.4f},{chance.randrange(100)},label_{chance.randrange(10)}\n" for _ in range(60_000)
    )
    table = rows.encode()[:MB].ljust(MB, b"\n")
    with path.open("wb") as file:
        for number in range(data_mb):
            file.write(table if number % 2 else chance.randbytes(MB))


def one_round(source: Path, folder: Path) -> dict[str, float]:
    packages, by_tar = folder / "packages", folder / "by-tar.tar.gz"
    first, first_seconds, first_cpu = timed(our_pack, source, packages)
    (folder / "files").write_bytes(b"\0".join(os.fsencode(path) for path in first["files"]))
    _, tar_seconds, tar_cpu = timed(pack_by_tar, source, folder / "files", by_tar)
    second, second_seconds, second_cpu = timed(our_pack, source, packages)
    shutil.rmtree(packages)
    assert (first["reused"], second["reused"]) == (False, True)
    return {
        "first": first_seconds,
        "first_cpu": first_cpu,
        "first_inside": first["scan"] + first["build"],
        "first_mb": first["archive_mb"],
        "tar": tar_seconds,
        "tar_cpu": tar_cpu,
        "tar_mb": by_tar.stat().st_size / MB,
        "second": second_seconds,
        "second_cpu": second_cpu,
        "second_inside": second["scan"] + second["build"],
        "second_mb": second["archive_mb"],
        "peak_mb": first["peak_mb"],
    }


def timed(pack: Callable[..., Any], *arguments: Path) -> tuple[Any, float, float]:
    """What *pack* returns, its seconds by the clock, and those that its processes worked."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = pack(*arguments)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return result, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def our_pack(source: Path, packages: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", PACK, str(source), str(packages)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def pack_by_tar(source: Path, names: Path, archive: Path) -> None:
    """gzip's default level is ours, 6."""
    subprocess.run(["tar", "-C", source, "-czf", archive, "--null", "-T", names], check=True)


def median(rounds: list[dict[str, float]], name: str) -> float:
    return statistics.median(one[name] for one in rounds)


def show(rounds: list[dict[str, float]], data_mb: int) -> None:
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{SMALL_FILES} small files, {data_mb} MB of data, {len(rounds)} rounds, {os.cpu_count()} CPUs, load {load}; medians"
    )
    print("| | seconds | CPU seconds | archive, MB |")
    print("|---|---|---|---|")
    for label, name in (("`tar czf`, same files", "tar"), ("first pack", "first"), ("second pack", "second")):
        figures = (median(rounds, name), median(rounds, f"{name}_cpu"), median(rounds, f"{name}_mb"))
        print(f"| {label} | {figures[0]:.2f} | {figures[1]:.2f} | {figures[2]:.1f} |")
    for label, top, bottom in (
        ("first pack / tar (goal: at most 1.3)", "first", "tar"),
        ("the same, CPU seconds", "first_cpu", "tar_cpu"),
        ("first pack / second (goal: at least 10)", "first", "second"),
        ("the same, inside the process", "first_inside", "second_inside"),
        ("the same, CPU seconds", "first_cpu", "second_cpu"),
    ):
        ratios = [one[top] / one[bottom] for one in rounds]
        print(f"{label}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
