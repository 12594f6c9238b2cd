"""AWS's price list: only what a training job is billed by becomes a row, and each trap of that list is walked around."""

from __future__ import annotations

import io
import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimates import offers
from estimates.offers import ListingError, PriceRow
from tests.prices.listings import bulk, dimension, offer, storage, term

TODAY = date(2026, 11, 22)


def read(*items: Any, as_of: date = TODAY) -> offers.Reading:
    return offers.read(items, as_of=as_of, source="a test")


def prices(*items: Any) -> list[tuple[str, str, str, str]]:
    return [(row.machine, row.region, row.market, str(row.usd_per_hour)) for row in read(*items).prices]


def test_an_item_becomes_a_row_with_its_date_and_source() -> None:
    assert read(json.dumps(offer("ml.m5.large", "0.1150000000"))).prices == (
        PriceRow(
            "sagemaker",
            "ml.m5.large",
            "us-east-1",
            "on_demand",
            "Training",
            Decimal("0.115"),
            TODAY,
            "day",
            "A",
            "a test",
            "USE1-Train:ml.m5.large",
        ),
    )


# The traps


def test_of_several_components_only_training_is_taken_wherever_it_stands() -> None:
    p4d = "ml.p4d.24xlarge"
    training = offer(p4d, "25.2510000000")
    others = [
        offer(p4d, "25.9100000000", component="Cluster", kind="Cluster", usage="Cluster"),
        offer(p4d, "25.2510000001", component="Hosting", kind="Hosting", usage="Host"),
        offer(p4d, "22.0000000000", component="Training Warm Pool", kind="Training", usage="WarmPool"),
        offer(p4d, "1.0000000000", component="Training", kind="Cluster-Reserved", usage="Cluster-Reserved"),
    ]
    for items in ([training, *others], [*others, training]):
        assert prices(*items) == [(p4d, "us-east-1", "on_demand", "25.251")]


def test_a_training_plans_upfront_fee_is_no_rate_though_it_is_lower() -> None:
    p4d = "ml.p4d.24xlarge"
    fee = offer(p4d, "13.5700000000", component=None, kind=None, usage="TrainingPlanUpfrontFee", unit="Quantity")
    assert prices(fee, offer(p4d, "25.2510000000")) == [(p4d, "us-east-1", "on_demand", "25.251")]
    assert prices(fee) == []
    named = offer(p4d, "13.5700000000", usage="TrainingPlanUpfrontFee", unit="Quantity")
    assert read(named).ignored == {"not priced by the hour": 1}


def test_free_rows_are_no_price() -> None:
    free = offer("ml.m5.xlarge", "0.0000000000", kind="TrainingFreeTier")
    assert prices(free, offer("ml.m5.xlarge", "0.2300000000")) == [("ml.m5.xlarge", "us-east-1", "on_demand", "0.23")]
    assert read(free).ignored == {"free": 1}
    assert read(offer("ml.m5.xlarge", "0.0000000000")).ignored == {"free": 1}
    assert read(offer("ml.m5.xlarge", "0.0100000000", kind="Training-Free")).ignored == {"free": 1}


def test_an_empty_list_has_no_price_and_never_zero() -> None:
    nothing = read()
    assert (nothing.prices, nothing.rates, nothing.ignored) == ((), (), {})


def test_spot_keeps_its_own_rate_though_it_is_dearer_than_on_demand() -> None:
    g5 = "ml.g5.xlarge"
    spot = offer(g5, "1.4084000000", "us-east-2", component="Training", kind="SpotTraining", usage="SpotTraining")
    assert prices(spot, offer(g5, "1.2575000000", "us-east-2")) == [
        (g5, "us-east-2", "on_demand", "1.2575"),
        (g5, "us-east-2", "spot", "1.4084"),
    ]
    (row,) = read(offer(g5, "1.4084", "us-east-2", component="SpotTraining", kind=None)).prices
    assert (row.market, row.component) == ("spot", "SpotTraining")


@pytest.mark.parametrize("names", [{"instanceName": "NA"}, {"instanceName": None}, {"instanceName": "N/A"}])
def test_a_machine_that_is_not_named_outright_is_found_in_the_usage_type(names: dict[str, str | None]) -> None:
    assert prices(offer("ml.m5.large", instanceType="NA", **names)) == [
        ("ml.m5.large", "us-east-1", "on_demand", "0.115")
    ]
    (row,) = read(offer("ml.m5.large", usagetype="USE1-Train", **names)).prices
    assert row.machine == "ml.m5.large"  # instanceType, without what stands behind it
    assert read(offer("ml.m5.large", usagetype="USE1-Train", instanceType="NA", **names)).ignored == {
        "no machine named": 1
    }


