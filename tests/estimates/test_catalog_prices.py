"""Reads every row of the tables that prices come from, and holds them against each other."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal

import pytest

from estimates import accelerators, catalog, derived, pricebook
from estimates.rows import PRECISIONS
from estimates.rows import table as read
from tests.conftest import REPOSITORY

COMPONENTS = {*catalog.COMPONENTS_BY_TRUST, "Training Warm Pool", "SpotTraining"}
# Rounding of published prices, and of the whole-machine prices of Compute Engine: see the note of A3 in ratios.csv.
AGREES = Decimal("0.01")


def where(table: str, row: dict[str, str]) -> str:
    columns = ("cloud", "machine", "item", "family", "size", "region", "market", "as_of")
    return f"{table}.csv: {', '.join(row[column] for column in columns if column in row)}"


def machines() -> set[tuple[str, str]]:
    return {(row["cloud"], row["machine"]) for row in read("machines")}


def regions() -> set[tuple[str, str]]:
    return {(row["cloud"], row["region"]) for row in read("regions")}


def test_a_price_is_of_a_machine_and_a_region_of_its_cloud() -> None:
    ours, places = machines(), regions()
    for table in ("prices", "price_parts"):
        for row in read(table):
            assert (row["cloud"], row["machine"]) in ours, where(table, row)
            assert (row["cloud"], row["region"]) in places, where(table, row)


def test_a_base_price_is_of_the_machine_beneath_one_of_ours_and_of_a_region_of_its_cloud() -> None:
    ours, places = machines(), regions()
    for row in read("base_prices"):
        cloud = "sagemaker" if row["cloud"] == "ec2" else "vertex"
        name = f"ml.{row['machine']}" if cloud == "sagemaker" else row["machine"]
        assert (cloud, name) in ours, where("base_prices", row)
        assert (cloud, row["region"]) in places, where("base_prices", row)


def test_the_table_of_base_prices_can_be_split_at_its_commas() -> None:
    """derived._bases does: the first four cells are plain, a line is a row, and the order of the columns stays."""
    lines = (catalog.TABLES / "base_prices.csv").read_text("utf-8").splitlines()
    assert lines[0] == "cloud,machine,region,market,usd_per_hour,as_of,as_of_precision,source"
    rows = read("base_prices")
    assert len(rows) == len(lines) - 1 == len(derived._bases())
    for line, row in zip(lines[1:], rows, strict=True):
        assert line.split(",")[:4] == list(row.values())[:4], line


@pytest.mark.parametrize("table", ["prices", "base_prices", "price_parts", "rates", "accelerators"])
def test_a_price_has_a_market_and_a_precision_of_date_that_we_know(table: str) -> None:
    for row in read(table):
        assert row.get("market", "spot") in ("on_demand", "spot"), where(table, row)
        assert row["as_of_precision"] in PRECISIONS, where(table, row)
        first = row["as_of_precision"] in ("day", "first_day") or row["as_of"].endswith("-01")
        assert first, f"{where(table, row)}: of a month, but not its first day"


def test_a_price_has_a_known_grade_and_component() -> None:
    for row in read("prices"):
        assert row["grade"] in ("A", "B"), where("prices", row)
        assert row["component"] in COMPONENTS, where("prices", row)
        assert row["market"] == ("spot" if row["component"] == "SpotTraining" else "on_demand"), where("prices", row)


@pytest.mark.parametrize("table", ["prices", "base_prices"])
def test_a_price_is_a_rate_that_a_machine_can_have(table: str) -> None:
    """Neither in cents nor by the month nor of the wrong machine: by vCPU, all rates are of one order."""
    vcpus = {row["machine"].removeprefix("ml."): int(row["vcpus"]) for row in read("machines") if row["vcpus"]}
    for row in read(table):
        per_vcpu = Decimal(row["usd_per_hour"]) / vcpus[row["machine"].removeprefix("ml.")]
        least = Decimal("0.004") if row["market"] == "spot" else Decimal("0.01")
        assert least < per_vcpu < 1, f"{where(table, row)}: ${per_vcpu:.4f} a vCPU-hour"


def test_readings_of_one_component_on_one_day_agree() -> None:
    seen: dict[tuple[str, ...], dict[str, str]] = {}
    for row in read("prices"):
        columns = ("cloud", "machine", "region", "market", "component", "as_of")
        other = seen.setdefault(tuple(row[column] for column in columns), row)
        assert other["usd_per_hour"] == row["usd_per_hour"], f"{where('prices', row)} and {where('prices', other)}"


def test_spot_is_never_dearer_than_on_demand_on_compute_engine_and_always_beside_it() -> None:
    """It can be, in the real list: then the row is right, and this test has to learn it."""
    rows = {(row["machine"], row["region"], row["market"]): row for row in read("base_prices") if row["cloud"] == "gce"}
    for (machine, region, market), row in rows.items():
        full = rows[machine, region, "on_demand"]
        if market == "spot":
            assert Decimal(row["usd_per_hour"]) < Decimal(full["usd_per_hour"]), where("base_prices", row)


def test_gpus_and_host_sum_to_the_machine_that_was_summed_from_them() -> None:
    sums: dict[tuple[str, ...], Decimal] = {}
    for row in read("price_parts"):
        key = (row["cloud"], row["machine"], row["region"], row["market"], row["as_of"])
        sums[key] = sums.get(key, Decimal(0)) + Decimal(row["quantity"]) * Decimal(row["usd_per_hour"])
    assert sums
    for key, usd in sums.items():
        listed = [
            row for row in read("prices") if tuple(row[k] for k in ("cloud", "machine", "region", "market", "as_of")) == key
        ]  # fmt: skip
        assert [Decimal(row["usd_per_hour"]) for row in listed] == [usd], key


def test_the_parts_are_those_of_the_machine() -> None:
    parts = {row["part"].split(" (")[0]: int(row["quantity"]) for row in read("price_parts")}
    machine = catalog.machine("a3-highgpu-8g")
    assert parts == {
        "H100 80GB GPU": machine.gpu_count,
        "A3 vCPU": machine.vcpus,
        "A3 GB of RAM": machine.memory_gib,
    }


def test_a_ratio_agrees_with_every_published_price_of_its_family() -> None:
    compared = 0
    for machine in catalog.machines():
        for row in catalog.prices(machine):
            by_ratio = derived.price(machine, row.region)
            if row.market == "spot" or by_ratio is None or (machine.name, row.region) == ("ml.g5.xlarge", "us-east-2"):
                continue  # the one published price with another ratio, which the note of ml.g5's row tells
            compared += 1
            off = abs(row.usd_per_hour / by_ratio.usd_per_hour - 1)
            assert off < AGREES, f"{machine.name} in {row.region}: {row.usd_per_hour}, derived {by_ratio.usd_per_hour}"
    assert compared > 100


def test_the_exception_to_a_ratio_is_told_in_its_note() -> None:
    known = derived.ratio("sagemaker", "ml.g5.xlarge")
    assert known
    assert "us-east-2" in known.note
    price = catalog.price(catalog.machine("ml.g5.xlarge"), region="us-east-2")
    assert price
    assert price.usd_per_hour == Decimal("1.2575")


def test_a_ratio_is_of_a_family_that_is_listed_and_says_how_often_it_was_read() -> None:
    families = {
        name.rpartition(".")[0] if cloud == "sagemaker" else name.partition("-")[0] for cloud, name in machines()
    } | {"pd"}
    for row in read("ratios"):
        assert row["family"] in families, where("ratios", row)
        assert Decimal(1) < Decimal(row["ratio"]) < 2, where("ratios", row)
        assert int(row["readings"]) > 0 or "not read on this family" in row["note"], where("ratios", row)
        assert row["cloud"] == "vertex" or int(row["readings"]) > 0, where("ratios", row)
        fee = row["fee_ratio"]
        assert not fee or 1 + Decimal(fee) == Decimal(row["ratio"]), where("ratios", row)


def test_a_family_without_a_reading_has_no_derived_price() -> None:
    bases = {row["machine"] for row in read("base_prices") if row["cloud"] == "ec2"}
    unread = [m for m in catalog.machines("sagemaker") if derived.ratio("sagemaker", m.name) is None]
    assert any(machine.name.removeprefix("ml.") in bases for machine in unread)
    for machine in unread:
        assert all(derived.price(machine, region) is None for region in catalog.regions("sagemaker")), machine.name


def test_a_rate_is_of_a_known_unit_and_of_a_region_of_its_cloud() -> None:
    places = regions()
    for row in read("rates"):
        cloud = "vertex" if row["cloud"] == "gce" else row["cloud"]
        assert row["region"] == "*" or (cloud, row["region"]) in places, where("rates", row)
        assert row["unit"] in ("GB-month", "GiB-month", "GB", "GiB", "1,000 requests"), where("rates", row)
        assert row["published"] in ("yes", "no"), where("rates", row)
        assert row["published"] == "yes" or row["note"], where("rates", row)


def test_a_bill_can_be_made_out_on_both_clouds() -> None:
    items = {
        "sagemaker": ("training_storage", "s3_standard", "s3_put", "logs", "transfer_regions"),
        "vertex": ("pd_ssd", "pd_standard", "pd_balanced", "gcs_standard", "logs"),
    }
    for cloud, wanted in items.items():
        for item in wanted:
            for region in catalog.regions(cloud):
                assert pricebook.shipped().rate(cloud, item, region), f"{item} in {region}"


def test_the_accelerators_are_those_of_the_api_and_go_with_hosts_that_are_listed() -> None:
    for row in read("accelerators"):
        assert row["vertex_name"] == f"NVIDIA_TESLA_{row['gpu']}", row
        assert ("vertex", row["region"]) in regions(), row
        counts, most = row["counts"].split(), list(map(int, row["vcpus_at_most"].split()))
        assert len(counts) == len(most), row
        assert counts == sorted(counts, key=int), row
        assert most == sorted(most), row
    assert all(("vertex", host) in machines() for host in accelerators.USUAL_HOSTS)


def test_a_t4_comes_to_what_was_read_elsewhere() -> None:
    """0.4025 an hour, in a script that quotes Google's page: the fee and the ratio to Dataflow are not far off."""
    assert accelerators.accelerators()["T4"].usd_per_hour == Decimal("0.4025")


