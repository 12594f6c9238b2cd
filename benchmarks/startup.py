"""How long a command takes before it does anything: whole processes, started in turn so that all meet the same machine.

    python benchmarks/startup.py            20 rounds
    python benchmarks/startup.py 50

Prints the median and the quickest of each, and the median over the floor (an interpreter that imports nothing) and over
`import typer`, the one import that every command pays for. A first round that writes the bytecode is not counted.
Absolute figures are this machine's; the ratios are what to compare.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOAD = "from estimates import catalog; catalog.price(catalog.machines()[0])"
COMMANDS = {
    "nothing (the floor)": ["-c", "pass"],
    "import typer": ["-c", "import typer"],
    "orchestrate --help": ["-m", "orchestrator", "--help"],
    "import typer, load the catalog": ["-c", f"import typer; {LOAD}"],
    "load the catalog": ["-c", LOAD],
    "import typer, and pydantic as it does for a command": ["-c", "import typer, typer._adapters"],
    "orchestrate estimate --hours 2": ["-m", "orchestrator", "estimate", "--hours", "2"],
    "orchestrate estimate, one machine": [
        "-m",
        "orchestrator",
        "estimate",
        "--hours",
        "2",
        "--instance",
        "ml.p3.16xlarge",
    ],
    "orchestrate machines": ["-m", "orchestrator", "machines"],
    "cost of an hour on every machine": ["-c", "from estimates import cost; cost.rows(3600)"],
}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    commands = {name: command for name, command in COMMANDS.items() if not name.startswith("orchestrate") or has_cli()}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as bytecode:
        environment = bytecode_in(bytecode)
        for command in commands.values():
            started(command, environment)
        for _ in range(rounds):
            for name, command in commands.items():
                seconds[name].append(started(command, environment))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    floor, typer = medians["nothing (the floor)"], medians["import typer"]
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, median of {rounds} rounds\n")
    print("| process | median ms | quickest ms | × floor | × import typer |\n|---|--:|--:|--:|--:|")
    for name, median in medians.items():
        print(
            f"| {name} | {median * 1e3:.0f} | {min(seconds[name]) * 1e3:.0f} "
            f"| {median / floor:.2f} | {median / typer:.2f} |"
        )
    if len(commands) < len(COMMANDS):
        print("\n`orchestrate` was left out: there is no orchestrator/__main__.py yet")


def has_cli() -> bool:
    return (ROOT / "orchestrator" / "__main__.py").exists() and find_spec("typer") is not None


def bytecode_in(folder: str) -> dict[str, str]:
    """This environment with bytecode kept in *folder*, as an installed package has it, even where the shell forbids it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**environment, "PYTHONPYCACHEPREFIX": folder, "PYTHONPATH": str(ROOT)}


def started(command: list[str], environment: dict[str, str]) -> float:
    """Wall-clock seconds of one process from start to end. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
