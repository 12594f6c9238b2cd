"""mlp.py as a command: killed and started again, in several processes, on bad input, in seconds."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.entrypoints.conftest import ENTRYPOINTS, MLP, environment, run, write_digits

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
WORDS = ("--epochs", "8", "--batch-size", "8", "--hidden", "16", "--dropout", "0.3", "--l1", "1e-5")


@pytest.fixture(scope="module")
def many_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for an epoch of 450 steps, which takes a good part of a second: time to be killed in."""
    return write_digits(tmp_path_factory.mktemp("many"), train=4000)


def start(folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *launcher, str(MLP), *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end_after(process: subprocess.Popen[str], line: str, number: signal.Signals) -> str:
    """Send *number* once *line* was printed, and wait for the end; what was printed from there on."""
    assert process.stdout is not None
    for printed in process.stdout:
        if line in printed:
            break
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    return out


def digest(mlp: ModuleType, folder: Path) -> str:
    """SHA-256 of the saved model and of all that the last checkpoint holds but its times."""
    torch = mlp.torch
    last = sorted((folder / "checkpoints").glob("checkpoint-*.pt"))[-1]
    kept = torch.load(last, weights_only=True)
    model = torch.load(folder / "model/model.pt", weights_only=True)
    tensors = [*model.values(), *kept["model"].values(), *kept["best"]["weights"].values()]
    tensors += [value for row in kept["optimizer"]["state"].values() for value in row.values()]
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.numpy().tobytes())
    whole.update(json.dumps([without_times(row) for row in kept["history"]]).encode())
    return whole.hexdigest()


def without_times(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "samples_per_second"}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "output/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_killed_by_sigterm_and_by_sigkill_ends_with_the_digest_of_one_never_killed(
    mlp: ModuleType, tmp_path: Path, many_digits: Path
) -> None:
    words = ("--data", str(many_digits), *WORDS)
    unbroken = run(tmp_path / "unbroken", *words)
    assert unbroken.returncode == 0, unbroken.stderr
    broken = tmp_path / "broken"
    process = start(broken, *words)
    printed = end_after(process, "[metrics] epoch=2 ", signal.SIGTERM)
    assert process.returncode == 143
    assert "[mlp] SIGTERM: epoch 3, step " in printed
    process = start(broken, *words)
    end_after(process, "[metrics] epoch=5 ", signal.SIGKILL)
    assert process.returncode == -9
    process = start(broken, *words)
    printed = end_after(process, "[metrics] epoch=6 ", signal.SIGINT)
    assert process.returncode == 130
    last = run(broken, *words)
    assert last.returncode == 0, last.stderr
    assert last.stderr == ""
    assert digest(mlp, broken) == digest(mlp, tmp_path / "unbroken")
    assert [without_times(row) for row in rows(broken)] == [without_times(row) for row in rows(tmp_path / "unbroken")]
    assert (broken / "model/model.pt").read_bytes() == (tmp_path / "unbroken/model/model.pt").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch_size", ["32", "31"]
)  # 360 images: 12 shared batches, the last of 8; or odd ones, the last of 19
def test_two_processes_follow_the_loss_curve_of_one(tmp_path: Path, digits: Path, batch_size: str) -> None:
    words = ("--data", str(digits), "--epochs", "4", "--batch-size", batch_size, "--dropout", "0", "--l1", "1e-4")
    one, two = run(tmp_path / "one", *words), run(tmp_path / "two", *words, launcher=TORCHRUN)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("[metrics] ") == 5
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
    for alone, shared in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in names:
            assert shared.get(name) == pytest.approx(alone.get(name), abs=1e-4)


@pytest.mark.slow
def test_two_processes_stop_together_on_sigterm_and_go_on_where_they_stopped(tmp_path: Path, many_digits: Path) -> None:
    words = ("--data", str(many_digits), "--epochs", "4", "--batch-size", "32", "--dropout", "0")
    unbroken = run(tmp_path / "one", *words)
    assert unbroken.returncode == 0, unbroken.stderr
    two = tmp_path / "two"
    process = start(two, *words, launcher=TORCHRUN)
    printed = end_after(process, "[metrics] epoch=1 ", signal.SIGTERM)
    assert process.returncode != 0
    assert "[mlp] SIGTERM: epoch 2, step " in printed
    again = run(two, *words, launcher=TORCHRUN)
    assert again.returncode == 0, again.stderr
    assert "checkpoints: 1 epochs and " in again.stdout
    for alone, shared in zip(rows(tmp_path / "one"), rows(two), strict=True):
        for name in ("train_loss", "val_loss", "test_loss"):
            assert shared.get(name) == pytest.approx(alone.get(name), abs=1e-4)


@pytest.mark.slow
def test_smoke_goes_through_everything_and_leaves_a_real_runs_checkpoints_alone(tmp_path: Path, digits: Path) -> None:
    folder = tmp_path / "smoke"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/checkpoint-000000012.pt").write_bytes(b"of a real run")
    done = run(folder, "--data", str(digits), "--smoke")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (folder / "checkpoints/checkpoint-000000012.pt").read_bytes() == b"of a real run"
    assert {path.name for path in (folder / "model").iterdir()} == {"model.pt", "model.pt2"}
    assert [row.get("epoch") for row in rows(folder)] == [1, None]


@pytest.mark.slow
def test_a_copy_of_the_file_alone_trains_in_an_odd_folder_with_its_own_defaults(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "a" $folder; ü'
    data = write_digits(folder / "data")
    (folder / "mine.py").write_bytes(MLP.read_bytes())
    env = {name: value for name, value in environment(tmp_path).items() if not name.startswith(("SM_", "AIP_"))}
    command = [sys.executable, "-W", "error", "mine.py", "--epochs", "1"]
    env["SM_CHANNEL_TRAINING"] = str(data)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (folder / "runs/mlp/model/model.pt2").is_file()
    assert list((folder / "runs/mlp/output/tensorboard").iterdir())
    assert not (folder / "runs/mlp-smoke").exists()
    sample = [*command[:4], "--data", "sample:mnist"]
    done = subprocess.run(sample, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No module named 'samples'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--data", "empty"), 2, "empty holds no train-images-idx3-ubyte or"),
        (("--data", "nowhere"), 2, "--data 'nowhere' is not a folder"),
        (("--data", "good", "--checkpoint-dir", "good/t10k-labels-idx1-ubyte/x"), 2, "t10k-labels-idx1-ubyte"),
        (("--data", "good", "--lr", "900", "--optimizer", "sgd"), 1, "the loss is no longer a number at epoch "),
        (("--data", "sample:minst"), 2, "no sample is called 'minst'"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    (tmp_path / "empty").mkdir()
    write_digits(tmp_path / "good")
    done = run(tmp_path, *words)
    assert done.returncode == code
    assert done.stderr.startswith("mlp.py: error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_the_entrypoints_import_nothing_of_ours_and_say_what_they_need() -> None:
    import tomllib

    for path in ENTRYPOINTS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "orchestrator" not in text.replace("the orchestrator", "")
        assert "import estimates" not in text
        block = text.split("# /// script\n")[1].split("# ///\n")[0]
        table = tomllib.loads("".join(line[2:] or "\n" for line in block.splitlines(keepends=True)))
        assert table["requires-python"]
        assert len(text.splitlines()) <= 500
    assert os.access(MLP, os.R_OK)