def test_the_free_tier_is_of_machines_that_train() -> None:
    for row in read("free_tier"):
        assert row["machines"].split(), row
        assert all((row["cloud"], name) in machines() for name in row["machines"].split()), row


def test_what_is_being_retired_is_listed_and_was_seen_before_it_was_missed() -> None:
    families = {name.rpartition(".")[0] for _, name in machines()}
    for row in read("retired"):
        assert row["family"] in families, row
        assert row["region"] == "*" or (row["cloud"], row["region"]) in regions(), row
        assert bool(row["last_seen"]) == bool(row["seen_in"]), row
        assert not row["missing_on"] or row["last_seen"] < row["missing_on"] <= row["as_of"], row


def test_every_assumption_is_three_numbers_in_order() -> None:
    for row in read("assumptions"):
        span = [Decimal(row[column]) for column in ("low", "expected", "high")]
        assert span in (sorted(span), sorted(span, reverse=True)), row["name"]


def counted(cloud: str) -> tuple[int, int, int]:
    """Machines with a published price in some region, with none but derived ones, and with neither."""
    book, found = pricebook.shipped(), Counter[str]()
    for machine in catalog.machines(cloud):
        known = [price for region in catalog.regions(cloud) if (price := book.price(machine, region))]
        found["published" if any(price.published for price in known) else "derived" if known else "none"] += 1
    return found["published"], found["derived"], found["none"]


