"""What mlp.py reads, and what it says about data and settings that it cannot use."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.entrypoints.conftest import MLP, environment, idx, write_digits

CPU = "cpu"


def refused(mlp: ModuleType, capsys: pytest.CaptureFixture[str], call: Callable[[], object]) -> str:
    """The one line that *call* ends the script with."""
    with pytest.raises(SystemExit) as ended:
        call()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("mlp.py: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("inner", ["", "MNIST/raw"])
@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_are_found_plain_and_packed_at_the_top_and_in_torchvisions_place(
    mlp: ModuleType, tmp_path: Path, inner: str, compress: bool
) -> None:
    write_digits(tmp_path / inner, train=40, test=20, compress=compress)
    data = mlp.load_data(tmp_path, mlp.torch.device(CPU))
    assert data.train.images.shape == (36, 8, 8)
    assert len(data.validation.labels) == 4
    assert data.test.images.dtype == mlp.torch.uint8
    assert data.test.labels.tolist() == [n % 10 for n in range(20)]


def test_the_validation_part_is_disjoint_and_the_same_for_every_seed(mlp: ModuleType, tmp_path: Path) -> None:
    images = b"".join(n.to_bytes(2, "big") for n in range(300))  # each image tells its own number
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx((300, 1, 2), images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx((300,), bytes(n % 10 for n in range(300))))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx((1, 1, 2), b"\0\0"))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx((1,), b"\0"))

    def numbers(part: object) -> list[int]:
        return [int(image[0, 0]) * 256 + int(image[0, 1]) for image in part.images]  # type: ignore[attr-defined]

    data = mlp.load_data(tmp_path, mlp.torch.device(CPU))
    assert sorted(numbers(data.train) + numbers(data.validation)) == list(range(300))
    assert len(numbers(data.validation)) == 30
    mlp.torch.manual_seed(99)
    assert numbers(mlp.load_data(tmp_path, mlp.torch.device(CPU)).validation) == numbers(data.validation)


def test_what_normalises_comes_from_the_training_part_alone(mlp: ModuleType, digits: Path) -> None:
    data = mlp.load_data(digits, mlp.torch.device(CPU))
    bright = data._replace(validation=mlp.Part(data.validation.images | 255, data.validation.labels))
    pixels = data.train.images.double()
    model = mlp.MLP(bright.train, 4, 0.0)
    assert float(model.mean) == pytest.approx(float(pixels.mean()), rel=1e-5)
    assert float(model.std) == pytest.approx(float(pixels.std()), rel=1e-5)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGE: list[tuple[str, str, Callable[[bytes], bytes | None], str]] = [
    ("no file", IMAGES, lambda content: None, "holds no train-images-idx3-ubyte or"),
    ("empty file", IMAGES, lambda content: b"", "is no IDX file of 3 dimensions: it begins ''"),
    ("cut short", IMAGES, lambda content: content[:-5], "is damaged or empty"),
    ("too long", IMAGES, lambda content: content + b"\0", "is damaged or empty"),
    ("header only half there", IMAGES, lambda content: content[:9], "is no IDX file"),
    ("no images at all", IMAGES, lambda content: idx((0, 8, 8), b""), "is damaged or empty"),
    ("a header that lies", IMAGES, lambda content: idx((2**31, 8, 8), content[16:]), "(2147483648, 8, 8)"),
    ("labels for images", IMAGES, lambda content: idx((400,), bytes(400)), "not '00000803'"),
    ("one label less", LABELS, lambda content: idx((399,), content[8:-1]), "399 labels for the 400 images"),
    ("a label out of range", LABELS, lambda content: content[:12] + b"\x0a" + content[13:], "the label 10 at item 4"),
    ("one class only", LABELS, lambda content: idx((400,), b"\3" * 400), "400 labels, 3 to 3"),
    ("not a number in it", LABELS, lambda content: b"<html>not found</html>", "begins '3c68746d'"),
]


@pytest.mark.parametrize(("file", "damage", "says"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_damaged_file_is_named(
    mlp: ModuleType,
    capsys: pytest.CaptureFixture[str],
    digits: Path,
    file: str,
    damage: Callable[[bytes], bytes | None],
    says: str,
) -> None:
    content = damage((digits / file).read_bytes())
    if content is None:
        (digits / file).unlink()
    else:
        (digits / file).write_bytes(content)
    line = refused(mlp, capsys, lambda: mlp.load_data(digits, mlp.torch.device(CPU)))
    assert says in line
    assert str(digits) in line
    assert file in line


@pytest.mark.parametrize(
    "damage",
    [lambda packed: packed[:-9], lambda packed: b"no gzip", lambda packed: packed[:40] + b"\xff" * 20 + packed[60:]],
)
def test_a_torn_gz_file_is_named(
    mlp: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    write_digits(tmp_path, compress=True)
    packed = tmp_path / f"{IMAGES}.gz"
    packed.write_bytes(damage(packed.read_bytes()))
    line = refused(mlp, capsys, lambda: mlp.load_data(tmp_path, mlp.torch.device(CPU)))
    assert f"{packed} cannot be read" in line


def test_too_few_images_and_images_of_two_sizes_are_refused(
    mlp: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = write_digits(tmp_path / "few", train=9)
    assert "9 labels" in refused(mlp, capsys, lambda: mlp.load_data(few, mlp.torch.device(CPU)))
    mixed = write_digits(tmp_path / "mixed")
    content = (write_digits(tmp_path / "other", size=9) / "t10k-images-idx3-ubyte").read_bytes()
    (mixed / "t10k-images-idx3-ubyte").write_bytes(content)
    line = refused(mlp, capsys, lambda: mlp.load_data(mixed, mlp.torch.device(CPU)))
    assert "(8, 8) in train, (9, 9) in t10k" in line


def test_ten_images_are_enough(mlp: ModuleType, tmp_path: Path) -> None:
    data = mlp.load_data(write_digits(tmp_path, train=10, test=1), mlp.torch.device(CPU))
    assert (len(data.train.labels), len(data.validation.labels), len(data.test.labels)) == (9, 1, 1)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere", "--data 'nowhere' is not a folder"),
        ("torchvision:cifar10", "is not a folder: try --data sample:mnist"),
        ("a\nb", r"'a\nb'"),
    ],
)
def test_data_that_is_not_there_is_named(
    mlp: ModuleType,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(mlp, capsys, lambda: mlp.find_data(source))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--lr -1", "argument --lr: -1 is not between 1e-09 and 1000"),
        ("--lr nan", "argument --lr: nan is not between"),
        ("--lr inf", "argument --lr: inf is not between"),
        ("--lr fast", "argument --lr: invalid float value: 'fast'"),
        ("--epochs 0", "argument --epochs: 0 is not between 1 and"),
        ("--epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
        ("--batch-size 0", "argument --batch-size: 0 is not between"),
        ("--hidden 99999999", "argument --hidden: 99999999 is not between"),
        ("--dropout 1", "argument --dropout: 1 is not between 0 and 0.99"),
        ("--l1 -0.1", "argument --l1: -0.1 is not between"),
        ("--seed -1", "argument --seed: -1 is not between"),
        ("--threads 0", "argument --threads: 0 is not between"),
        ("--preset theirs", "argument --preset: invalid choice: 'theirs'"),
        ("--resume maybe", "argument --resume: invalid choice: 'maybe'"),
        ("--epoch 3", "unrecognized arguments: --epoch 3"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line(
    mlp: ModuleType, capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:
    assert says in refused(mlp, capsys, lambda: mlp.parse_arguments(words.split()))


def test_a_misspelt_flag_and_help_answer_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n", encoding="utf-8")
    env = environment(tmp_path) | {"PYTHONPATH": str(tmp_path)}
    for words, code in ((["--help"], 0), (["--lrr", "1"], 2), (["--lr", "-1"], 2)):
        done = subprocess.run([sys.executable, str(MLP), *words], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert "torch was imported" not in done.stderr
        assert "Traceback" not in done.stderr


def test_a_preset_gives_the_defaults_and_flags_win_over_it(mlp: ModuleType) -> None:
    article = mlp.parse_arguments(["--preset", "article", "--epochs", "3"])
    assert (article.optimizer, article.lr, article.batch_size, article.epochs) == ("sgd", 0.01, 64, 3)
    assert mlp.parse_arguments([]).optimizer == "adamw"


def test_the_environment_names_data_and_folders(mlp: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SM_", "AIP_")):
            monkeypatch.delenv(name)
    args = mlp.parse_arguments([])
    assert (args.data, args.model_dir) == ("torchvision:mnist", Path("runs/mlp/model"))
    monkeypatch.setenv("SM_CHANNEL_TRAIN", "/channels/train")
    assert mlp.parse_arguments([]).data == "/channels/train"
    monkeypatch.setenv("SM_CHANNEL_TRAINING", "/channels/training")
    monkeypatch.setenv("SM_MODEL_DIR", "/m")
    monkeypatch.setenv("SM_OUTPUT_DATA_DIR", "/o")
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", "/c")
    args = mlp.parse_arguments([])
    assert (args.data, args.model_dir, args.output_dir, args.checkpoint_dir) == (
        "/channels/training",
        Path("/m"),
        Path("/o"),
        Path("/c"),
    )
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", "gs://bucket/c")
    assert mlp.parse_arguments([]).checkpoint_dir == Path("runs/mlp/checkpoints")


@pytest.mark.slow
def test_torchvision_without_a_network_is_one_line(
    mlp: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path))
    import urllib.request

    def unreachable(*_args: object, **_options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    line = refused(mlp, capsys, lambda: mlp.find_data("torchvision:mnist"))
    assert "--data torchvision:mnist cannot be had" in line


def test_torchvisions_own_folder_is_read_without_downloading_again(
    mlp: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path))
    raw = write_digits(tmp_path / "torchvision/MNIST/raw", compress=True)
    for packed in raw.glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    monkeypatch.setattr("torchvision.datasets.MNIST._check_exists", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.MNIST._load_data", lambda self: (None, None))
    folder = mlp.find_data("torchvision:mnist")
    assert len(mlp.load_data(folder, mlp.torch.device(CPU)).test.labels) == 50
