"""Real bills and published examples, reckoned again: to the published digit where it is exact, else within 1 %."""

from __future__ import annotations

import csv
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest

from estimates import bill, catalog, cost, pricebook
from estimates.bill import Job, Span
from estimates.pricebook import Terms

with Path(__file__).with_name("worked_examples.csv").open(encoding="utf-8", newline="") as table:
    EXAMPLES = list(csv.DictReader(table))
# Rates that the book does not have: there they stand as the user's own.
OTHER_RATE = {"eight-a100"}


def lines(job: Job, usd_per_hour: str | None = None) -> dict[str, Decimal]:
    """Expected USD of each part of the job's bill that is machine or disk, by the shipped book."""
    contract = {job.machine.name: Decimal(usd_per_hour)} if usd_per_hour else {}
    reckoned = bill.bill(job, pricebook.shipped().with_terms(Terms(contract=contract)))
    machines, disk = reckoned.lines[0].lines, reckoned.lines[1]
    return {line.what: line.usd.expected for line in (*machines, disk) if line.usd is not None}


def billed(name: str, seconds: Decimal | str, region: str, **more: Any) -> Job:
    return Job(catalog.machine(name), Span.of(seconds), region, billable=True, **more)


def machine_of(row: dict[str, str]) -> Decimal:
    """Its machine time, at the book's own price of that machine, region and market."""
    spot = row["id"] == "ohio-spot"
    job = billed(row["machine"], row["seconds"], row["region"], count=int(row["count"]), spot=spot)
    if row["id"] not in OTHER_RATE:
        price, _ = cost.prices_of(job.machine, job.region, spot=spot, book=pricebook.shipped())
        assert price is not None
        assert price.usd_per_hour == Decimal(row["usd_per_hour"])
    found = lines(job, row["usd_per_hour"] if row["id"] in OTHER_RATE else None)
    return found["training, by what earlier runs were billed"]


def disk_of(name: str, gb: int, gb_months: Decimal, region: str) -> Decimal:
    """A volume of *gb*, held for as long as gives *gb_months*."""
    job = billed(name, gb_months / gb * bill.HOURS_PER_MONTH * 3600, region, disk_gb=gb)
    return next(usd for what, usd in lines(job).items() if "storage" in what or "boot disk" in what)


def recomputed(row: dict[str, str]) -> Decimal:
    if row["kind"] == "spot":
        return bill.spot_saving(Decimal(row["seconds"]), Decimal(row["billable_seconds"]))
    if row["kind"] == "disk":
        return disk_of("ml.m5.xlarge", 1000, Decimal(row["gb_months"]), row["region"])
    return machine_of(row)


@pytest.mark.parametrize("row", EXAMPLES, ids=lambda row: row["id"])
def test_a_published_bill_comes_out_of_the_book_and_the_whole_reckoning(row: dict[str, str]) -> None:
    found, published = recomputed(row), Decimal(row["published"])
    if row["agreement"] == "exact":
        assert found.quantize(published, ROUND_HALF_UP) == published
    else:
        assert abs(found - published) <= published / 100


def test_a_day_of_a_solution_with_its_volume_comes_out_again() -> None:
    """AWS, Stable Diffusion solution, December 2023, us-east-1: 160 h of one machine and 240 GB for a month are $276.00."""
    machine = lines(billed("ml.g5.2xlarge", "576000", "us-east-1"))["training, by what earlier runs were billed"]
    volume = disk_of("ml.m5.xlarge", 240, Decimal(240), "us-east-1")
    assert (machine + volume).quantize(Decimal("0.01"), ROUND_HALF_UP) == Decimal("276.00")


def test_an_hour_of_eight_h100_with_its_disk_comes_out_of_its_sku_rows() -> None:
    """A bill of August 2025, us-central1: GPUs, cores, memory and 2,000 GiB of pd-ssd are $101.5429684 an hour."""
    found = lines(billed("a3-highgpu-8g", "3600", "us-central1", disk_gb=2000))
    assert sum(found.values()).quantize(Decimal("0.0000001"), ROUND_HALF_UP) == Decimal("101.5429684")


def test_seconds_of_the_sdks_log_are_those_of_all_machines_together() -> None:
    """Its closing lines print 2,882 for two machines that took 1,441 s each: once × count, never twice."""
    two = lines(billed("ml.p3dn.24xlarge", "1441", "us-east-1", count=2), "35.894")
    one = lines(billed("ml.p3dn.24xlarge", "2882", "us-east-1"), "35.894")
    assert two == one
