"""The image that a machine gets: one that has code for its GPU, from the registry of its region."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from estimates import catalog, images, refresh_images
from estimates.catalog import CatalogError
from estimates.refresh_images import difference, take_over

TABLES = ("images", "image_registries", "image_gpus")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def gpu_of(machine: str) -> str | None:
    return catalog.machine(machine, cloud="sagemaker").gpu


def test_a_v100_gets_the_newest_image_that_still_has_code_for_it() -> None:
    found = images.find("us-east-1", gpu=gpu_of("ml.p3.2xlarge"))
    assert found.uri == "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.6.0-gpu-py312"
    assert (found.torch, found.python, found.cuda, found.note) == ("2.6.0", "3.12", "cu126", "")
    assert found.source.startswith("image data of sagemaker-core ")


def test_without_a_gpu_it_is_the_newest_image_for_processors() -> None:
    found = images.find("eu-west-1", gpu=None)
    assert re.fullmatch(
        r"763104351884\.dkr\.ecr\.eu-west-1\.amazonaws\.com/pytorch:2\.\d+-cpu-amzn2023-sagemaker", found.uri
    )
    assert found.cuda == ""


def test_every_machine_of_nvidia_gets_an_image_that_is_known_to_run_on_it() -> None:
    for machine in catalog.machines("sagemaker"):
        if machine.gpu and not machine.gpu.startswith("Trainium"):
            found = images.find("us-east-1", gpu=machine.gpu)
            assert found.note == "", machine.name
            assert images.find("us-east-1", gpu=machine.gpu, torch=found.torch) == found


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("cn-north-1", "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/"),
        ("us-gov-west-1", "442386744353.dkr.ecr.us-gov-west-1.amazonaws.com/"),
        ("eu-central-2", "380420809688.dkr.ecr.eu-central-2.amazonaws.com/"),
        ("eusc-de-east-1", "204133271717.dkr.ecr.eusc-de-east-1.amazonaws.eu/"),
    ],
)
def test_each_region_has_its_own_registry(region: str, host: str) -> None:
    assert images.find(region, gpu="A100").uri.startswith(host)


def test_every_region_of_the_catalog_has_images() -> None:
    for region in catalog.regions("sagemaker"):
        assert images.find(region, gpu="A10G").uri
        assert images.find(region, gpu=None).uri


def test_a_version_can_be_asked_for_by_its_minor_or_whole() -> None:
    assert images.find("us-east-1", gpu="A10G", torch="2.7").torch == "2.7.1"
    assert images.find("us-east-1", gpu="A10G", torch="2.10").torch == "2.10.0"
    assert images.find("us-east-1", gpu="A10G", torch="2.14.0").torch == "2.14"
    assert images.find("us-east-1", gpu=None, torch="2.1").torch == "2.1.0"


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        (
            ("us-east-1", "V100", "2.9"),
            "PyTorch 2.9 of AWS's has no code for a V100 (compute capability 7.0)",
            "--torch 2.6",
        ),
        (
            ("us-east-1", "B200", "2.6"),
            "PyTorch 2.6 of AWS's has no code for a B200 (compute capability 10.0)",
            "--torch 2.",
        ),
        (("us-east-1", "A100", "3.1"), "no image with PyTorch 3.1 is known in us-east-1", "--torch 2."),
        (("us-east-1", "Trainium2", None), "AWS's PyTorch images do not run on Trainium2", "--image URI"),
        (("moon-1", None, None), "no PyTorch image of AWS's is known in region 'moon-1'", "--image URI"),
    ],
)
def test_what_there_is_not_is_refused_with_what_to_type(
    arguments: tuple[str, str | None, str | None], what: str, hint: str
) -> None:
    region, gpu, torch = arguments
    with pytest.raises(CatalogError) as caught:
        images.find(region, gpu=gpu, torch=torch)
    assert caught.value.what.startswith(what)
    assert caught.value.hint.startswith(hint)


def test_where_no_source_tells_an_image_is_only_taken_by_its_version_and_labelled() -> None:
    found = images.find("us-east-1", gpu="V100", torch="2.8")
    assert found.torch == "2.8.0"
    assert found.note == "whether PyTorch 2.8.0 of AWS's runs on a V100 is not known"
    assert images.find("us-east-1", gpu="A1000").note.endswith("runs on a A1000 is not known")


@pytest.mark.parametrize(
    ("architectures", "gpu", "runs"),
    [
        ("7.0 7.5 8.0", "V100", True),
        ("7.5 8.0", "V100", False),
        ("8.0", "A10G", True),  # within one generation, older code runs on the newer
        ("8.6", "A100", False),  # and not the other way
        ("8.0", "H100", False),
        ("7.0+PTX", "H100", True),
        ("8.0+PTX", "V100", False),
        ("7.0? 8.0", "V100", None),
        ("7.0? 7.0+PTX", "V100", True),
        ("", "V100", None),
        ("8.0", "unheard of", None),
    ],
)
def test_code_runs_on_its_own_generation_of_gpu_or_from_ptx(architectures: str, gpu: str, runs: bool | None) -> None:
    assert images.runs_on(architectures, gpu) is runs


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_every_column_a_source_and_a_date_that_is_past(table: str) -> None:
    for row in read(catalog.TABLES / f"{table}.csv"):
        assert None not in row
        assert None not in row.values()
        assert row["source"].strip()
        assert date.fromisoformat(row["as_of"]) <= date.today()
        assert all(cell == cell.strip() for cell in row.values())


def test_what_an_image_was_built_for_has_its_source() -> None:
    for row in read(catalog.TABLES / "images.csv"):
        assert bool(row["gpu_architectures"]) <= bool(row["built_as_told_by"]), row["torch"]
        assert row["processor"] in ("cpu", "gpu")
        assert bool(row["gpu_architectures"]) <= (row["processor"] == "gpu")
        assert re.fullmatch(r"(\d+\.\d+(\+PTX)?\??( |$))*", row["gpu_architectures"]), row["torch"]


def test_registries_name_only_images_that_are_there() -> None:
    versions = {row["torch"] for row in read(catalog.TABLES / "images.csv")}
    for row in read(catalog.TABLES / "image_registries.csv"):
        assert set(row["torch"].split()) <= versions
        assert re.fullmatch(r"\d{12}", row["account"])


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    return Path(shutil.copytree(catalog.TABLES, tmp_path / "catalog"))


def sdk_of_the_tables() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The data that an SDK which agrees with the tables would have."""
    columns = ("torch", "processor", "repository", "tag")
    return (
        [{name: row[name] for name in columns} for row in read(catalog.TABLES / "images.csv")],
        [
            {name: row[name] for name in ("region", "account", "domain", "torch")}
            for row in read(catalog.TABLES / "image_registries.csv")
        ],
    )


