"""The ceiling is what a request allows to be billed, to the second, and its inverse is exact."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimates import catalog, ceiling, pricebook
from estimates.ceiling import Ceiling
from estimates.pricebook import Book, Price, Rate, Terms

P3 = catalog.machine("ml.p3.2xlarge")
MONTH_SECONDS = 28 * 24 * 3600


def price(usd: str, region: str = "us-east-1", market: str = "on_demand", component: str = "Training") -> Price:
    return Price(Decimal(usd), region, market, component, date(2026, 11, 1), "day", "A", "a price list", "")


def rate(usd: str, region: str, item: str = "training_storage", cloud: str = "sagemaker") -> Rate:
    return Rate(item, Decimal(usd), "GB-month", region, date(2026, 11, 1), "a bill", True, cloud=cloud)


def book(*prices: Price, rates: tuple[Rate, ...] = (), terms: Terms | None = None, machine: str = P3.name) -> Book:
    cloud = catalog.machine(machine).cloud
    return Book({(cloud, machine): prices}, rates, terms or Terms(), derives=False)


def known(found: Ceiling | None) -> Ceiling:
    assert found is not None
    return found


def test_an_hour_of_two_machines_with_their_time_to_stop_their_disks_and_their_warm_pool() -> None:
    prices = book(price("3.60"), rates=(rate("0.14", "us-east-1"),))
    found = known(
        ceiling.of(P3, count=2, region="us-east-1", disk_gb=30, keep_alive_seconds=600, stop_seconds=120, book=prices)
    )
    seconds = 3600 + 120 + 600
    by_hand = 2 * seconds * (Fraction("3.60") / 3600 + 30 * Fraction("0.14") / MONTH_SECONDS)
    assert 0 <= Fraction(found.usd_at(3600)) - by_hand < Fraction(1, 10**20)  # rounded up, if at all
    assert found.usd_at(Decimal("3599.01")) == found.usd_at(3600)  # a begun second is billed whole
    assert found.usd_at(3601) > found.usd_at(3600)


def test_the_dearest_of_the_rates_counts_on_spot_and_only_there() -> None:
    dear_spot = book(price("3"), price("4", market="spot", component="SpotTraining"))
    assert known(ceiling.of(P3, region="us-east-1", book=dear_spot)).price.usd_per_hour == 3
    assert known(ceiling.of(P3, region="us-east-1", spot=True, book=dear_spot)).price.usd_per_hour == 4
    cheap_spot = book(price("3"), price("1", market="spot", component="SpotTraining"))
    assert known(ceiling.of(P3, region="us-east-1", spot=True, book=cheap_spot)).price.usd_per_hour == 3


def test_a_spot_price_alone_is_no_ceiling_on_sagemaker_which_bills_the_training_rate() -> None:
    alone = book(price("1", market="spot", component="SpotTraining"))
    assert ceiling.of(P3, region="us-east-1", spot=True, book=alone) is None


def test_a_machine_without_a_price_has_no_ceiling() -> None:
    assert ceiling.of(P3, region="us-east-1", book=book()) is None
    assert ceiling.of(P3, region="eu-west-1", book=book(price("3"))) is None  # another region's is not taken
    assert ceiling.of(catalog.machine("ml.p6-b200.48xlarge"), region="us-east-1") is None


def test_a_discount_lowers_no_ceiling_and_a_contract_counts_where_it_is_higher_or_the_only_price() -> None:
    def hourly(terms: Terms, *prices: Price, spot: bool = False) -> Decimal:
        found = ceiling.of(P3, region="us-east-1", spot=spot, book=book(*prices, terms=terms))
        return known(found).price.usd_per_hour

    assert hourly(Terms(discounts={"sagemaker": Decimal("0.5")}), price("3")) == 3
    assert hourly(Terms(contract={P3.name: Decimal("2.50")}), price("3")) == 3
    assert hourly(Terms(contract={P3.name: Decimal("3.50")}), price("3")) == Decimal("3.50")
    assert hourly(Terms(contract={P3.name: Decimal("3.50")}), price("3"), spot=True) == Decimal("3.50")
    assert hourly(Terms(contract={f"{P3.name}@us-east-1": Decimal("2.50")})) == Decimal("2.50")


def test_a_machine_with_local_nvme_has_no_volume_to_pay_for() -> None:
    g5 = catalog.machine("ml.g5.xlarge")
    assert g5.local_nvme_gb
    prices = book(price("1"), rates=(rate("0.14", "us-east-1"),), machine=g5.name)
    found = known(ceiling.of(g5, region="us-east-1", disk_gb=16384, book=prices))
    assert found.usd_at(3600) == 1
    assert found.disk is None


def test_without_a_disk_price_in_the_region_the_dearest_known_one_counts_and_says_so() -> None:
    rates = (rate("0.14", "us-east-1"), rate("0.20", "ap-northeast-1"), rate("9", "eu-west-1", item="logs"))
    prices = book(price("3"), price("3", "us-west-2"), rates=rates)
    here = known(ceiling.of(P3, region="us-east-1", disk_gb=1, book=prices))
    assert (here.disk and here.disk.usd, here.notes) == (Decimal("0.14"), ())
    there = known(ceiling.of(P3, region="us-west-2", disk_gb=1, book=prices))
    assert there.disk is not None
    assert there.disk.usd == Decimal("0.20")
    assert "disks in us-west-2 is not known" in there.notes[0]
    assert "ap-northeast-1" in there.notes[0]


def test_without_any_disk_price_there_is_no_ceiling_unless_no_disk_is_asked_for() -> None:
    assert ceiling.of(P3, region="us-east-1", disk_gb=1, book=book(price("3"))) is None
    assert ceiling.of(P3, region="us-east-1", book=book(price("3"))) is not None


def test_vertex_counts_its_spot_price_and_its_boot_disk() -> None:
    machine = catalog.machine("n1-standard-8")
    shipped = pricebook.shipped()
    spot = shipped.price(machine, "us-central1", "spot")
    disk = shipped.rate("vertex", "pd_ssd", "us-central1")
    assert spot is not None
    assert disk is not None
    found = known(ceiling.of(machine, region="us-central1", spot=True, disk_gb=100))
    by_hand = 3600 * (Fraction(spot.usd_per_hour) / 3600 + 100 * Fraction(disk.usd) / MONTH_SECONDS)
    assert 0 <= Fraction(found.usd_at(3600)) - by_hand < Fraction(1, 10**20)
    full = known(ceiling.of(machine, region="us-central1", disk_gb=100))
    assert full.usd_at(3600) > found.usd_at(3600)


def test_vertex_without_a_spot_price_counts_the_one_on_demand() -> None:
    name = "n1-standard-8"
    prices = book(price("0.5", "us-central1"), machine=name)
    assert known(ceiling.of(catalog.machine(name), region="us-central1", spot=True, book=prices)).usd_at(
        3600
    ) == Decimal("0.5")


@pytest.mark.parametrize("wrong", [{"count": 0}, {"disk_gb": -1}, {"keep_alive_seconds": -1}, {"stop_seconds": -1}])
def test_what_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="ceiling"):
        ceiling.of(P3, region="us-east-1", book=book(price("3")), **wrong)  # type: ignore[arg-type]
    with pytest.raises(catalog.CatalogError):
        ceiling.of(P3, region="us-east-9", book=book(price("3")))
    with pytest.raises(ValueError, match="-1"):
        known(ceiling.of(P3, region="us-east-1", book=book(price("3")))).usd_at(-1)


@settings(max_examples=400, deadline=None)
@given(
    usd=st.decimals("0.0001", 100, places=7),
    disk_usd=st.decimals("0.0001", 1, places=5),
    count=st.integers(1, 64),
    disk_gb=st.integers(0, 16384),
    extra=st.integers(0, 30_000),
    budget=st.one_of(st.decimals("0.0001", 10_000, places=4), st.decimals("0.0001", 100, places=40)),
)
def test_a_budget_buys_exactly_the_seconds_whose_ceiling_it_covers(
    usd: Decimal, disk_usd: Decimal, count: int, disk_gb: int, extra: int, budget: Decimal
) -> None:
    prices = book(price(str(usd)), rates=(rate(str(disk_usd), "us-east-1"),))
    found = known(
        ceiling.of(P3, count=count, region="us-east-1", disk_gb=disk_gb, keep_alive_seconds=extra, book=prices)
    )
    seconds = found.seconds_within(budget)
    assert seconds >= -1
    if seconds >= 0:
        assert found.usd_at(seconds) <= budget
    assert found.usd_at(seconds + 1) > budget