def test_of_rows_that_disagree_the_one_that_says_train_is_taken_and_the_others_are_told() -> None:
    plain = offer("ml.g5.2xlarge", "1.5150000000")
    odd = offer("ml.g5.2xlarge", "9.0000000000", usage="Debug")
    reading = read(odd, plain)
    assert [row.usd_per_hour for row in reading.prices] == [Decimal("1.515")]
    (told,) = reading.conflicts
    assert "ml.g5.2xlarge" in told
    assert "$1.515 (USE1-Train:ml.g5.2xlarge) taken, also $9 (USE1-Debug:ml.g5.2xlarge)" in told


def test_of_two_equally_plain_rows_the_dearer_is_taken() -> None:
    two = [offer("ml.m5.large", usd) for usd in ("0.1150000000", "0.1200000000")]
    for items in (two, two[::-1]):
        reading = read(*items)
        assert [row.usd_per_hour for row in reading.prices] == [Decimal("0.12")]
        assert len(reading.conflicts) == 1
    assert read(two[0], two[0]).conflicts == ()


def test_reservations_and_prices_that_are_not_yet_in_effect_are_not_taken() -> None:
    item = offer("ml.m5.large", "0.1150000000")
    item["terms"]["Reserved"] = json.loads(json.dumps(item["terms"]["OnDemand"]).replace("0.1150000000", "0.05"))
    later = json.loads(json.dumps(term(item)).replace("0.1150000000", "0.2000000000"))
    later["effectiveDate"] = "2026-12-01T00:00:00Z"
    item["terms"]["OnDemand"]["later"] = later
    assert [str(row.usd_per_hour) for row in read(item).prices] == ["0.115"]
    assert [str(row.usd_per_hour) for row in read(item, as_of=date(2026, 12, 1)).prices] == ["0.2"]


def test_storage_of_training_jobs_is_a_rate_and_that_of_others_is_not() -> None:
    reading = read(storage(), storage("0.1100000000", what="Processing"), storage("0.2", what="Training Warm Pool Job"))
    assert [(rate.item, rate.region, rate.usd, rate.unit, rate.published) for rate in reading.rates] == [
        ("training_storage", "eu-west-1", Decimal("0.154"), "GB-month", True)
    ]
    assert reading.prices == ()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda item: dimension(item).update(pricePerUnit={"CNY": "1.0"}), "not priced in USD"),
        (lambda item: dimension(item).update(pricePerUnit={"USD": "much"}), "a price that is no number"),
        (lambda item: dimension(item).update(pricePerUnit={"USD": "NaN"}), "a price that is no number"),
        (lambda item: dimension(item).update(pricePerUnit={"USD": "-1"}), "a price that is no number"),
        (lambda item: dimension(item).update(pricePerUnit=None), "not priced in USD"),
        (lambda item: item["product"]["attributes"].update(regionCode="Any"), "no region named"),
        (lambda item: item["product"]["attributes"].update(regionCode="../etc"), "no region named"),
        (lambda item: item.update(terms={}), "not priced by the hour"),
        (lambda item: item.update(terms={"OnDemand": []}), "not priced by the hour"),
        (lambda item: item.update(product=[]), "for something else: nothing stated"),
    ],
)
def test_an_item_that_cannot_be_a_price_is_counted_and_not_guessed(spoil: Any, why: str) -> None:
    item = offer()
    spoil(item)
    reading = read(item)
    assert (reading.prices, reading.ignored) == ((), {why: 1})


@pytest.mark.parametrize("item", ["not json", "[1]", "3", '"text"', "[" * 100_000])
def test_an_item_that_is_no_object_is_an_error(item: str) -> None:
    with pytest.raises(ListingError, match="an entry of the price list is not"):
        read(item)


# The bulk offer file

ITEMS = [
    offer("ml.m5.large", "0.1150000000"),
    offer("ml.p4d.24xlarge", "25.2510000000"),
    offer("ml.p4d.24xlarge", "25.9100000000", component="Cluster", kind="Cluster", usage="Cluster"),
    offer("ml.p4d.24xlarge", "13.57", component=None, kind=None, usage="TrainingPlanUpfrontFee", unit="Quantity"),
    offer("ml.m5.large", "0.0", kind="TrainingFreeTier"),
    offer("ml.g5.xlarge", "1.4084", kind="SpotTraining", usage="SpotTraining"),
    storage(),
]