def test_data_that_agrees_makes_no_difference(tables: Path) -> None:
    found = difference(*sdk_of_the_tables(), tables)
    assert not found
    assert str(found) == "the tables agree with the SDK"
    take_over(found, "the same SDK", tables)
    for path in tables.iterdir():
        assert path.read_bytes() == (catalog.TABLES / path.name).read_bytes(), path.name


def test_new_changed_and_gone_images_are_shown_and_taken_over_without_losing_what_was_added_by_hand(
    tables: Path,
) -> None:
    rows, places = sdk_of_the_tables()
    rows = [row for row in rows if row["torch"] != "2.1.0"]
    rows += [{"torch": "2.15", "processor": "gpu", "repository": "pytorch", "tag": "2.15-cu140-x", "cuda": "cu140"}]
    moved = next(row for row in rows if (row["torch"], row["processor"]) == ("2.6.0", "gpu"))
    moved["tag"] = "2.6.0-moved"
    next(place for place in places if place["region"] == "us-east-1")["torch"] += " 2.15"
    found = difference(rows, places, tables)
    assert str(found).splitlines() == [
        "+ PyTorch 2.6.0 gpu  pytorch-training:2.6.0-moved",
        "+ PyTorch 2.15 gpu  pytorch:2.15-cu140-x",
        f"+ us-east-1  account 763104351884: {found.registries[0]['torch']}",
        "- PyTorch 2.1.0 cpu  is not in the data any more (its row stays)",
        "- PyTorch 2.1.0 gpu  is not in the data any more (its row stays)",
    ]
    take_over(found, "a newer SDK", tables)
    after = {(row["torch"], row["processor"]): row for row in read(tables / "images.csv")}
    assert after["2.6.0", "gpu"]["tag"] == "2.6.0-moved"
    assert "7.0" in after["2.6.0", "gpu"]["gpu_architectures"].split()
    assert (after["2.15", "gpu"]["source"], after["2.15", "gpu"]["gpu_architectures"]) == ("a newer SDK", "")
    assert ("2.1.0", "gpu") in after
    again = difference(rows, places, tables)
    assert not again.images
    assert not again.registries
    assert sorted(path.name for path in tables.iterdir()) == sorted(path.name for path in catalog.TABLES.iterdir())


def test_the_installed_sdk_agrees_with_the_tables() -> None:
    pytest.importorskip("sagemaker", reason="comes with the sagemaker extra")
    rows, places, source = refresh_images.sdk_rows()
    assert source.startswith("image data of sagemaker-core ")
    written = {row["source"] for row in read(catalog.TABLES / "images.csv")}
    if source not in written:
        pytest.skip(f"the tables are of {', '.join(sorted(written))}, installed is {source}")
    found = difference(rows, places)
    assert not found, str(found)


def test_without_the_sdk_it_says_what_to_install() -> None:
    # -E and -S leave out every folder in which it could be installed.
    done = subprocess.run(
        [sys.executable, "-E", "-S", "-m", "estimates.refresh_images"],
        cwd=catalog.TABLES.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("error: sagemaker-core is not installed: pip install 'orchestrate-ml[sagemaker-sdk]'\n")


@pytest.mark.slow  # importing the SDK takes seconds
def test_the_sdk_itself_would_name_the_same_image() -> None:
    pytest.importorskip("sagemaker", reason="comes with the sagemaker extra")
    asked = [
        ("pytorch", "2.6.0", "us-east-1"),
        ("pytorch", "2.10.0", "cn-north-1"),
        ("pytorch-amzn2023", "2.14", "eu-central-2"),
    ]
    code = (
        "from sagemaker.core import image_uris\n"
        f"for name, version, region in {asked!r}:\n"
        "    for machine in ('ml.g5.xlarge', 'ml.m5.large'):\n"
        "        print(image_uris.retrieve(name, region, version=version, instance_type=machine, image_scope='training'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = [images.find(region, gpu=gpu, torch=version).uri for _, version, region in asked for gpu in ("A10G", None)]
    assert done.stdout.split() == ours
