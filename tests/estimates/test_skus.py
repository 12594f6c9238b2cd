"""Google's billing catalog: machines are sums of on-demand parts, the fee is in them already, and spot is none of them."""

from __future__ import annotations

import io
import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from estimates import catalog, skus
from estimates.offers import ListingError, Reading
from estimates.pricebook import Book
from estimates.rows import Price
from tests.prices.listings import A3_BILL, TRAINING, a3, fees, host, n1, sku

TODAY = date(2026, 11, 22)


def read(*listed: Any, as_of: date = TODAY) -> Reading:
    return skus.read(listed, as_of=as_of, source="a test")


def prices(*listed: Any) -> dict[tuple[str, str], Decimal]:
    return {(row.machine, row.region): row.usd_per_hour for row in read(*listed).prices}


def test_a_machine_is_the_sum_of_its_cores_memory_and_gpus() -> None:
    found = prices(*a3())
    assert found["a3-highgpu-8g", "us-central1"] == Decimal(A3_BILL)  # as a real bill has it
    assert found["a3-highgpu-1g", "us-central1"] == Decimal("11.2660332") + 26 * Decimal("0.0293227") + 234 * Decimal(
        "0.0025534"
    )
    (row,) = [row for row in read(*a3()).prices if row.machine == "a3-highgpu-8g"]
    assert row.note == "8 × 11.2660332 (H100) + 208 × 0.0293227 (vCPU) + 1872 × 0.0025534 (GiB)"
    assert (row.market, row.component, row.grade, row.as_of, row.source) == (
        "on_demand",
        "Training",
        "A",
        TODAY,
        "a test",
    )


def test_the_published_price_of_n1_comes_out_to_the_last_digit() -> None:
    assert prices(*n1())["n1-standard-4", "us-central1"] == Decimal("0.21849885")


# The traps


def test_the_management_fee_is_not_added_to_an_on_demand_price_that_has_it_inside() -> None:
    reading = read(*fees(), *a3(), *fees())
    (row,) = [row for row in reading.prices if row.machine == "a3-highgpu-8g"]
    assert row.usd_per_hour == Decimal(A3_BILL)
    assert reading.ignored == {"management fee, which the on-demand price contains": 6}
    assert read(*fees()).prices == ()


@pytest.mark.parametrize(
    "spot",
    [
        f"Spot Preemptible {TRAINING} N1 Predefined Instance Core running in Iowa",
        "Spot Preemptible N1 Predefined Instance Core running in Iowa",
        "N1 Predefined Instance Core running in Iowa",
        "Vertex AI: Online/Batch Prediction N1 Predefined Instance Core running in Iowa",
    ],
)
def test_only_what_begins_with_the_words_of_training_is_taken(spot: str) -> None:
    cheap = sku(spot, "0.0010000")
    reading = read(cheap, *n1(), cheap)
    assert {row.machine: row.usd_per_hour for row in reading.prices}["n1-standard-4"] == Decimal("0.21849885")
    assert reading.ignored == {"not of training": 2}


@pytest.mark.parametrize("usage", ["Preemptible", "Commit1Yr", "Commit3Yr"])
def test_what_is_not_on_demand_is_not_taken_whatever_its_words(usage: str) -> None:
    cheap = sku(f"{TRAINING} N1 Predefined Instance Core running in Iowa", "0.0010000", usage=usage)
    assert read(cheap, *n1()).prices == read(*n1()).prices
    assert read(cheap).ignored == {f"not on demand: {usage}": 1}


def test_a_price_is_its_whole_units_which_are_a_text_and_its_nanos() -> None:
    gpu = sku(f"{TRAINING} NVIDIA H100 80GB in Iowa", "11.266033200")
    told = gpu["pricingInfo"][0]["pricingExpression"]["tieredRates"][0]["unitPrice"]
    assert (told["units"], told["nanos"]) == ("11", 266033200)
    assert prices(gpu, *a3()[1:])["a3-highgpu-8g", "us-central1"] == Decimal(A3_BILL)
    for name in ("units", "nanos"):
        del told[name]
    assert read(gpu).ignored == {"free": 1}
    told["units"] = "12"
    assert prices(gpu, *a3()[1:])["a3-highgpu-8g", "us-central1"] == Decimal(A3_BILL) + 8 * (12 - Decimal("11.2660332"))


def test_the_tier_that_is_charged_is_taken_and_not_the_free_first_one() -> None:
    core, ram = n1()
    tiers = core["pricingInfo"][0]["pricingExpression"]["tieredRates"]
    tiers[0]["startUsageAmount"] = 50
    tiers.insert(0, {"startUsageAmount": 0, "unitPrice": {"currencyCode": "USD", "units": "0", "nanos": 0}})
    tiers.append({"startUsageAmount": 1000, "unitPrice": {"currencyCode": "USD", "units": "0", "nanos": 1}})
    assert prices(core, ram)["n1-standard-4", "us-central1"] == Decimal("0.21849885")
    del tiers[1:]
    assert read(core, ram).ignored == {"free": 1}


