"""mlp.py trains, stops, goes on to the same bits, and keeps what it says it keeps."""

from __future__ import annotations

import json
import signal
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Arguments = Callable[..., Namespace]
# 360 images to train on: 12 steps of 32 an epoch, the last one shorter; dropout and both penalties are on
WORDS = ("--epochs", "3", "--batch-size", "32", "--hidden", "16", "--dropout", "0.3", "--l1", "1e-5")


def never(_step: int) -> int:
    return 0


def stopped_after(training: Any, steps: int) -> Any:
    """Train with SIGTERM coming after *steps* steps: the exit code, None if it came to its end."""
    left = iter([0] * steps)
    try:
        training.train(lambda step: next(left, signal.SIGTERM))
    except SystemExit as ended:
        return ended.code
    return None


def new(mlp: ModuleType, args: Namespace, digits: Path) -> Any:
    return mlp.Training(args, mlp.load_data(digits, mlp.torch.device("cpu")))


def state(training: Any) -> dict[str, Any]:
    """All that must be equal: the weights now and the best, the optimizer's, and the history but for its times."""
    history = [{name: value for name, value in row.items() if name != "samples_per_second"} for row in training.history]
    tensors = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in training.best["weights"].items()}
    moments = training.optimizer.state_dict()["state"].items()
    tensors |= {
        f"{number}.{name}": value for number, row in moments for name, value in row.items() if value is not None
    }
    return {"history": history, "best": training.best["epoch"]} | {
        name: value.numpy().tobytes() for name, value in tensors.items()
    }


@pytest.fixture(autouse=True)
def one_thread(mlp: ModuleType) -> None:
    mlp.torch.set_num_threads(1)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.slow
def test_a_run_stopped_at_any_step_ends_with_the_bits_of_one_never_stopped(
    mlp: ModuleType, arguments: Arguments, digits: Path, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*WORDS, "--optimizer", optimizer)
    unbroken = new(mlp, arguments(*words, name="unbroken"), digits)
    unbroken.train(never)
    for epoch, step in ((0, 0), (0, 1), (0, 11), (1, 0), (1, 7), (2, 11)):
        args = arguments(*words, name=f"broken-{epoch}-{step}")
        first = new(mlp, args, digits)
        with pytest.raises(SystemExit) as ended:
            first.train(lambda now: signal.SIGTERM if (first.epoch, first.step) == (epoch, step) else 0)  # noqa: B023
        assert ended.value.code == 143
        assert f"SIGTERM: epoch {epoch + 1}, step {step} is kept in" in capsys.readouterr().out
        mlp.torch.rand(5)  # whatever the new process did to the generator before
        second = new(mlp, args, digits)
        second.resume()
        assert (second.epoch, second.step) == (epoch, step)
        second.train(never)
        assert state(second) == state(unbroken)


def test_a_run_that_resumes_every_few_steps_ends_with_the_same_bits(
    mlp: ModuleType, arguments: Arguments, digits: Path
) -> None:
    unbroken = new(mlp, arguments(*WORDS, name="unbroken"), digits)
    unbroken.train(never)
    args = arguments(*WORDS, name="broken")
    ends: list[Any] = []
    while ends[-1:] != [None]:
        training = new(mlp, args, digits)
        training.resume()
        ends.append(stopped_after(training, steps=5))
    assert ends == [143] * (len(ends) - 1) + [None]
    assert len(ends) > 6
    assert state(training) == state(unbroken)


