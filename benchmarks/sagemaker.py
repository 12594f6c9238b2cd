"""What a cloud submit costs before the cloud does anything: whole processes, started in turn so that all meet the same machine.

    python benchmarks/sagemaker.py          5 rounds
    python benchmarks/sagemaker.py 20

`submit --dry-run` against importing boto3 and making a client, and against importing the SageMaker SDK; the rehearsed cloud's
start until it answers; `submit --detach` of a small package against a rehearsed cloud that stands, with and without something to
upload; and, with --mlp, the shipped mlp on two epochs of MNIST, rehearsed and local.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.startup import bytecode_in  # noqa: E402
from orchestrator.rehearsal import control  # noqa: E402

REGION = "us-east-1"
WORDS = ["-m", "orchestrator", "submit", "train.py", "--backend", "sagemaker", "--instance", "ml.p3.2xlarge"]
IMPORTS = {
    "import boto3": ["-c", "import boto3"],
    "import boto3, make a client": ["-c", "import boto3; boto3.client('sagemaker', region_name='us-east-1')"],
    "import the SageMaker SDK's ModelTrainer": ["-c", "from sagemaker.train import ModelTrainer"],
    "orchestrate submit --dry-run": [*WORDS, "--rehearse", "--dry-run"],
}


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Wall-clock seconds of one process. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    quiet = subprocess.DEVNULL
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True, stdout=quiet, stderr=quiet)
    return time.perf_counter() - start


def cloud_start(folder: Path) -> float:
    """Seconds from nothing to a rehearsed cloud that answers."""
    start = time.perf_counter()
    control.ensure(folder)
    seconds = time.perf_counter() - start
    control.stop(folder)
    return seconds


def submits(project: Path, environment: dict[str, str], number: int) -> tuple[float, float]:
    """Seconds of a detached submit with a package to upload, and of one whose package lies there."""
    (project / "train.py").write_text(f"print({number})\n")
    first = timed([*WORDS, "--rehearse", "--detach", "--again"], project, environment)
    return first, timed([*WORDS, "--rehearse", "--detach", "--again"], project, environment)


def mlp(project: Path, environment: dict[str, str]) -> None:
    words = ["-m", "orchestrator", "submit", "mlp", "--data", "sample:mnist"]
    cloud = ["--backend", "sagemaker", "--instance", "ml.p3.2xlarge", "--rehearse", "--again"]
    script = ["--", "--epochs", "2"]
    for _ in range(3):
        local = timed([*words, *script], project, environment)
        rehearsed = timed([*words, *cloud, *script], project, environment)
        print(f"mlp, two epochs: local {local:.1f} s, rehearsed {rehearsed:.1f} s, {rehearsed - local:.1f} s more")


def main() -> None:
    rounds = next((int(word) for word in sys.argv[1:] if word.isdigit()), 5)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        project, home = Path(place) / "project", Path(place) / "state"
        project.mkdir()
        (project / "train.py").write_text("print(1)\n")
        environment = {**bytecode_in(f"{place}/bytecode"), "ORCHESTRATE_HOME": str(home)}
        os.environ.update(environment)  # the rehearsed cloud is started from here
        for command in IMPORTS.values():
            timed(command, project, environment)  # writes the bytecode
        cloud_start(Path(place) / "warm")
        try:
            submits(project, environment, -1)
            for number in range(rounds):
                for name, command in IMPORTS.items():
                    times.setdefault(name, []).append(timed(command, project, environment))
                times.setdefault("start of the rehearsed cloud", []).append(cloud_start(Path(place) / f"c{number}"))
                first, second = submits(project, environment, number)
                times.setdefault("submit --detach, small package to upload", []).append(first)
                times.setdefault("submit --detach, nothing to upload", []).append(second)
            if "--mlp" in sys.argv:
                mlp(project, environment)
        finally:
            control.stop(home / "rehearsal")
    floor = statistics.median(times["import boto3, make a client"])
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, median of {rounds} rounds\n")
    print("| process | median s | least to most | × boto3 with a client |\n|---|--:|--:|--:|")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.2f} | {min(seconds):.2f} to {max(seconds):.2f} | {middle / floor:.2f} |")


if __name__ == "__main__":
    main()