def test_a_machine_with_a_part_that_has_no_price_has_none() -> None:
    gpu, core, ram = a3()
    for listed in ((gpu, core), (gpu, ram), (core, ram)):
        assert prices(*listed) == {}
    elsewhere = sku(f"{TRAINING} A3 Instance RAM in Netherlands", "0.0025534", ["europe-west4"], unit="GiBy.h")
    assert prices(gpu, core, elsewhere) == {}


def test_a_sku_holds_in_its_regions_and_nowhere_else() -> None:
    found = prices(*n1(["us-central1", "europe-west4", "moon-west1"]))
    assert {region for _, region in found} == {"us-central1", "europe-west4"}
    assert read(
        *n1(["us-central1"])[:1], sku(f"{TRAINING} N1 Predefined Instance Ram running in x", "1", [])
    ).ignored == {"in another unit than GiBy.h: h": 1}
    assert read(sku(f"{TRAINING} N1 Predefined Instance Core running in x", "1", ["global"])).ignored == {
        "in no region of Vertex AI": 1
    }


def test_disks_are_rates_of_a_gib_and_month() -> None:
    disk = sku(f"{TRAINING} SSD backed PD Capacity", "0.1955", unit="GiBy.mo", sku_id="A005-98FE-36CC")
    reading = read(disk)
    assert [(rate.item, rate.region, rate.usd, rate.unit, rate.note) for rate in reading.rates] == [
        ("pd_ssd", "us-central1", Decimal("0.1955"), "GiB-month", "SKU A005-98FE-36CC")
    ]
    hourly = sku(f"{TRAINING} SSD backed PD Capacity in Iowa", "0.0002678", unit="GiBy.h")
    assert read(hourly).rates == ()  # an hour's price taken for a month's would be 730 times too low


def test_gpus_of_two_sizes_are_told_apart() -> None:
    a2 = host("A2 Instance", "0.03", "0.004")
    small, large = (
        sku(f"{TRAINING} {name} in Iowa", usd) for name, usd in (("NVIDIA A100", "3.5"), ("NVIDIA A100 80GB", "4.5"))
    )
    only_small = prices(*a2, small)
    assert ("a2-highgpu-1g", "us-central1") in only_small
    assert ("a2-ultragpu-1g", "us-central1") not in only_small
    both = prices(*a2, small, large)
    hosts = 12 * Decimal("0.03") + Decimal("0.004") * 85, 12 * Decimal("0.03") + Decimal("0.004") * 170
    assert both["a2-highgpu-1g", "us-central1"] == hosts[0] + Decimal("3.5")
    assert both["a2-ultragpu-1g", "us-central1"] == hosts[1] + Decimal("4.5")


def test_a3_mega_is_not_priced_as_the_plain_a3() -> None:
    assert ("a3-megagpu-8g", "us-central1") not in prices(*a3())
    mega = [
        sku(f"{TRAINING} NVIDIA H100 80GB Plus GPU in Iowa", "12"),
        sku(f"{TRAINING} A3Plus Instance Core running in Iowa", "0.03"),
        sku(f"{TRAINING} A3Plus Instance Ram running in Iowa", "0.003", unit="GiBy.h"),
    ]
    found = prices(*a3(), *mega)
    assert found["a3-megagpu-8g", "us-central1"] == 96 + 208 * Decimal("0.03") + 1872 * Decimal("0.003")
    assert found["a3-highgpu-8g", "us-central1"] == Decimal(A3_BILL)


def test_a_gpu_that_is_attached_is_a_row_of_its_own_that_the_book_adds_to_its_host() -> None:
    t4 = sku(f"{TRAINING} Nvidia Tesla T4 GPU running in Iowa", "0.4025")
    reading = read(t4, *n1())
    (row,) = [row for row in reading.prices if row.machine == "NVIDIA_TESLA_T4"]
    assert row.usd_per_hour == Decimal("0.4025")
    rows: dict[tuple[str, str], tuple[Price, ...]] = {
        (row.cloud, row.machine): (
            Price(row.usd_per_hour, row.region, row.market, row.component, row.as_of, "day", row.grade, row.source, ""),
        )
        for row in reading.prices
    }
    price = Book(rows).price(catalog.machine("n1-standard-4+2xT4"), "us-central1")
    assert price is not None
    assert (price.usd_per_hour, price.published) == (Decimal("0.21849885") + 2 * Decimal("0.4025"), True)


