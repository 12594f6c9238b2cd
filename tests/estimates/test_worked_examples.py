"""Real bills and published examples, reckoned again: to the published digit where it is exact, else within 1 %."""

from __future__ import annotations

import csv
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from estimates import bill, catalog
from estimates.bill import Job, Span

with Path(__file__).with_name("worked_examples.csv").open(encoding="utf-8", newline="") as lines:
    EXAMPLES = list(csv.DictReader(lines))
# Rates that are not the book's: of a component that it does not take, or since changed.
OTHER_RATE = {"ohio-spot", "eight-a100"}


def recomputed(row: dict[str, str]) -> Decimal:
    if row["kind"] == "spot":
        return bill.spot_saving(Decimal(row["seconds"]), Decimal(row["billable_seconds"]))
    if row["kind"] == "disk":
        return bill.disk_usd(Decimal(row["gb_months"]), Decimal(bill.HOURS_PER_MONTH), Decimal(row["usd_per_gb_month"]))
    return bill.machine_usd(Decimal(row["seconds"]), Decimal(row["usd_per_hour"]), int(row["count"]))


def agrees(found: Decimal, row: dict[str, str]) -> None:
    published = Decimal(row["published"])
    if row["agreement"] == "exact":
        assert found.quantize(published, ROUND_HALF_UP) == published, row["id"]
    else:
        assert abs(found - published) <= published / 100, row["id"]


@pytest.mark.parametrize("row", EXAMPLES, ids=lambda row: row["id"])
def test_a_published_bill_comes_out_again(row: dict[str, str]) -> None:
    agrees(recomputed(row), row)


@pytest.mark.parametrize(
    "row",
    [row for row in EXAMPLES if row["kind"] == "machine" and row["id"] not in OTHER_RATE],
    ids=lambda row: row["id"],
)
def test_a_published_bill_comes_out_of_the_book_and_the_whole_reckoning(row: dict[str, str]) -> None:
    """With the shipped book's own price of that machine and region, as one line of a job's bill."""
    machine = catalog.machine(row["machine"])
    job = Job(machine, Span.of(row["seconds"]), row["region"], int(row["count"]), billable=True)
    reckoned = bill.bill(job)
    assert reckoned.price is not None
    assert reckoned.price.usd_per_hour == Decimal(row["usd_per_hour"])
    (training,) = reckoned.lines[0].lines
    assert training.usd is not None
    agrees(training.usd.expected, row)


def test_a_day_of_a_solution_with_its_volume_comes_out_again() -> None:
    """AWS, Stable Diffusion solution, December 2023, us-east-1: 160 h of one endpoint and 240 GB for a month are $276.00."""
    machine = bill.machine_usd(160 * 3600, Decimal("1.515"))
    volume = bill.disk_usd(240, Decimal(bill.HOURS_PER_MONTH), Decimal("0.14"))
    assert machine + volume == Decimal("276.00")


def test_an_hour_of_eight_h100_with_its_disk_comes_out_of_its_sku_rows() -> None:
    """A bill of August 2025, us-central1: GPUs, cores, memory and 2,000 GiB of pd-ssd are $101.5429684 an hour."""
    book_price = catalog.price(catalog.machine("a3-highgpu-8g"), region="us-central1")
    assert book_price is not None
    disk = bill.disk_usd(2000, Decimal(1), Decimal("0.1955"))
    assert (book_price.usd_per_hour + disk).quantize(Decimal("0.0000001"), ROUND_HALF_UP) == Decimal("101.5429684")


def test_seconds_of_the_sdks_log_are_those_of_all_machines_together() -> None:
    """Its closing lines print 2,882 for two machines that took 1,441 s each: once × count, never twice."""
    rate = Decimal("35.894")
    assert bill.machine_usd(1441, rate, count=2) == bill.machine_usd(2882, rate)
