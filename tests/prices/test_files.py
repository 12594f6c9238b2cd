"""Files of prices: what was downloaded is told by its content, and what was refreshed is replaced whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from estimates import offers, pricebook
from estimates.offers import Reading
from orchestrator import pricefiles, state
from orchestrator.errors import BadInput, StateError
from tests.conftest import REPOSITORY
from tests.prices.listings import a3, bulk, n1, offer, sku, storage, written

DAY = date(2026, 11, 20)


def reading(*items: Any, on: date = DAY) -> Reading:
    return offers.read(items, as_of=on, source='a test, with a comma and a "quote"\nand a line')


def kept() -> dict[tuple[str, str], str]:
    return {(row.machine, row.region): f"{row.usd_per_hour} {row.as_of}" for row in pricefiles.prices("sagemaker")}


def downloaded(path: Path) -> Reading:
    return pricefiles.downloaded(path, "a test")


# What was refreshed


def test_what_is_kept_is_read_back_as_it_was(home: Path) -> None:
    told = reading(offer("ml.m5.large", "0.115"), offer("ml.g5.xlarge", "1.4", kind="SpotTraining"), storage())
    done = pricefiles.keep(told)
    assert tuple(pricefiles.prices("sagemaker")) == told.prices == done.prices
    assert done.path.stat().st_mode & 0o777 == 0o600
    assert state.prices_dir().stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in state.prices_dir().iterdir()) == [
        ".lock",
        "rates-sagemaker.csv",
        "sagemaker.csv",
    ]


def test_the_price_book_reads_what_is_kept_and_the_newer_price_wins(home: Path) -> None:
    from estimates import catalog

    machine = catalog.machine("ml.m5.large")
    shipped = pricebook.shipped().price(machine, "us-east-1")
    assert shipped is not None
    pricefiles.keep(reading(offer("ml.m5.large", "0.2"), storage("0.2", "eu-west-1")))
    book = pricebook.read_files(state.prices_dir())
    price, rate = book.price(machine, "us-east-1"), book.rate("sagemaker", "training_storage", "eu-west-1")
    assert price is not None
    assert rate is not None
    assert (str(price.usd_per_hour), price.as_of) == ("0.2", DAY)
    assert (str(rate.usd), rate.published) == ("0.2", True)
    old = reading(offer("ml.m5.large", "9"), on=shipped.as_of - timedelta(days=1))
    pricefiles.prices_file("sagemaker").unlink()
    pricefiles.keep(old)
    after = pricebook.read_files(state.prices_dir()).price(machine, "us-east-1")
    assert after is not None
    assert after.usd_per_hour != 9


def test_regions_that_were_not_read_stay(home: Path) -> None:
    pricefiles.keep(reading(offer("ml.m5.large", "0.1"), offer("ml.m5.large", "0.2", "eu-west-1")))
    pricefiles.keep(reading(offer("ml.m5.xlarge", "0.3"), on=DAY + timedelta(days=1)))
    assert kept() == {
        ("ml.m5.large", "eu-west-1"): "0.2 2026-11-20",
        ("ml.m5.xlarge", "us-east-1"): "0.3 2026-11-21",
    }


def test_an_older_reading_does_not_replace_a_newer_one(home: Path) -> None:
    pricefiles.keep(reading(offer("ml.m5.large", "0.1")))
    before = pricefiles.prices_file("sagemaker").read_bytes()
    older = reading(offer("ml.m5.large", "0.9"), offer("ml.m5.large", "0.8", "eu-west-1"), on=DAY - timedelta(days=1))
    assert pricefiles.keep(older).newer_there == ("us-east-1",)
    assert kept() == {
        ("ml.m5.large", "us-east-1"): "0.1 2026-11-20",
        ("ml.m5.large", "eu-west-1"): "0.8 2026-11-19",
    }
    assert pricefiles.prices_file("sagemaker").read_bytes().startswith(before)


def test_a_reading_without_prices_leaves_the_file_alone(home: Path) -> None:
    pricefiles.keep(reading(offer("ml.m5.large", "0.1")))
    before = pricefiles.prices_file("sagemaker").stat()
    pricefiles.keep(reading())
    after = pricefiles.prices_file("sagemaker").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda text: text.replace("0.115", "much"), 3),
        (lambda text: text.replace("usd_per_hour", "price"), 3),
        (lambda text: text.replace("2026-11-20", "yesterday"), 3),
        (lambda text: text[: len(text) // 2], 2),
    ],
)
def test_a_damaged_file_is_named_with_its_line_and_left_as_it_is(home: Path, spoil: Any, line: int) -> None:
    pricefiles.keep(reading(offer("ml.m5.large", "0.115")))
    path = pricefiles.prices_file("sagemaker")
    path.write_text(spoil(path.read_text("utf-8")), encoding="utf-8")
    damaged = path.read_bytes()
    with pytest.raises(StateError) as caught:
        pricefiles.keep(reading(offer("ml.m5.xlarge", "0.2")))
    assert f"{path} is damaged, in line {line}" in caught.value.what
    assert str(caught.value.hint).startswith(f"rm {path}")
    assert path.read_bytes() == damaged


def test_a_disk_without_room_leaves_the_old_file(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_HOME", str(small_disk / "state"))
    pricefiles.keep(reading(offer("ml.m5.large", "0.1")))
    before = pricefiles.prices_file("sagemaker").read_bytes()
    (row,) = reading(offer("ml.m5.large", "0.2")).prices
    many = tuple(replace(row, machine=f"ml.x{number}.large", note="x" * 10_000) for number in range(300))
    with pytest.raises(StateError, match="is full"):
        pricefiles.keep(Reading("sagemaker", many, (), {}))
    assert pricefiles.prices_file("sagemaker").read_bytes() == before
    assert sorted(path.name for path in state.prices_dir().iterdir()) == [".lock", "sagemaker.csv"]


# What was downloaded


def packed(folder: Path, text: str) -> Path:
    path = folder / "index.json.gz"
    path.write_bytes(gzip.compress(text.encode()))
    return path


@pytest.mark.parametrize("write", [lambda folder, text: written(folder, "index.json", text), packed])
def test_an_offer_file_is_read_packed_or_not_with_its_own_date(tmp_path: Path, write: Any) -> None:
    found = downloaded(write(tmp_path, bulk([offer("ml.m5.large", "0.115"), storage()])))
    assert [(row.machine, row.as_of, row.source) for row in found.prices] == [
        ("ml.m5.large", date(2026, 11, 15), "AWS offer file AmazonSageMaker, version 20261115120000, read by a test")
    ]
    assert [rate.item for rate in found.rates] == ["training_storage"]


def test_a_file_that_tells_no_date_is_of_the_day_of_its_last_change(tmp_path: Path) -> None:
    path = written(tmp_path, "skus.json", json.dumps({"skus": n1()}))
    os.utime(path, (1_780_000_000, 1_780_000_000))  # 2026-05-28, in UTC
    core = n1()[0]["pricingInfo"][0]["effectiveTime"]
    assert core > "2026-05-28"  # and then nothing of it was in effect
    with pytest.raises(BadInput, match="2 without a price in effect"):
        downloaded(path)
    os.utime(path, (1_790_000_000, 1_790_000_000))  # 2026-09-21
    assert {row.as_of for row in downloaded(path).prices} == {date(2026, 9, 21)}
    os.utime(path, (4_000_000_000, 4_000_000_000))
    assert {row.as_of for row in downloaded(path).prices} == {pricefiles.today()}


def test_an_export_of_skus_and_a_kept_answer_are_told_by_their_content(tmp_path: Path) -> None:
    skus = written(tmp_path, "one.txt", "\n".join(map(json.dumps, [*a3(), *n1()])))
    answer = written(tmp_path, "two.txt", json.dumps({"PriceList": [json.dumps(offer())]}))
    assert {row.cloud for row in downloaded(skus).prices} == {"vertex"}
    assert {row.cloud for row in downloaded(answer).prices} == {"sagemaker"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bulk([offer()], offerCode="AmazonEC2"), "index.json is the price list of 'AmazonEC2'"),
        (bulk([]), "has no price of training: it lists nothing"),
        (bulk([offer(component="Training", unit="Quantity")]), "has no price of training: 1 not priced by the hour"),
        (bulk([offer()])[:1500], "cannot be read: not JSON at character"),
        ("machine,usd_per_hour\n", "is neither an offer file of AWS nor an export"),
        ("", "is neither an offer file of AWS nor an export"),
        (json.dumps({"skus": [sku("Cloud Storage", "1")]}), "has no price of training: 1 not of training"),
        (json.dumps({"skus": n1(), "nextPageToken": "x"}), "it is not the whole catalog"),
        (json.dumps({"PriceList": ["nope"]}), "an entry of the price list is not JSON"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        downloaded(written(tmp_path, "index.json", text))
    assert words in caught.value.what
    assert "\n" not in caught.value.what
    assert caught.value.hint


def broken(folder: Path) -> Iterable[tuple[Path, str]]:
    whole = packed(folder, bulk([offer(f"ml.m5.{n}xlarge") for n in range(200)])).read_bytes()
    files = {"short.gz": whole[: len(whole) // 2], "flipped.gz": whole[:500] + b"\0" * 50 + whole[550:]}
    for name, data in files.items():
        (folder / name).write_bytes(data)
        yield folder / name, "is damaged: "
    (folder / "latin.json").write_bytes('{"skus": ["é"]}'.encode("latin-1"))
    yield folder / "latin.json", "is not UTF-8 at byte 11"
    yield folder / "nowhere.json", "No such file"
    yield folder, "Is a directory"


def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    for path, words in broken(tmp_path):
        with pytest.raises(BadInput) as caught:
            downloaded(path)
        assert words in caught.value.what
        assert "\n" not in caught.value.what


@pytest.mark.slow
def test_a_large_offer_file_takes_little_memory(tmp_path: Path) -> None:
    """Loaded whole, such a file took four times its own size (158 MB: 656 MB)."""
    others = [
        json.dumps(offer(f"ml.x{n}.large", component="Hosting", kind="Hosting", usage="Host")) for n in range(10_000)
    ]
    path = written(tmp_path, "index.json", bulk([*map(json.loads, others), offer("ml.m5.large", "0.115")]))
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from orchestrator import pricefiles\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = pricefiles.downloaded(Path(sys.argv[1]), 'a test')\n"
        "print(len(found.prices), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True, check=True)
    prices, kib = map(int, done.stdout.split())
    assert prices == 1
    assert path.stat().st_size > 12_000_000
    assert kib * (1024 if sys.platform == "linux" else 1) < path.stat().st_size
