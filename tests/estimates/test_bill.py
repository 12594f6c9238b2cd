"""The bill of a job: every part of it by hand, and what must hold for every machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from decimal import ROUND_CEILING, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimates import catalog, pricebook
from estimates.bill import Bill, Job, Line, Span, assumptions, bill
from estimates.pricebook import Terms

HOUR = Span.of(3600)
MACHINES = (*catalog.machines(), *catalog.attachable())


def job(name: str, hours: str = "1", **more: object) -> Job:
    """A job whose only unknowns are those of *more*: nothing is pulled, uploaded or kept unless it says so."""
    region = more.pop("region", "us-central1" if not name.startswith("ml.") else "us-east-1")
    made = Job(catalog.machine(name), Span.of(Decimal(hours) * 3600), str(region), billable=True)
    return dataclasses.replace(made, results=Span.of(0), logs=Span.of(0), **more)  # type: ignore[arg-type]


def leaves(lines: tuple[Line, ...]) -> Iterator[Line]:
    for line in lines:
        if line.lines:
            yield from leaves(line.lines)
        else:
            yield line


def part(reckoned: Bill, words: str) -> Line:
    (found,) = (line for line in leaves(reckoned.lines) if words in line.what)
    return found


def usd(line: Line) -> Decimal:
    """Its expected dollars, to 12 digits: divisions round the 28th one up."""
    assert line.usd is not None
    return line.usd.expected.quantize(Decimal("1e-12"))


def test_two_hours_of_the_articles_machine_are_twice_its_price_and_its_disk() -> None:
    reckoned = bill(job("ml.p3.16xlarge", "2"))
    assert reckoned.price is not None
    assert (reckoned.price.usd_per_hour, reckoned.price.published) == (Decimal("28.152"), False)
    assert usd(part(reckoned, "training")) == Decimal("56.304")
    assert usd(part(reckoned, "ML storage")).quantize(Decimal("0.000001")) == Decimal("0.011507")  # 30 × 2 / 730 × 0.14
    training = part(reckoned, "training")
    assert (training.as_of, "24.48" in training.note, bool(training.source)) == ("2025-11-04", True, True)


def test_a_begun_second_is_billed_and_no_more() -> None:
    one, two = (bill(dataclasses.replace(job("ml.m5.xlarge"), seconds=Span.of(seconds))) for seconds in ("1.2", "2"))
    assert usd(part(one, "training")) == usd(part(two, "training")) > 0


def test_machines_and_their_disks_are_counted_each() -> None:
    single, three = (bill(job("ml.m5.xlarge", count=count)) for count in (1, 3))
    for words in ("training", "ML storage"):
        assert abs(usd(part(three, words)) - 3 * usd(part(single, words))) < Decimal("1e-11")


def test_a_machine_with_local_nvme_has_no_volume_to_pay_for() -> None:
    assert usd(part(bill(job("ml.g5.xlarge")), "ML storage: none")) == 0
    assert usd(part(bill(job("ml.m5.xlarge", disk_gb=100)), "ML storage, 100 GB")) > 0


def test_what_the_cloud_bills_around_the_script_is_counted_unless_the_seconds_are_billable_ones() -> None:
    plain = dataclasses.replace(
        job("ml.m5.xlarge", data_gb=Decimal(10)), billable=False, results=Span.of("0.5"), logs=None
    )
    reckoned = bill(plain)
    pull = assumptions()["image_pull_cpu"].span
    assert part(reckoned, "image pull").quantity == Span(pull.low / 3600, pull.expected / 3600, pull.high / 3600)
    download = part(reckoned, "download of the data").usd
    assert download is not None
    assert 0 < download.low < download.expected < download.high
    assert "image pull" not in {line.what for line in leaves(bill(dataclasses.replace(plain, billable=True)).lines)}
    assert any("pull of the image" in said for said in reckoned.assumptions)


def test_on_sagemaker_the_spot_discount_is_in_the_seconds_and_never_in_the_rate_too() -> None:
    script = dataclasses.replace(job("ml.p3.2xlarge", "10"), billable=False)
    on_demand, spot = (part(bill(dataclasses.replace(script, spot=spot)), "training") for spot in (False, True))
    fraction = assumptions()["spot_billable"].span
    assert spot.price == on_demand.price
    assert spot.quantity is not None
    assert spot.quantity.expected == fraction.expected * 10
    assert usd(spot) == usd(on_demand) * fraction.expected


def test_billable_seconds_of_earlier_spot_runs_are_not_discounted_again() -> None:
    assert usd(part(bill(job("ml.p3.2xlarge", spot=True)), "training")) == Decimal("3.825")


def test_the_wall_clock_of_an_earlier_job_has_the_pull_and_the_upload_in_it() -> None:
    plain = dataclasses.replace(job("ml.p3.2xlarge", data_gb=Decimal(10)), billable=False, results=Span.of(2))
    alone, clock = bill(plain), bill(dataclasses.replace(plain, around_included=True))
    around = ("image pull", "download of the data", "upload of the results")
    assert [line.what for line in alone.lines[0].lines] == ["training", *around]
    assert [line.what for line in clock.lines[0].lines] == ["training, by the wall clock of earlier runs"]
    assert clock.lines[0].usd == Span.of("3.825")
    assert part(clock, "ML storage").quantity == Span.of(Decimal(30) / 730)


@pytest.mark.parametrize("billed", [False, True], ids=["another number of machines", "as billed"])
def test_on_spot_earlier_seconds_on_demand_get_the_discount_once(billed: bool) -> None:
    earlier = dataclasses.replace(job("ml.p3.2xlarge"), billable=billed, around_included=True)
    on_demand, spot = (bill(dataclasses.replace(earlier, spot=spot)) for spot in (False, True))
    assert usd(part(on_demand, "training")) == Decimal("3.825")
    assert usd(part(spot, "training")) == Decimal("3.825") * assumptions()["spot_billable"].span.expected
    assert part(spot, "ML storage") == part(on_demand, "ML storage")
    assert part(spot, "training").what == "training, by the wall clock of earlier runs"


def test_a_disk_of_spot_is_held_for_the_wall_clock_and_not_for_the_billable_seconds() -> None:
    clock = Span(Decimal(7200), Decimal(10800), Decimal(14400))
    earlier = job("ml.p3.2xlarge", spot=True, held_seconds=clock)
    spot = bill(earlier)
    assert part(spot, "training, by what").usd == Span.of("3.825")
    months = part(spot, "ML storage").quantity
    assert months is not None
    assert [round(gb * 730 / 30, 12) for gb in (months.low, months.expected, months.high)] == [2, 3, 4]
    on_demand = part(bill(dataclasses.replace(earlier, spot=False)), "training")  # which bills the wall clock
    assert usd(on_demand) == 3 * Decimal("3.825")
    assert on_demand.what == "training, by the wall clock of earlier runs"


def test_where_the_spot_rate_of_sagemaker_is_the_dearer_it_is_taken() -> None:
    """us-east-2, July 2026: SpotTraining was billed at 1.4084, Training at 1.2575."""
    spot, on_demand = (bill(job("ml.g5.xlarge", spot=spot, region="us-east-2")) for spot in (True, False))
    assert spot.price is not None
    assert on_demand.price is not None
    assert (spot.price.usd_per_hour, on_demand.price.usd_per_hour) == (Decimal("1.4084"), Decimal("1.2575"))


def test_on_vertex_spot_has_the_fee_on_the_undiscounted_rate_and_at_most_the_price_on_demand() -> None:
    machine = catalog.machine("a2-highgpu-1g")
    book = pricebook.shipped()
    on_demand, spot = (book.price(machine, "us-central1", market) for market in ("on_demand", "spot"))
    assert on_demand is not None
    assert spot is not None
    base, spot_base = Decimal("3.673385"), Decimal("1.92802")
    assert on_demand.usd_per_hour == base * Decimal("1.15")
    assert spot.usd_per_hour == spot_base + base * Decimal("0.15")
    training = part(bill(job("a2-highgpu-1g", spot=True)), "training").usd
    assert training is not None
    assert (training.low, training.high) == (spot.usd_per_hour, on_demand.usd_per_hour)


def test_a_boot_disk_of_vertex_is_100_gib_unless_said() -> None:
    default, small = (bill(job("n1-standard-4", "730", disk_gb=size)) for size in (None, 50))
    assert usd(part(default, "boot disk")) == Decimal("19.55")
    assert usd(part(small, "boot disk")) == Decimal("9.775")


def test_a_warm_pool_goes_on_costing_machine_and_disk() -> None:
    without, kept = (bill(job("ml.m5.xlarge", keep_alive_seconds=seconds)) for seconds in (0, 1800))
    assert usd(part(kept, "warm pool")) == usd(part(without, "training")) / 2
    assert abs(usd(part(kept, "ML storage")) - usd(part(without, "ML storage")) * Decimal("1.5")) < Decimal("1e-11")


def test_results_are_kept_for_thirty_days_and_logs_are_taken_in() -> None:
    reckoned = bill(dataclasses.replace(job("ml.m5.xlarge"), results=Span.of(10), logs=Span.of(2)))
    thirty_days = Decimal(10) * Decimal(720) / 730 * Decimal("0.023")
    assert abs(usd(part(reckoned, "30 days")) - thirty_days) < Decimal("1e-11")
    assert usd(part(reckoned, "logs")) == Decimal("1.00")


def test_data_from_another_region_is_a_line_and_from_the_same_is_none() -> None:
    here, there = (bill(job("ml.m5.xlarge", data_gb=Decimal(5), data_region=at)) for at in ("us-east-1", "eu-west-1"))
    assert not [line for line in leaves(here.lines) if "data from" in line.what]
    line = part(there, "data from eu-west-1")
    assert line.quantity == Span.of(5)
    assert (line.usd is None) == (pricebook.shipped().rate("sagemaker", "transfer_regions", "us-east-1") is None)


def test_the_free_tier_is_off_unless_asked_for_and_gives_no_more_than_is_used() -> None:
    assert not [line for line in leaves(bill(job("ml.m5.xlarge")).lines) if "free" in line.what]
    half, all_of_it = (part(bill(job("ml.m5.xlarge", "2", free_hours=Decimal(h))), "free tier") for h in ("1", "50"))
    price = pricebook.shipped().price(catalog.machine("ml.m5.xlarge"), "us-east-1")
    assert price is not None
    assert (usd(half), usd(all_of_it)) == (-price.usd_per_hour, -2 * price.usd_per_hour)
    assert not [line for line in leaves(bill(job("ml.p3.2xlarge", free_hours=Decimal(9))).lines) if "free" in line.what]
    pooled = bill(job("ml.m5.xlarge", "2", free_hours=Decimal(50), keep_alive_seconds=3600))
    assert usd(part(pooled, "free tier")) == -2 * price.usd_per_hour


def test_a_machine_without_a_price_has_no_total_and_is_never_free() -> None:
    unpriced = next(m for m in catalog.machines("sagemaker") if pricebook.shipped().price(m, "us-east-1") is None)
    reckoned = bill(Job(unpriced, HOUR, "us-east-1"))
    assert reckoned.usd is None
    assert all(line.usd is None for line in leaves(reckoned.lines[:1]))
    assert all(line.note == "price unknown" for line in leaves(reckoned.lines[:1]))


def test_own_terms_change_what_is_paid_and_keep_the_list_price_beside_it() -> None:
    shipped = pricebook.shipped()
    terms = Terms(discounts={"sagemaker": Decimal("0.2")}, contract={"ml.g5.*@us-east-1": Decimal("1.00")})
    with pricebook.using(dataclasses.replace(shipped, terms=terms)):
        v100, g5 = bill(job("ml.p3.2xlarge")), bill(job("ml.g5.xlarge"))
    assert v100.price is not None
    assert v100.listed is not None
    assert (v100.price.usd_per_hour, v100.listed.usd_per_hour) == (Decimal("3.06"), Decimal("3.825"))
    assert g5.price is not None
    assert g5.price.usd_per_hour == Decimal("1.00")
    assert bill(job("ml.p3.2xlarge")).price == v100.listed


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"seconds": Span.of(-1)},
        {"held_seconds": Span.of(-1)},
        {"data_gb": Decimal(-1)},
        {"keep_alive_seconds": -1},
    ],
)
def test_a_negative_amount_is_no_job(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"count|negative"):
        bill(dataclasses.replace(job("ml.m5.xlarge"), **wrong))  # type: ignore[arg-type]


@given(
    st.sampled_from(MACHINES),
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
    st.integers(0, 500),
    st.booleans(),
    st.none() | st.integers(0, 10**6).map(Span.of),
)
def test_every_bill_is_the_sum_of_its_leaves_and_its_range_is_in_order(
    machine: catalog.Machine, seconds: int, count: int, spot: bool, billable: bool, data_gb: int, around: bool,
    held: Span | None,
) -> None:  # fmt: skip
    earlier = {"billable": billable, "around_included": around, "held_seconds": held}
    asked = Job(machine, Span.of(seconds), None, count, spot, data_gb=Decimal(data_gb), keep_alive_seconds=60)
    reckoned = bill(dataclasses.replace(asked, **earlier))  # type: ignore[arg-type]
    for line in leaves(reckoned.lines):
        if line.usd is not None:
            assert 0 <= line.usd.low <= line.usd.expected <= line.usd.high, line
            assert line.source or line.usd == Span.of(0), line
    if reckoned.usd is None:
        assert reckoned.price is None
    else:
        summed = sum((line.usd.expected for line in leaves(reckoned.lines) if line.usd), Decimal(0))
        assert abs(reckoned.usd.expected - summed) <= Decimal("1e-15")


def test_an_assumption_says_its_range_and_where_it_comes_from() -> None:
    for name, known in assumptions().items():
        assert known.source, name
        assert known.note, name
        assert known.span.low <= known.span.expected <= known.span.high or known.unit.endswith("/s"), name
        assert known.span.expected.quantize(Decimal("0.000001"), ROUND_CEILING) > 0, name