def test_the_checkpoints_thread_count_wins_and_is_said(
    mlp: ModuleType, arguments: Arguments, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlp.torch.set_num_threads(2)
    new(mlp, arguments(*WORDS), digits).save()
    mlp.torch.set_num_threads(1)
    new(mlp, arguments(*WORDS), digits).resume()
    assert mlp.torch.get_num_threads() == 2
    assert "0 epochs and 0 steps are done, with 2 CPU threads" in capsys.readouterr().out


def test_dropout_and_order_are_others_for_another_seed(mlp: ModuleType, arguments: Arguments, digits: Path) -> None:
    ends = []
    for seed in ("0", "1"):
        training = new(mlp, arguments(*WORDS, "--seed", seed, name=seed), digits)
        training.model.load_state_dict(new(mlp, arguments(*WORDS, name="same"), digits).model.state_dict())
        training.train(never)
        ends.append(state(training)["model.layers.0.weight"])
    assert ends[0] != ends[1]


def test_the_newest_whole_checkpoint_wins_and_a_torn_one_is_skipped_with_a_word(
    mlp: ModuleType, arguments: Arguments, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(*WORDS)
    training = new(mlp, args, digits)
    training.train(never)
    older, newer = sorted(args.checkpoint_dir.glob("*"))
    assert [path.name for path in (older, newer)] == ["checkpoint-000000024.pt", "checkpoint-000000036.pt"]
    whole = newer.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for torn in (b"", whole[:-100], bytes(flipped), b"PK\x03\x04 nothing more"):
        newer.write_bytes(torn)
        again = new(mlp, args, digits)
        again.resume()
        assert again.epoch == 2
        assert f"{newer} is damaged and skipped" in capsys.readouterr().out
    again.train(never)
    assert newer.read_bytes() != torn
    assert state(again) == state(training)


def test_two_checkpoints_are_kept_and_left_overs_go(mlp: ModuleType, arguments: Arguments, digits: Path) -> None:
    args = arguments(*WORDS)
    (args.checkpoint_dir / "checkpoint-000000007.pt.tmp").write_bytes(b"of a process that was killed")
    (args.checkpoint_dir / "notes.txt").write_text("the user's own", encoding="utf-8")
    new(mlp, args, digits).train(never)
    names = sorted(path.name for path in args.checkpoint_dir.iterdir())
    assert names == ["checkpoint-000000024.pt", "checkpoint-000000036.pt", "notes.txt"]


def test_starting_afresh_replaces_the_checkpoints_of_before(
    mlp: ModuleType, arguments: Arguments, digits: Path
) -> None:
    new(mlp, arguments(*WORDS), digits).train(never)
    args = arguments(*WORDS, "--seed", "5", "--resume", "never")
    fresh = new(mlp, args, digits)
    with pytest.raises(SystemExit):
        fresh.train(lambda step: signal.SIGINT if fresh.epoch == 1 else 0)
    again = new(mlp, args, digits)
    again.resume()
    assert (again.epoch, again.step) == (1, 0)


@pytest.mark.parametrize(
    "changed",
    ["--hidden 8", "--seed 9", "--batch-size 16", "--lr 0.1", "--dropout 0", "--l1 0", "--l2 0", "--epochs 4"],
)
def test_a_checkpoint_of_other_settings_is_refused_in_one_line(
    mlp: ModuleType, arguments: Arguments, digits: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    training = new(mlp, arguments(*WORDS), digits)
    training.save()
    with pytest.raises(SystemExit) as ended:
        new(mlp, arguments(*WORDS, *changed.split()), digits).resume()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{changed.split()[0][2:].replace('-', '_')} was" in err
    assert "try --resume never" in err


def test_a_checkpoint_of_other_data_is_refused(
    mlp: ModuleType, arguments: Arguments, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new(mlp, arguments(*WORDS), digits).save()
    file = digits / "train-labels-idx1-ubyte"
    content = file.read_bytes()
    file.write_bytes(content[:8] + content[9:] + content[8:9])
    other = new(mlp, arguments(*WORDS), digits)
    with pytest.raises(SystemExit) as ended:
        other.resume()
    assert ended.value.code == 2
    assert "data was" in capsys.readouterr().err


def test_a_constant_rate_goes_on_for_more_epochs_and_patience_may_change(
    mlp: ModuleType, arguments: Arguments, digits: Path
) -> None:
    words = (*WORDS, "--schedule", "constant")
    new(mlp, arguments(*words), digits).train(never)
    longer = new(mlp, arguments(*words, "--epochs", "5", "--patience", "4"), digits)
    longer.resume()
    longer.train(never)
    straight = new(mlp, arguments(*words, "--epochs", "5", "--patience", "4", name="straight"), digits)
    straight.train(never)
    assert state(longer) == state(straight)


def test_patience_stops_and_the_best_epoch_is_what_is_kept(
    mlp: ModuleType, arguments: Arguments, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(*WORDS, "--epochs", "60", "--patience", "2", "--lr", "0.3", "--schedule", "constant", "--l2", "0")
    training = new(mlp, args, digits)
    training.train(never)
    losses = [row["val_loss"] for row in training.history]
    best = losses.index(min(losses)) + 1
    assert len(losses) < 60
    assert (training.best["epoch"], len(losses)) == (best, best + 2)
    training.finish()
    saved = mlp.torch.load(args.model_dir / "model.pt", weights_only=True)
    assert all(mlp.torch.equal(saved[name], value) for name, value in training.best["weights"].items())
    val_loss, _ = mlp.evaluate(training.model, training.data.validation)
    assert val_loss == min(losses)
    resumed = new(mlp, args, digits)
    resumed.resume()
    resumed.train(never)  # a run that was stopped by patience is over
    assert len(resumed.history) == len(losses)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(
    mlp: ModuleType, arguments: Arguments, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(*WORDS, "--optimizer", "sgd", "--lr", "1000", "--schedule", "constant")
    training = new(mlp, args, digits)
    with pytest.raises(SystemExit) as ended:
        training.train(never)
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert "the loss is no longer a number at epoch 1, step " in err
    assert err.rstrip().endswith("try --lr 100")
    assert list(args.checkpoint_dir.glob("*.pt")) == []


def test_weights_that_break_in_the_last_step_of_all_are_noticed(
    mlp: ModuleType, arguments: Arguments, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = new(
        mlp, arguments(*WORDS, "--epochs", "1", "--batch-size", "360", "--lr", "1000", "--optimizer", "sgd"), digits
    )
    with mlp.torch.no_grad():
        training.model.layers[3].weight.mul_(1e37)  # the loss is still finite, its gradient's step is not
    with pytest.raises(SystemExit) as ended:
        training.train(never)
    assert ended.value.code == 1
    assert "at epoch 1, step 1: " in capsys.readouterr().err


def test_l1_draws_weights_to_zero_and_l2_makes_them_smaller(
    mlp: ModuleType, arguments: Arguments, digits: Path
) -> None:
    def weights(*words: str) -> Any:
        training = new(mlp, arguments(*WORDS, "--l2", "0", *words, name="".join(words) or "none"), digits)
        training.train(never)
        return training.model.layers[0].weight.detach()

    plain, l1, l2 = weights("--l1", "0"), weights("--l1", "0.01"), weights("--l2", "5")
    assert l1.abs().sum() < 0.7 * plain.abs().sum()
    assert (l1.abs() < 1e-3).sum() > 2 * (plain.abs() < 1e-3).sum()
    assert l2.norm() < 0.9 * plain.norm()


def test_each_epoch_is_one_metric_line_and_one_row(
    mlp: ModuleType, arguments: Arguments, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(*WORDS)
    training = new(mlp, args, digits)
    training.train(never)
    training.finish()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[metrics] ")]
    read = [dict(pair.split("=") for pair in line.removeprefix("[metrics] ").split(" ")) for line in lines]
    names = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "samples_per_second"]
    assert [list(row) for row in read] == [names] * 3 + [["test_accuracy", "test_loss"]]
    rows = [json.loads(line) for line in (args.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [list(row) for row in read]
    for row, printed in zip(rows, read, strict=True):
        assert {name: float(value) for name, value in printed.items()} == pytest.approx(row, rel=1e-5)


def test_tensorboard_can_read_the_events(mlp: ModuleType, arguments: Arguments, digits: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    args = arguments(*WORDS)
    first = new(mlp, args, digits)
    stopped_after(first, steps=27)  # in the third epoch
    first.board.close()
    training = new(mlp, args, digits)
    training.resume()
    training.train(never)
    training.finish()
    training.board.close()
    events = accumulator.EventAccumulator(str(args.output_dir / "tensorboard")).Reload()
    drawn = [(event.step, event.value) for event in events.Scalars("val_loss")]
    assert [step for step, _ in drawn] == [1, 2, 3]
    assert [value for _, value in drawn] == pytest.approx([row["val_loss"] for row in training.history])
    assert len(events.Scalars("test_accuracy")) == 1


def test_without_tensorboard_it_says_so_and_trains(
    mlp: ModuleType,
    arguments: Arguments,
    digits: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    args = arguments(*WORDS, "--epochs", "1")
    new(mlp, args, digits).train(never)
    assert "no TensorBoard events: pip install tensorboard" in capsys.readouterr().out
    assert not (args.output_dir / "tensorboard").exists()


def test_weights_and_program_give_the_same_outputs_for_any_batch(
    mlp: ModuleType, arguments: Arguments, digits: Path
) -> None:
    args = arguments(*WORDS)
    training = new(mlp, args, digits)
    training.train(never)
    training.finish()
    torch, images = mlp.torch, training.data.test.images
    model = mlp.MLP(training.data.train, 16, 0.0)
    model.load_state_dict(torch.load(args.model_dir / "model.pt", weights_only=True))
    program = torch.export.load(args.model_dir / "model.pt2").module()
    for batch in (images, images[:1], images[7:10]):
        with torch.no_grad():
            assert torch.equal(model.eval()(batch), program(batch))
    assert sorted(path.name for path in args.model_dir.iterdir()) == ["model.pt", "model.pt2"]


def test_a_full_disk_ends_a_save_and_leaves_the_checkpoint_before(
    mlp: ModuleType, arguments: Arguments, digits: Path, small_disk: Path
) -> None:
    args = arguments(*WORDS)
    args.checkpoint_dir = small_disk / "checkpoints"
    args.checkpoint_dir.mkdir()
    training = new(mlp, args, digits)
    training.save()
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(3 * 2**20))
    training.step = 3
    with pytest.raises((OSError, RuntimeError)):
        training.save()
    again = new(mlp, args, digits)
    again.resume()
    assert (again.epoch, again.step) == (0, 0)
