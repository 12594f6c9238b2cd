"""The price book: which of several prices is believed, what a user's own terms and files do to it, and what rates are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimates import catalog, pricebook
from estimates.catalog import CatalogError, Price
from estimates.pricebook import Book, Rate, Terms
from estimates.readings import PRICE_COLUMNS, RATE_COLUMNS

DAY = date(2026, 1, 1)


def reading(usd: str, region: str = "us-east-1", component: str = "Training", **more: object) -> Price:
    price = Price(Decimal(usd), region, "on_demand", component, DAY, "day", "A", f"a list with {usd}", "")
    return replace(price, **more)  # type: ignore[arg-type]


def book(*rows: Price, machine: str = "ml.p3.2xlarge", derives: bool = True) -> Book:
    return Book({("sagemaker", machine): rows}, derives=derives)


def price(
    of: Book, region: str | None = None, market: str = "on_demand", machine: str = "ml.p3.2xlarge"
) -> Price | None:
    return of.price(catalog.machine(machine), region, market)


# Which price is believed


def test_ml_p3_16xlarge_is_derived_as_the_two_tables_that_have_it_say() -> None:
    found = price(pricebook.shipped(), "us-east-1", machine="ml.p3.16xlarge")
    assert found
    assert (found.usd_per_hour, found.published, found.component) == (Decimal("28.152"), False, "derived")
    assert (found.formula, found.as_of) == ("EC2 $24.48 × 1.15", date(2025, 11, 4))
    assert "ec2-transformed.json" in found.source
    assert "instance-types-cost.csv" in found.source


def test_a_published_price_beats_a_derived_one_only_in_its_own_region() -> None:
    own = book(reading("3.99", "us-west-2"))
    assert price(own, "us-west-2") == reading("3.99", "us-west-2")
    assert price(own) == price(own, "us-east-1")
    found = price(own)
    assert found
    assert (found.region, found.published) == ("us-east-1", False)


def test_a_book_that_does_not_derive_goes_to_another_region_for_a_published_price() -> None:
    rows = (reading("3.99", "eu-west-1"), reading("4.99", "us-west-2"), reading("2.99", "ap-northeast-1"))
    found = price(book(*rows, derives=False))
    assert found
    assert found.region == "us-west-2"
    assert price(book(*rows, derives=False), "us-east-1") is None


def test_a_derived_price_nearby_comes_before_a_published_one_in_another_part_of_the_world() -> None:
    found = price(book(reading("200", "eu-west-1"), machine="ml.p6-b300.48xlarge"), machine="ml.p6-b300.48xlarge")
    assert found
    assert (found.region, found.published) == ("us-west-2", False)


def test_training_beats_a_newer_stand_in_and_the_newest_training_beats_all() -> None:
    old = reading("3.8")
    studio = reading("3.9", component="Studio", as_of=date(2026, 6, 1))
    refreshed = reading("3.7", as_of=date(2026, 7, 1))
    assert price(book(studio, old), "us-east-1") == old
    assert price(book(refreshed, studio, old), "us-east-1") == refreshed


def test_rates_of_another_kind_are_never_the_price_of_training() -> None:
    kinds = ("Training Warm Pool", "Cluster", "Processing", "SpotTraining")
    only = book(*(reading("1", component=kind) for kind in kinds), derives=False)
    assert price(only, "us-east-1") is None


def test_sagemaker_has_a_spot_price_only_where_one_was_billed() -> None:
    shipped = pricebook.shipped()
    billed = price(shipped, "us-east-2", "spot", "ml.g5.xlarge")
    assert billed
    assert (billed.usd_per_hour, billed.component) == (Decimal("1.4084"), "SpotTraining")
    assert price(shipped, "us-east-1", "spot", "ml.g5.xlarge") is None
    assert price(shipped, None, "spot", "ml.p3.16xlarge") is None


def test_spot_on_vertex_bears_the_fee_of_the_price_on_demand() -> None:
    found = price(pricebook.shipped(), "us-central1", "spot", "a2-highgpu-1g")
    assert found
    assert found.usd_per_hour == Decimal("1.92802") + Decimal("0.15") * Decimal("3.673385")
    assert found.formula == "Compute Engine spot $1.92802 + 0.15 × $3.673385 on demand"
    assert (found.market, found.published) == ("spot", False)


def test_spot_on_vertex_is_cheaper_than_on_demand_wherever_both_are_known() -> None:
    compared = 0
    for machine in catalog.machines("vertex"):
        for region in catalog.regions("vertex"):
            spot, full = (pricebook.shipped().price(machine, region, market) for market in ("spot", "on_demand"))
            assert (spot is None) == (full is None), machine.name
            if spot and full:
                compared += 1
                assert spot.usd_per_hour < full.usd_per_hour, machine.name
    assert compared > 800


def test_every_derived_price_says_from_what_and_when() -> None:
    for machine in (*catalog.machines(), *catalog.attachable()):
        found = pricebook.shipped().price(machine)
        if found is not None and not found.published:
            assert "×" in found.formula, machine.name
            assert found.source, machine.name
            assert found.label.startswith("~$"), machine.name
            assert found.hourly.startswith("~$"), machine.name
            assert found.as_of <= datetime.now(UTC).date(), machine.name


def test_an_hour_is_shown_to_the_hundredth_of_a_cent_and_rounded_up() -> None:
    assert reading("3.825").hourly == "$3.8250"
    assert reading("0.21849885").hourly == "$0.2185"
    assert reading("1234.00001").hourly == "$1,234.0001"
    assert reading("28.152", published=False).hourly == "~$28.1520"


def test_a_date_that_is_the_first_of_a_span_is_shown_so() -> None:
    found = price(pricebook.shipped(), "us-west-2", machine="ml.p6-b300.48xlarge")
    assert found
    assert (found.as_of, found.dated) == (date(2025, 11, 30), "2025-11-30+")


def test_a_region_that_the_cloud_does_not_have_is_an_error() -> None:
    with pytest.raises(CatalogError, match="no region 'us-central1'"):
        price(pricebook.shipped(), "us-central1")


# A user's own terms


def own(
    listed: Price | None, discounts: dict[str, str] | None = None, contract: dict[str, str] | None = None
) -> Price | None:
    terms = Terms(
        {name: Decimal(part) for name, part in (discounts or {}).items()},
        {name: Decimal(usd) for name, usd in (contract or {}).items()},
    )
    return Book({}, terms=terms).own_price(catalog.machine("ml.p3.2xlarge"), listed, "us-east-1")


def test_without_terms_the_price_is_the_list_price() -> None:
    listed = reading("3.825")
    assert own(listed) is listed
    assert own(None) is None
    assert own(listed, {"ml.g5.*": "0.5", "vertex": "0.5", "ml.p3.2xlarge@eu-west-1": "0.5"}, {"ml.p3": "1"}) is listed


def test_a_discount_is_taken_off_and_shown() -> None:
    found = own(reading("3.825"), {"sagemaker": "0.12"})
    assert found
    assert (found.usd_per_hour, found.formula) == (Decimal("3.366"), "$3.825 − 12 %")
    assert (found.published, found.source) == (True, "a list with 3.825; discount: orchestrate.toml")


def test_a_discount_on_a_derived_price_leaves_it_derived() -> None:
    listed = price(pricebook.shipped(), "us-east-1", machine="ml.p3.16xlarge")
    found = own(listed, {"ml.p3*": "0.125"})
    assert found
    assert (found.published, found.formula) == (False, "EC2 $24.48 × 1.15 − 12.5 %")


@pytest.mark.parametrize(
    ("discounts", "usd"),
    [
        ({"sagemaker": "0.1", "ml.p3.*": "0.2", "ml.p3.2xlarge": "0.3", "ml.p3.2xlarge@us-east-1": "0.4"}, "6"),
        ({"sagemaker": "0.1", "ml.p3.*": "0.2", "ml.p3.2xlarge": "0.3"}, "7"),
        ({"sagemaker": "0.1", "ml.*": "0.2"}, "9"),
        ({"sagemaker": "0.1", "sagemaker@us-east-1": "0.5"}, "5"),
        ({"sagemaker": "0.1", "ml.p3.2xlarge": "0"}, "10"),
        ({"*": "0.25"}, "7.5"),
    ],
)
def test_the_longest_pattern_wins(discounts: dict[str, str], usd: str) -> None:
    found = own(reading("10"), discounts)
    assert found
    assert found.usd_per_hour == Decimal(usd)


def test_a_pattern_has_no_other_wildcards() -> None:
    listed = reading("10")
    assert (
        own(listed, {"ml.p?.2xlarge": "0.5", "ml.p[3].2xlarge": "0.5", "ml.p3.2xl": "0.5", "ml\\.p3.*": "0.5"})
        is listed
    )


def test_a_contract_price_stands_before_discounts_and_needs_no_list_price() -> None:
    for listed in (reading("3.825"), None):
        found = own(listed, {"sagemaker": "0.5"}, {"ml.p3.2xlarge": "2.5"})
        assert found
        assert (found.usd_per_hour, found.component, found.region) == (Decimal("2.5"), "contract", "us-east-1")
        assert (found.published, found.formula, found.source) == (True, "", "orchestrate.toml")


def test_a_contract_price_is_never_stale() -> None:
    found = own(None, contract={"ml.p3.2xlarge": "2.5"})
    assert found
    assert pricebook.days_old(found.as_of, datetime.now(UTC).date()) is None


def test_a_contract_on_demand_is_no_spot_price() -> None:
    spot = reading("1", component="SpotTraining", market="spot")
    assert own(spot, contract={"ml.p3.2xlarge": "2.5"}) is spot


@given(st.decimals("0", "0.99", places=2), st.decimals("0.0001", "500", places=4))
def test_a_discount_never_makes_a_price_dearer_or_free(part: Decimal, usd: Decimal) -> None:
    found = own(reading(str(usd)), {"*": str(part)})
    assert found
    assert 0 < found.usd_per_hour <= usd
    assert found.usd_per_hour == usd - usd * part


# What is not a machine


def test_storage_of_training_is_read_where_it_was_billed_and_said_to_be_anothers_elsewhere() -> None:
    shipped = pricebook.shipped()
    billed = shipped.rate("sagemaker", "training_storage", "eu-west-1")
    assert billed
    assert (billed.usd, billed.published, billed.dated) == (Decimal("0.154"), True, "2023-12")
    elsewhere = shipped.rate("sagemaker", "training_storage", "us-west-2")
    assert elsewhere
    assert (elsewhere.usd, elsewhere.published, elsewhere.region) == (Decimal("0.14"), False, "us-east-1")
    assert elsewhere.note.startswith("us-east-1's; what it is in us-west-2 was not read")


def test_a_disk_of_vertex_is_published_in_one_region_and_derived_in_the_others() -> None:
    shipped = pricebook.shipped()
    published = shipped.rate("vertex", "pd_ssd", "us-central1")
    derived = shipped.rate("vertex", "pd_ssd", "europe-west4")
    assert published
    assert derived
    assert (published.usd, published.published) == (Decimal("0.1955"), True)
    assert (derived.usd, derived.published) == (Decimal("0.187") * Decimal("1.15"), False)
    assert derived.note == "Compute Engine $0.187 × 1.15"


def test_where_both_were_read_the_fee_on_a_disk_is_exact() -> None:
    without = replace(pricebook.shipped(), rates=tuple(row for row in pricebook.shipped().rates if row.cloud == "gce"))
    derived = without.rate("vertex", "pd_ssd", "us-central1")
    assert derived
    assert (derived.usd, derived.published) == (Decimal("0.1955"), False)


def test_a_rate_that_is_the_same_everywhere_is_found_in_every_region() -> None:
    found = pricebook.shipped().rate("vertex", "logs", "asia-east1")
    assert found
    assert (found.region, found.published) == ("*", True)


def test_a_rate_of_a_region_beats_one_of_all_and_the_newer_the_older() -> None:
    def rate(usd: str, region: str, as_of: date = DAY) -> Rate:
        return Rate("logs", Decimal(usd), "GB", region, as_of, "a list", True, cloud="sagemaker")

    many = Book({}, (rate("1", "*"), rate("2", "eu-west-1"), rate("3", "eu-west-1", date(2026, 2, 1))))
    for region, usd in (("eu-west-1", 3), ("us-east-1", 1)):
        found = many.rate("sagemaker", "logs", region)
        assert found
        assert found.usd == usd
    assert many.rate("vertex", "logs", "us-central1") is None


def test_a_rate_that_nobody_knows_is_none() -> None:
    assert pricebook.shipped().rate("sagemaker", "unicorns", "us-east-1") is None
    assert Book({}).rate("vertex", "pd_ssd", "us-central1") is None


def test_the_free_tier_is_of_two_machines_for_two_months() -> None:
    shipped = pricebook.shipped()
    free = shipped.free_tier(catalog.machine("ml.m5.xlarge"))
    assert free
    assert (free.hours_per_month, free.first_months) == (Decimal(50), 2)
    assert shipped.free_tier(catalog.machine("ml.m4.xlarge")) == free
    assert shipped.free_tier(catalog.machine("ml.m5.large")) is None


# Files beside the shipped tables


def write(path: Path, columns: tuple[str, ...], *rows: str) -> Path:
    path.write_text("\n".join((",".join(columns), *rows, "")), encoding="utf-8")
    return path


NEWER = "sagemaker,ml.p3.2xlarge,us-east-1,on_demand,Training,3.5,2026-11-20,day,A,the Price List API,"


def test_no_folder_and_an_empty_one_are_the_shipped_book(tmp_path: Path) -> None:
    assert pricebook.read_files(tmp_path / "none") is pricebook.shipped()
    assert pricebook.read_files(tmp_path) is pricebook.shipped()


def test_a_price_that_was_refreshed_wins_by_its_date(tmp_path: Path) -> None:
    write(tmp_path / "aws.csv", PRICE_COLUMNS, NEWER)
    write(tmp_path / "older.csv", PRICE_COLUMNS, NEWER.replace("3.5", "9.9").replace("2026-11-20", "2020-01-01"))
    refreshed = pricebook.read_files(tmp_path)
    found, before = price(refreshed, "us-east-1"), price(pricebook.shipped(), "us-east-1")
    assert found
    assert before
    assert (found.usd_per_hour, found.source) == (Decimal("3.5"), "the Price List API")
    assert before.usd_per_hour == Decimal("3.825")
    with pricebook.using(refreshed):
        assert catalog.price(catalog.machine("ml.p3.2xlarge"), region="us-east-1") == found
    assert catalog.price(catalog.machine("ml.p3.2xlarge"), region="us-east-1") == before


def test_a_published_price_that_was_refreshed_takes_the_place_of_a_derived_one(tmp_path: Path) -> None:
    write(tmp_path / "aws.csv", PRICE_COLUMNS, NEWER.replace("p3.2xlarge", "p3.16xlarge").replace("3.5", "28"))
    found = price(pricebook.read_files(tmp_path), machine="ml.p3.16xlarge")
    assert found
    assert (found.usd_per_hour, found.published) == (Decimal(28), True)


def test_a_published_spot_price_of_vertex_takes_the_place_of_a_derived_one(tmp_path: Path) -> None:
    write(
        tmp_path / "google.csv",
        PRICE_COLUMNS,
        "vertex,a2-highgpu-1g,us-central1,spot,Training,2.2,2026-11-20,day,A,SKUs,",
    )
    found = price(pricebook.read_files(tmp_path), "us-central1", "spot", "a2-highgpu-1g")
    assert found
    assert (found.usd_per_hour, found.published) == (Decimal("2.2"), True)


def test_rates_are_read_from_files_of_their_own(tmp_path: Path) -> None:
    row = "sagemaker,training_storage,us-west-2,0.15,GB-month,2026-11-20,day,the Price List API,yes,"
    write(tmp_path / "rates-aws.csv", RATE_COLUMNS, row)
    found = pricebook.read_files(tmp_path).rate("sagemaker", "training_storage", "us-west-2")
    assert found
    assert (found.usd, found.published, found.region) == (Decimal("0.15"), True, "us-west-2")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (NEWER.replace("3.5", "cheap"), "line 3: usd_per_hour is 'cheap', not a number"),
        (NEWER.replace("3.5", "0"), "line 3: usd_per_hour is '0', and a price is above 0"),
        (NEWER.replace("3.5", "-1"), "line 3: usd_per_hour is '-1'"),
        (NEWER.replace("3.5", "NaN"), "line 3: usd_per_hour is 'NaN'"),
        (NEWER.replace("3.5", "1E-30"), "line 3: usd_per_hour is '1E-30', and ml.p3.2xlarge, with 8 vCPU, costs 0.008"),
        (NEWER.replace("3.5", "0.0079"), "line 3: usd_per_hour is '0.0079', and ml.p3.2xlarge"),
        (NEWER.replace("3.5", "160.01"), "line 3: usd_per_hour is '160.01', and ml.p3.2xlarge"),
        (NEWER.replace("on_demand", "spot").replace("3.5", "0.001"), "line 3: usd_per_hour is '0.001'"),
        (NEWER.replace("2026-11-20", "2999-12-31"), "line 3: as_of is 2999-12-31, later than today"),
        (NEWER.replace("2026-11-20", "yesterday"), "line 3: as_of is 'yesterday', not a date"),
        (NEWER.replace("on_demand", "Spot"), "line 3: market is 'Spot', not on_demand or spot"),
        (NEWER.replace("sagemaker", "azure"), "line 3: cloud is 'azure'"),
        (NEWER.replace(",day,", ",hour,"), "line 3: as_of_precision is 'hour'"),
        (NEWER.replace("us-east-1", ""), "line 3: region is empty"),
        (NEWER.replace("the Price List API", ""), "line 3: source is empty"),
        (NEWER + ",more", "line 3: 12 cells under 11 columns"),
        (NEWER[:40], "line 3: 4 cells under 11 columns"),
        (NEWER + '"', "line 3"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, row: str, what: str) -> None:
    path = write(tmp_path / "aws.csv", PRICE_COLUMNS, NEWER, row)
    with pytest.raises(CatalogError) as caught:
        pricebook.read_files(tmp_path)
    assert caught.value.what.startswith(f"{path}, {what}")
    assert caught.value.hint


@pytest.mark.parametrize("usd", ["0.008", "160"])
def test_a_price_at_the_edge_of_what_can_be_is_believed(tmp_path: Path, usd: str) -> None:
    write(tmp_path / "aws.csv", PRICE_COLUMNS, NEWER.replace("3.5", usd))
    found = price(pricebook.read_files(tmp_path), "us-east-1")
    assert found
    assert found.usd_per_hour == Decimal(usd)


@pytest.mark.parametrize("name", ["ml.p9.48xlarge", "NVIDIA_TESLA_V100"])
def test_of_what_no_size_is_known_every_price_above_0_is_believed(tmp_path: Path, name: str) -> None:
    write(tmp_path / "own.csv", PRICE_COLUMNS, NEWER.replace("ml.p3.2xlarge", name).replace("3.5", "0.0001"))
    (row,) = pricebook.read_files(tmp_path).machines["sagemaker", name]
    assert row.usd_per_hour == Decimal("0.0001")


def test_a_reading_may_be_of_the_next_day_elsewhere_and_not_of_the_one_after(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    rate = "sagemaker,training_storage,us-west-2,0.15,GB-month,2026-11-20,day,the Price List API,yes,"
    for name, columns, row in (("aws.csv", PRICE_COLUMNS, NEWER), ("rates-aws.csv", RATE_COLUMNS, rate)):
        path = write(tmp_path / name, columns, row.replace("2026-11-20", str(today + timedelta(days=1))))
        assert pricebook.read_files(tmp_path) is not pricebook.shipped()
        late = today + timedelta(days=3)  # midnight can pass while this runs
        write(path, columns, row.replace("2026-11-20", str(late)))
        with pytest.raises(CatalogError) as caught:
            pricebook.read_files(tmp_path)
        assert caught.value.what.startswith(f"{path}, line 2: as_of is {late}, later than today")
        path.unlink()


@pytest.mark.parametrize("content", [b"", b"machine,price\nml.p3.2xlarge,3\n", b"\xff\xfe\x00", b"\x00"])
def test_a_file_that_is_something_else_is_named_too(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(CatalogError) as caught:
        pricebook.read_files(tmp_path)
    assert caught.value.what.startswith(f"{tmp_path / 'own.csv'}, line 1: ")
    assert caught.value.what.isprintable()


def test_a_damaged_rate_is_named_with_its_line(tmp_path: Path) -> None:
    row = "sagemaker,logs,us-west-2,0.15,GB,2026-11-20,day,the Price List API,maybe,"
    write(tmp_path / "rates-aws.csv", RATE_COLUMNS, row)
    with pytest.raises(CatalogError, match="line 2: published is 'maybe', not yes or no"):
        pricebook.read_files(tmp_path)


@pytest.mark.parametrize(("age", "said"), [(0, None), (60, None), (61, 61), (383, 383), (-1, None)])
def test_a_price_is_old_after_sixty_days(age: int, said: int | None) -> None:
    today = date(2026, 11, 22)
    assert pricebook.days_old(date.fromordinal(today.toordinal() - age), today) == said


def test_the_book_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; from estimates import pricebook, catalog; pricebook.current().price(catalog.machine('ml.p3.16xlarge')); "
        "heavy = {'orchestrator', 'torch', 'boto3', 'botocore', 'google', 'pydantic', 'rich'} & set(sys.modules); "
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=catalog.TABLES.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