@pytest.mark.parametrize(
    "family", ["N1 Custom Instance", "N1 Predefined Instance Custom", "M1 Memory-optimized Instance"]
)
def test_what_is_not_understood_is_counted_by_its_words(family: str) -> None:
    reading = read(sku(f"{TRAINING} {family} Core running in Iowa", "0.5"))
    assert (reading.prices, reading.ignored) == ((), {f"not understood: {family} Core": 1})


@pytest.mark.parametrize(
    "words", ["E2 Instance Core running in", "E2 instance core in", "  E2  Instance Core running in"]
)
def test_words_may_differ_in_case_and_spaces(words: str) -> None:
    ram = sku(f"{TRAINING} E2 Instance Ram running in Iowa", "0.003", unit="GiBy.h")
    core = sku(f"{TRAINING.upper()} {words} Iowa", "0.02")
    assert prices(core, ram)["e2-standard-4", "us-central1"] == Decimal("0.128")


def test_of_two_skus_for_one_part_the_dearer_is_taken_and_told() -> None:
    core, ram = n1()
    other = sku(f"{TRAINING} N1 Predefined Instance Core in Iowa", "0.05", sku_id="OTHER")
    for listed in ((core, other, ram), (other, core, ram)):
        reading = read(*listed)
        assert {row.machine: row.usd_per_hour for row in reading.prices}["n1-standard-4"] > Decimal("0.27")
        assert reading.conflicts == (
            "core n1 in us-central1: $0.05 (OTHER) taken, also $0.03635265 (N1 Predefined Instance-CORE)",
        )


def test_the_price_in_effect_on_the_day_is_taken() -> None:
    core, ram = n1()
    before, later = json.loads(json.dumps(core["pricingInfo"][0])), json.loads(json.dumps(core["pricingInfo"][0]))
    before["effectiveTime"], later["effectiveTime"] = "2025-01-01T00:00:00Z", "2026-12-01T00:00:00Z"
    for info, nanos in ((before, 1), (later, 2)):
        info["pricingExpression"]["tieredRates"][0]["unitPrice"]["nanos"] = nanos
    core["pricingInfo"] = [before, *core["pricingInfo"], later]
    assert prices(core, ram)["n1-standard-4", "us-central1"] == Decimal("0.21849885")
    core["pricingInfo"] = [later]
    assert read(core).ignored == {"without a price in effect": 1}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda price: price.update(currencyCode="THB"), "not priced in USD"),
        (lambda price: price.update(units="many"), "a price that is no number"),
        (lambda price: price.update(nanos="1e999999999999"), "a price that is no number"),
        (lambda price: price.update(nanos=[1]), "a price that is no number"),
        (lambda price: price.update(units="-3"), "free"),
    ],
)
def test_a_price_that_is_none_is_counted_and_not_guessed(spoil: Any, why: str) -> None:
    core = n1()[0]
    spoil(core["pricingInfo"][0]["pricingExpression"]["tieredRates"][0]["unitPrice"])
    reading = read(core)
    assert (reading.prices, reading.ignored) == ((), {why: 1})


# Exports

LISTED = [*a3(), *n1(), *fees()]
PAGES = [{"skus": LISTED[:4], "nextPageToken": "next"}, {"skus": LISTED[4:], "nextPageToken": ""}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"skus": LISTED}),
        json.dumps({"skus": LISTED, "nextPageToken": ""}, indent=2),
        "\n".join(map(json.dumps, PAGES)),
        "".join(map(json.dumps, PAGES)),
        json.dumps(PAGES),
        json.dumps(LISTED),
        "\n".join(map(json.dumps, LISTED)),
    ],
    ids=["a page", "a page by itself", "pages", "pages without space", "a list of pages", "a list", "a SKU a line"],
)
def test_an_export_may_have_the_skus_in_any_of_these_shapes(text: str) -> None:
    assert list(skus.exported(io.StringIO(text))) == LISTED


def test_an_export_that_breaks_off_between_pages_is_refused() -> None:
    with pytest.raises(ListingError, match="not the whole catalog"):
        list(skus.exported(io.StringIO(json.dumps(PAGES[0]))))


@pytest.mark.parametrize("text", ['{"skus": [3]}', '{"skus": ["text"]}'])
def test_a_sku_that_is_no_object_is_an_error(text: str) -> None:
    with pytest.raises(ListingError, match="a SKU is not an object but"):
        list(skus.exported(io.StringIO(text)))


@pytest.mark.parametrize("text", ["[]", "{}", '{"skus": []}', '{"skus": {}}', '{"skus": 3}', "[1, 2]", ""])
def test_an_export_without_skus_has_none(text: str) -> None:
    assert list(skus.exported(io.StringIO(text))) == []