@pytest.mark.parametrize(("cloud", "title"), [("sagemaker", "SageMaker"), ("vertex", "Vertex AI")])
def test_the_docs_count_what_the_tables_hold(cloud: str, title: str) -> None:
    docs = (REPOSITORY / "docs" / "prices.md").read_text("utf-8")
    row = re.search(rf"^\| {title} \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", docs, flags=re.MULTILINE)
    assert row
    assert tuple(map(int, row.groups())) == (len(catalog.machines(cloud)), *counted(cloud))


def test_the_readmes_answer_on_the_articles_prices_is_what_the_book_says() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8").split("## Questions")[1]
    cheapest = min(
        (row.usd_per_hour, machine.name, row.region, row.dated)
        for machine in catalog.machines("sagemaker")
        for row in catalog.prices(machine)
        if row.market == "on_demand"
    )
    assert cheapest == (Decimal("0.05"), "ml.t3.medium", "us-west-2", "2026-09-01")
    assert "ml.t3.medium, at $0.05 (us-west-2, 2026-09-01)" in readme
    large = catalog.price(catalog.machine("ml.p3.16xlarge"))
    assert large
    assert f"~${large.usd_per_hour} in {large.region}" in readme
    assert large.formula == "EC2 $24.48 × 1.15"
    assert f"{large.usd_per_hour / Decimal('4.256'):.1f} times the article's figure" in readme


def test_the_docs_count_the_rows_too() -> None:
    docs = (REPOSITORY / "docs" / "prices.md").read_text("utf-8")
    bases = Counter(row["cloud"] for row in read("base_prices"))
    for table, rows in (("prices.csv", len(read("prices"))), ("EC2", bases["ec2"]), ("Compute Engine", bases["gce"])):
        assert re.search(rf"{rows:,} (rows|prices) of {re.escape(table)}\b", docs), f"{rows:,} of {table}"