@pytest.mark.parametrize("terms_first", [False, True])
def test_the_bulk_file_gives_the_same_rows_as_the_api(terms_first: bool) -> None:
    text = bulk(ITEMS, terms_first=terms_first)
    from_file = offers.read(offers.bulk_items(lambda: io.StringIO(text)), as_of=TODAY, source="a test")
    from_api = read(*ITEMS)
    assert len(from_api.prices) == 3
    assert (from_file.prices, from_file.rates) == (from_api.prices, from_api.rates)


def test_what_cannot_concern_training_is_not_held_in_memory() -> None:
    many = [offer(f"ml.x{n}.large", component="Hosting", kind="Hosting", usage="Host") for n in range(50)]
    assert list(offers.bulk_items(lambda: io.StringIO(bulk(many)))) == []


@pytest.mark.parametrize(
    ("beginning", "kind", "offered"),
    [
        (bulk([]), "bulk", "AmazonSageMaker"),
        (bulk([], offerCode="AmazonEC2"), "bulk", "AmazonEC2"),
        ('{"PriceList": []}', "answer", ""),
        ('{"skus": []}', "skus", ""),
        ('[{"name": "x", "skuId": "y"}]', "skus", ""),
        ('{"name": "x", "skuId": "y"}\n{"name": "z"}', "skus", ""),
        ("", "", ""),
        ('"offerCode": 1', "", ""),
        ("{}", "", ""),
        ("machine,usd\n", "", ""),
    ],
)
def test_a_file_is_told_by_its_beginning(beginning: str, kind: str, offered: str) -> None:
    head = offers.head(beginning)
    assert (head.kind, head.offer) == (kind, offered)


def test_the_offer_files_own_date_and_version_are_read() -> None:
    head = offers.head(bulk([]))
    assert (head.published, head.version) == (date(2026, 11, 15), "20261115120000")
    assert offers.head(bulk([], publicationDate="soon")).published is None


def test_a_kept_answer_gives_its_items_and_one_page_of_several_is_refused() -> None:
    kept = json.dumps({"FormatVersion": "aws_v1", "PriceList": [json.dumps(item) for item in ITEMS]})
    assert read(*offers.answered_items(lambda: io.StringIO(kept))).prices == read(*ITEMS).prices
    page = json.dumps({"PriceList": [json.dumps(ITEMS[0])], "NextToken": "more"})
    with pytest.raises(ListingError, match="one page of several"):
        list(offers.answered_items(lambda: io.StringIO(page)))


# JSON, piece by piece


class Dribble(io.StringIO):
    """A text that comes one letter at a time."""

    def read(self, size: int | None = -1, /) -> str:
        return super().read(1)


def whole(text: io.StringIO, depth: int) -> list[tuple[offers.Path, Any]]:
    return list(offers.walk(text, lambda path: len(path) <= depth))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(json_values, st.sampled_from([None, 2]))
def test_a_document_comes_as_json_reads_it_however_it_dribbles_in(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    assert whole(Dribble(text), 0) == [((0,), value)]
    assert whole(io.StringIO(f" {text}\n"), 0) == [((0,), value)]


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(), st.dictionaries(st.text(), json_values, max_size=3), max_size=4))
def test_every_piece_has_its_path(document: dict[str, dict[str, Any]]) -> None:
    found = whole(Dribble(json.dumps(document)), 2)
    assert found == [((0, one, other), value) for one, inner in document.items() for other, value in inner.items()]


def test_documents_behind_each_other_are_numbered() -> None:
    assert whole(io.StringIO('{"a": 1}\n[2, 3] 4'), 1) == [((0, "a"), 1), ((1, 0), 2), ((1, 1), 3), ((2,), 4)]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1',
        '{"a" 1}',
        "{1: 2}",
        "[1, 2",
        "[1 2]",
        "[1,]",
        '{"a": 1,}',
        '{"a": "b',
        "nope",
        '{"a": nope}',
        "[" * 9999,
    ],
)
def test_what_is_not_json_is_named_with_its_place(text: str) -> None:
    with pytest.raises(ListingError, match=r"^not JSON at character \d"):
        whole(Dribble(text), 1)


def test_a_text_that_does_not_end_does_not_fill_the_memory() -> None:
    class Endless(io.StringIO):
        given = 0

        def read(self, size: int | None = -1, /) -> str:
            begun, self.given = self.given, self.given + (size or 0)
            return "x" * (size or 0) if begun else '"' + "x" * ((size or 1) - 1)

    endless = Endless()
    with pytest.raises(ListingError, match="Unterminated string"):
        list(offers.walk(endless, lambda _: True))
    assert endless.given < 4 * offers.LONGEST_VALUE
