"""The refresh shows what a newer API has, and takes it over without losing a row."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from estimates import catalog, refresh
from estimates.refresh import SERVES, TRAINING, difference, take_over


def api_of_the_tables() -> dict[str, list[str]]:
    """The lists that an API which agrees with the tables would have."""
    enums: dict[str, list[str]] = {TRAINING: [machine.name for machine in catalog.machines("sagemaker")]}
    enums |= {kind: [] for kind in SERVES}
    for row in read(catalog.TABLES / "not_for_training.csv"):
        for kind, use in SERVES.items():
            if use in row["serves"].split("; "):
                enums[kind].append(row["machine"])
    return enums


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    return Path(shutil.copytree(catalog.TABLES, tmp_path / "catalog"))


def test_an_api_that_agrees_makes_no_difference(tables: Path) -> None:
    found = difference(api_of_the_tables(), tables)
    assert not found
    assert str(found) == "the tables agree with the API"


def test_new_moved_and_gone_types_are_told_apart() -> None:
    enums = api_of_the_tables()
    enums[TRAINING].remove("ml.p2.xlarge")
    enums[TRAINING] += ["ml.p9.48xlarge", "ml.c5d.xlarge"]
    enums["InstanceType"] += ["ml.t9.medium", "ml.p2.xlarge"]
    enums["AppInstanceType"] += ["ml.t9.medium", "system"]
    assert str(difference(enums)).splitlines() == [
        "+ ml.c5d.xlarge  can train",
        "+ ml.p9.48xlarge  can train",
        "- ml.p2.xlarge  cannot train any more (its row stays)",
        "~ ml.t9.medium  serves notebooks; Studio apps",
    ]


def test_what_is_taken_over_makes_the_difference_go_away_and_loses_no_row(tables: Path) -> None:
    enums = api_of_the_tables()
    enums[TRAINING] += ["ml.p9.48xlarge", "ml.c5d.xlarge"]
    enums["InstanceType"] += ["ml.t9.medium"]
    before = read(tables / "machines.csv")
    take_over(difference(enums, tables), "a newer API", tables)
    assert not difference(enums, tables)
    after = read(tables / "machines.csv")
    assert after[: len(before)] == before
    moved, new = after[len(before) :]
    assert (moved["machine"], moved["vcpus"], moved["memory_gib"]) == ("ml.c5d.xlarge", "4", "8")
    assert moved["source"].endswith("; a newer API")
    assert (new["machine"], new["vcpus"], new["source"]) == ("ml.p9.48xlarge", "", "a newer API")
    served = [row["machine"] for row in read(tables / "not_for_training.csv")]
    assert "ml.c5d.xlarge" not in served
    assert "ml.t9.medium" in served
    assert sorted(path.name for path in tables.iterdir()) == sorted(path.name for path in catalog.TABLES.iterdir())


def test_taking_over_nothing_changes_no_byte(tables: Path) -> None:
    take_over(difference(api_of_the_tables(), tables), "the same API", tables)
    for path in tables.iterdir():
        assert path.read_bytes() == (catalog.TABLES / path.name).read_bytes(), path.name


def test_without_botocore_it_says_what_to_install() -> None:
    # -E and -S leave out every folder in which it could be installed.
    done = subprocess.run(
        [sys.executable, "-E", "-S", "-m", "estimates.refresh"],
        cwd=catalog.TABLES.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("error: botocore is not installed: pip install 'orchestrate-ml[sagemaker]'\n")


def test_the_installed_model_is_read() -> None:
    pytest.importorskip("botocore", reason="comes with the sagemaker extra")
    enums, source = refresh.api_enums()
    assert "ml.m5.xlarge" in enums[TRAINING]
    assert "ml.t2.medium" in enums["InstanceType"]
    assert source.startswith("SageMaker API model in botocore ")
