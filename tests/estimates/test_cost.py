"""Hours × price × count, exact inside, rounded up outside, and unknown where the price is."""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimates import catalog, cost, pricebook
from estimates.catalog import CatalogError
from estimates.pricebook import Terms

# Real bills and published examples at the rate of the day: seconds, machines, USD per hour, what the bill said.
BILLS = """\
what,machine,region,seconds,count,usd
"a month of training, real bill of December 2023",ml.m5.xlarge,eu-west-1,158454,1,11.31
"a month of training, real bill of December 2023",ml.g4dn.xlarge,eu-west-1,53283.6,1,12.17
"RoBERTa, notebook of AWS, April 2022",ml.p3.2xlarge,us-east-1,4372,1,4.65
"five small runs, August 2026",ml.m5.large,us-east-1,542,1,0.01731
"a ceiling of 30 minutes, August 2026",ml.m5.large,us-east-1,1800,1,0.0575
"a million steps, September 2026",n1-standard-4,us-central1,2512,1,0.152
"""


@pytest.mark.parametrize("bill", list(csv.DictReader(StringIO(BILLS))), ids=lambda bill: bill["what"])
def test_a_real_bill_is_recomputed_to_the_digit_it_gives(bill: dict[str, str]) -> None:
    machine = catalog.machine(bill["machine"])
    row = cost.row_for(machine, Decimal(bill["seconds"]), int(bill["count"]), bill["region"])
    assert row.usd
    published = Decimal(bill["usd"])
    assert abs(row.usd - published) <= Decimal(1).scaleb(int(published.as_tuple().exponent)) / 2


def test_a_cost_is_exact_where_it_can_be() -> None:
    row = cost.row_for(catalog.machine("ml.m5.large"), 1800, 1, "us-east-1")
    assert (row.usd, row.hours) == (Decimal("0.0575"), Decimal("0.5"))


def test_a_third_of_an_hour_costs_a_third_of_the_price() -> None:
    row = cost.row_for(catalog.machine("ml.c5.xlarge"), 1200, 1, "us-east-1")
    assert row.usd == Decimal("0.068")
    assert cost.format_usd(row.usd) == "$0.0680"


def test_a_begun_second_is_billed_whole() -> None:
    machine = catalog.machine("ml.m5.large")
    assert cost.row_for(machine, 10.2).usd == cost.row_for(machine, 11).usd
    assert cost.row_for(machine, 0).usd == 0


def test_own_terms_are_what_a_row_costs_and_the_list_price_stands_beside() -> None:
    machine = catalog.machine("ml.p3.2xlarge")
    terms = Terms(discounts={"sagemaker": Decimal("0.5")}, contract={"ml.p5en.48xlarge": Decimal(40)})
    with pricebook.using(pricebook.shipped().with_terms(terms)):
        own, listed = cost.prices_of(machine, "us-east-1")
        assert cost.row_for(machine, 3600, 1, "us-east-1").usd == Decimal("1.9125")
        assert cost.row_for(catalog.machine("ml.p5en.48xlarge"), 3600, 1, "us-east-1").usd == 40
    assert own is not None
    assert listed is not None
    assert (own.usd_per_hour, listed.usd_per_hour) == (Decimal("1.9125"), Decimal("3.825"))


def test_on_spot_the_rate_is_sagemakers_own_where_there_is_one_and_vertex_has_its_spot_price() -> None:
    def rate(name: str, region: str) -> Decimal | None:
        price, _ = cost.prices_of(catalog.machine(name), region, spot=True)
        return price.usd_per_hour if price else None

    assert rate("ml.g5.xlarge", "us-east-2") == Decimal("1.4084")
    assert rate("ml.p3.2xlarge", "us-east-1") == Decimal("3.825")
    assert rate("n1-standard-4+V100", "us-central1") is None


def test_rows_have_a_known_price_each_and_the_cheapest_comes_first() -> None:
    rows = cost.rows(3600)
    paid = [row.usd for row in rows]
    assert None not in paid
    assert paid == sorted(paid, key=lambda usd: usd or 0)
    assert {row.machine.cloud for row in rows} == {"sagemaker", "vertex"}
    assert len({row.machine.name for row in rows}) == len(rows)


