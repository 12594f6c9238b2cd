"""The shipped network on the rehearsed cloud: trained to its end, through a spot reclaim to the very same bits, on two hosts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs import Run
from tests.entrypoints.conftest import write_digits
from tests.sagemaker.conftest import Cloud, Shell

pytestmark = pytest.mark.slow
MLP = ("submit", "mlp", "--backend", "sagemaker", "--instance", "ml.p3.2xlarge", "--rehearse")
# Slow enough that a reclaim falls in the middle, small enough for a test.
EPOCHS = 4
WORDS = ("--epochs", str(EPOCHS), "--batch-size", "8", "--hidden", "16", "--dropout", "0", "--seed", "3")


@pytest.fixture
def digits(shell: Shell) -> Path:
    return write_digits(shell.project.parent / "digits", train=2000)


def trained(shell: Shell, digits: Path, *flags: str, words: tuple[str, ...] = WORDS) -> Run:
    answer = shell(*MLP, "--data", f"training={digits}", *flags, "--", *words)
    assert answer.code == 0, f"{answer.out}\n{answer.err}"
    return shell.runs()[0]


def model_of(run: Run) -> Path:
    return Path(run.run_dir) / "root/model/model.pt"


def weights(run: Run) -> str:
    """SHA-256 of model.pt, byte for byte."""
    return hashlib.sha256(model_of(run).read_bytes()).hexdigest()


def history(run: Run) -> list[dict[str, Any]]:
    lines = (Path(run.run_dir) / "root/output/data/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.sampledata
def test_mnist_is_trained_from_package_to_a_model_that_loads(shell: Shell, cloud: Cloud) -> None:
    import torch

    answer = shell(*MLP, "--data", "sample:mnist", "--", "--epochs", "1")
    assert answer.code == 0, answer.err
    run = shell.run()
    loaded = torch.load(model_of(run), weights_only=True)
    assert sum(tensor.numel() for tensor in loaded.values()) > 100_000
    told = shell.status()
    assert told["metrics"]["test_accuracy"] > 0.9
    assert told["billable_seconds"] >= 1
    (job,) = cloud.jobs()
    final = cloud.client("sagemaker").describe_training_job(TrainingJobName=job["name"])["FinalMetricDataList"]
    assert "test_accuracy" in {metric["MetricName"] for metric in final}


def test_reclaimed_it_ends_with_the_same_model_and_on_two_hosts_it_follows_the_same_losses(
    shell: Shell, cloud: Cloud, digits: Path
) -> None:
    whole = trained(shell, digits)
    assert [row["epoch"] for row in history(whole) if "train_loss" in row] == list(range(1, EPOCHS + 1))
    reclaimed = trained(shell, digits, "--spot", "--fault", "reclaim:metrics=2")
    assert weights(reclaimed) == weights(whole)
    assert [without_times(row) for row in history(reclaimed)] == [without_times(row) for row in history(whole)]
    attempts = {job["name"]: job["attempt"] for job in cloud.jobs()}
    assert attempts[reclaimed.remote_id] == attempts[whole.remote_id] + 1
    two = trained(shell, digits, "--count", "2")
    for alone, shared in zip(history(whole), history(two), strict=True):
        for name in ("train_loss", "val_loss", "test_loss"):
            assert shared.get(name) == pytest.approx(alone.get(name), abs=1e-4), name


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if "second" not in name}
