"""Reads every row of every table of the catalog: what a row must have, and what the tables must say of each other."""

from __future__ import annotations

import csv
import re
from datetime import date
from decimal import Decimal

import pytest

from estimates import catalog, derived

TABLES = (
    "machines", "not_for_training", "prices", "regions", "base_prices", "ratios", "rates", "price_parts", "accelerators",
    "free_tier", "retired", "assumptions",
)  # fmt: skip
KEYS = {
    "machines": ("machine",),
    "not_for_training": ("machine",),
    "prices": ("cloud", "machine", "region", "market", "component", "as_of", "source"),
    "regions": ("cloud", "region"),
    "base_prices": ("cloud", "machine", "region", "market"),
    "ratios": ("cloud", "family", "size"),
    "rates": ("cloud", "item", "region", "as_of", "source"),
    "price_parts": ("cloud", "machine", "region", "market", "part", "as_of"),
    "accelerators": ("gpu", "region"),
    "free_tier": ("cloud",),
    "retired": ("cloud", "family", "region"),
    "assumptions": ("name",),
}
# Columns that hold a number carry its unit in their name, or have it in a column `unit`; these have none.
COUNTS = {"vcpus", "gpu_count", "readings", "quantity", "first_months", "counts", "vcpus_at_most"}
RATIOS = {"ratio", "fee_ratio", "dataflow_over_gce"}
UNITS = ("_gib", "_gb", "_gbps", "usd_per_hour", "_per_month")
MAY_BE_ZERO = {"gpu_count", "readings"}


def read(table: str) -> list[dict[str, str]]:
    with (catalog.TABLES / f"{table}.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def where(table: str, row: dict[str, str]) -> str:
    return f"{table}.csv: {', '.join(row[column] for column in KEYS[table])}"


def test_every_table_is_linted() -> None:
    images = {"images", "image_registries", "image_gpus"}  # test_images.py lints those
    assert {path.stem for path in catalog.TABLES.iterdir()} == {*TABLES, *images}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_every_column_a_source_and_a_date_that_is_past(table: str) -> None:
    for row in read(table):
        assert None not in row, f"{where(table, row)}: more cells than columns"
        assert None not in row.values(), f"{where(table, row)}: fewer cells than columns"
        assert row["source"].strip(), f"{where(table, row)}: no source"
        assert date.fromisoformat(row["as_of"]) <= date.today(), f"{where(table, row)}: read in the future"
        assert all(cell == cell.strip() for cell in row.values()), f"{where(table, row)}: stray spaces"


@pytest.mark.parametrize("table", TABLES)
def test_no_two_rows_say_the_same_thing(table: str) -> None:
    keys = [tuple(row[column] for column in KEYS[table]) for row in read(table)]
    assert sorted(keys) == sorted(set(keys))


@pytest.mark.parametrize("table", TABLES)
def test_a_number_names_its_unit_and_is_positive(table: str) -> None:
    for row in read(table):
        for column, cell in row.items():
            if re.fullmatch(r"[-+]?[0-9.]+", cell):
                named = column in COUNTS | RATIOS or column.endswith(UNITS) or bool(row.get("unit"))
                assert named, f"{where(table, row)}: {column} has no unit"
                assert (cell == "0" and column in MAY_BE_ZERO) or Decimal(cell) > 0, (
                    f"{where(table, row)}: {column}={cell}"
                )


@pytest.mark.parametrize("table", [table for table in TABLES if "cloud" in read(table)[0]])
def test_a_row_is_of_a_cloud_that_we_know(table: str) -> None:
    beneath = {"base_prices": set(derived.BENEATH.values()), "rates": {*catalog.CLOUD_NAMES, "gce"}}
    assert {row["cloud"] for row in read(table)} <= beneath.get(table, set(catalog.CLOUD_NAMES))


@pytest.mark.parametrize("table", ["machines", "not_for_training"])
def test_hardware_is_known_whole_or_not_at_all(table: str) -> None:
    for row in read(table):
        assert bool(row["vcpus"]) == bool(row["memory_gib"]), f"{where(table, row)}: vCPUs or GiB, not both"
        assert bool(row["gpu"]) == (row["gpu_count"] not in ("", "0")), f"{where(table, row)}: a GPU without a count"
        assert not row["gpu_memory_gib"] or row["gpu"], f"{where(table, row)}: memory of no GPU"


def test_a_machine_either_trains_or_does_not_and_is_in_one_cloud() -> None:
    names = [row["machine"] for table in ("machines", "not_for_training") for row in read(table)]
    assert sorted(names) == sorted(set(names))


def test_what_cannot_train_says_what_it_serves() -> None:
    for row in read("not_for_training"):
        assert row["machine"].startswith("ml."), row
        assert set(row["serves"].split("; ")) <= {
            "notebooks",
            "endpoints",
            "batch transform",
            "Studio apps",
            "HyperPod clusters",
        }, row


def test_default_regions_exist() -> None:
    for cloud, region in catalog.DEFAULT_REGION.items():
        assert region in catalog.regions(cloud)


def test_all_training_types_of_the_api_and_all_machines_of_google_are_listed() -> None:
    assert len(catalog.machines("sagemaker")) == 225
    assert len(catalog.machines("vertex")) == 92
    assert len(catalog.machines()) == 317