def test_rows_hold_every_machine_with_a_price_and_no_other() -> None:
    priced = {machine.name for machine in catalog.machines() if catalog.price(machine)}
    assert {row.machine.name for row in cost.rows(1)} == priced


def test_rows_of_a_region_are_of_that_region_only() -> None:
    rows = cost.rows(3600, regions={"sagemaker": "eu-west-1"}, clouds=("sagemaker",))
    assert {row.region for row in rows} == {"eu-west-1"}
    assert {row.price.region for row in rows if row.price} == {"eu-west-1"}
    assert "ml.p5en.48xlarge" not in {row.machine.name for row in rows}


def test_rows_of_a_cloud_whose_region_is_not_given_say_where_their_price_is_from() -> None:
    found = {row.machine.name: row.region for row in cost.rows(3600, regions={"sagemaker": "us-west-2"})}
    assert found["n1-standard-4"] == "us-central1"
    assert found["ml.t3.medium"] == "us-west-2"


def test_without_hours_the_hourly_price_is_known_and_the_cost_is_not() -> None:
    row = cost.rows(None)[0]
    assert row.price
    assert (row.hours, row.usd) == (None, None)


def test_an_unknown_price_is_a_row_that_says_unknown() -> None:
    row = cost.row_for(catalog.machine("ml.trn1.2xlarge"), 7200, 2, "us-east-1")
    assert (row.price, row.usd, row.hours, row.region) == (None, None, Decimal(2), "us-east-1")
    assert cost.format_usd(row.usd) == "unknown"
    shown = cost.as_json(row)
    assert (shown["usd"], shown["usd_per_hour"], shown["price_as_of"]) == (None, None, None)


def test_a_row_as_json_has_money_as_text_and_its_origin() -> None:
    row = cost.row_for(catalog.machine("ml.m5.large"), 131, 2, "us-east-1")
    shown = json.loads(json.dumps(cost.as_json(row)))
    assert shown.pop("price_source").startswith("AWS Price List Query API, SKU JMCWJEAPVJNFJ5P4")
    assert shown == {
        "machine": "ml.m5.large",
        "cloud": "sagemaker",
        "region": "us-east-1",
        "vcpus": 2,
        "memory_gib": 8.0,
        "gpu": None,
        "gpu_count": 0,
        "usd_per_hour": "0.115",
        "hours": 0.036389,
        "count": 2,
        "usd": "0.008370",
        "price_as_of": "2026-08-11",
        "price_grade": "A",
        "component": "Training",
    }


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (None, "unknown"),
        ("0", "$0.00"),
        ("0.0042", "$0.0042"),
        ("0.00411", "$0.0042"),
        ("0.0000001", "$0.0001"),
        ("0.99991", "$1.00"),
        ("1", "$1.00"),
        ("1.001", "$1.01"),
        ("1234.561", "$1,234.57"),
        ("1e40", "$10,000,000,000,000,000,000,000,000,000,000,000,000,000.00"),
    ],
)
def test_money_is_shown_rounded_up(usd: str | None, text: str) -> None:
    assert cost.format_usd(None if usd is None else Decimal(usd)) == text


@settings(deadline=None)
@given(st.decimals("0", "1e12", places=12))
def test_what_is_shown_is_never_less_than_what_is_owed(usd: Decimal) -> None:
    assert Decimal(cost.format_usd(usd).removeprefix("$").replace(",", "")) >= usd


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), Decimal("-0.001")])
def test_a_time_that_cannot_be_is_refused(seconds: float | Decimal) -> None:
    with pytest.raises(ValueError, match="cannot take"):
        cost.row_for(catalog.machine("ml.m5.large"), seconds)


def test_no_machine_is_not_a_count() -> None:
    with pytest.raises(ValueError, match="count is 0"):
        cost.rows(1, count=0)


def test_an_unknown_region_is_refused() -> None:
    with pytest.raises(CatalogError, match="no region 'us-esat-1'"):
        cost.rows(1, regions={"sagemaker": "us-esat-1"})


def test_what_is_given_back_has_its_sign_before_the_dollar_and_is_never_more_than_it_is() -> None:
    assert cost.format_usd(Decimal("-0.46")) == "−$0.4600"
    assert cost.format_usd(Decimal("-12.349")) == "−$12.34"
