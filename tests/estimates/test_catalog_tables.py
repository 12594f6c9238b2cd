"""Reads every row of every table of the catalog: what a row must have, and what the tables must say of each other."""

from __future__ import annotations

import csv
import re
from datetime import date
from decimal import Decimal

import pytest

from estimates import catalog

TABLES = (
    "machines", "not_for_training", "prices", "regions", "base_prices", "ratios", "rates", "price_parts", "accelerators",
    "free_tier", "retired", "assumptions",
)  # fmt: skip
PRICED = ("prices", "base_prices", "price_parts")
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
# Columns that hold a number carry its unit in their name; these are counts.
COUNTS = {"vcpus", "gpu_count"}
UNITS = ("_gib", "_gb", "_gbps", "usd_per_hour")
COMPONENTS = {*catalog.COMPONENTS_BY_TRUST, "Training Warm Pool", "SpotTraining"}


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
                assert column in COUNTS or column.endswith(UNITS), f"{where(table, row)}: {column} has no unit"
                least = 0 if column == "gpu_count" else Decimal("1e-9")
                assert Decimal(cell) >= least, f"{where(table, row)}: {column}={cell}"


@pytest.mark.parametrize("table", ["machines", "prices", "regions"])
def test_a_row_is_of_a_cloud_that_we_know(table: str) -> None:
    assert {row["cloud"] for row in read(table)} == set(catalog.CLOUD_NAMES)


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


def test_a_price_is_of_a_machine_and_a_region_of_its_cloud() -> None:
    machines = {(row["cloud"], row["machine"]) for row in read("machines")}
    regions = {(row["cloud"], row["region"]) for row in read("regions")}
    for row in read("prices"):
        assert (row["cloud"], row["machine"]) in machines, where("prices", row)
        assert (row["cloud"], row["region"]) in regions, where("prices", row)


def test_a_price_has_a_known_grade_market_component_and_precision_of_date() -> None:
    for row in read("prices"):
        assert row["grade"] in ("A", "B"), where("prices", row)
        assert row["component"] in COMPONENTS, where("prices", row)
        assert row["market"] == ("spot" if row["component"] == "SpotTraining" else "on_demand"), where("prices", row)
        assert row["as_of_precision"] in ("day", "month", "two_months"), where("prices", row)
        assert row["as_of_precision"] == "day" or row["as_of"].endswith("-01"), where("prices", row)


def test_a_price_is_a_rate_that_a_machine_can_have() -> None:
    """Neither in cents nor by the month nor of the wrong machine: by vCPU, all rates are of one order."""
    vcpus = {row["machine"]: int(row["vcpus"]) for row in read("machines") if row["vcpus"]}
    for row in read("prices"):
        per_vcpu = Decimal(row["usd_per_hour"]) / vcpus[row["machine"]]
        assert Decimal("0.01") < per_vcpu < 1, f"{where('prices', row)}: ${per_vcpu:.4f} a vCPU-hour"


def test_readings_of_one_component_on_one_day_agree() -> None:
    seen: dict[tuple[str, ...], dict[str, str]] = {}
    for row in read("prices"):
        key = tuple(row[column] for column in KEYS["prices"] if column != "source")
        other = seen.setdefault(key, row)
        assert other["usd_per_hour"] == row["usd_per_hour"], f"{where('prices', row)} and {where('prices', other)}"


def test_default_regions_exist() -> None:
    for cloud, region in catalog.DEFAULT_REGION.items():
        assert region in catalog.regions(cloud)


def test_all_training_types_of_the_api_and_all_machines_of_google_are_listed() -> None:
    assert len(catalog.machines("sagemaker")) == 225
    assert len(catalog.machines("vertex")) == 92
    assert len(catalog.machines()) == 317
