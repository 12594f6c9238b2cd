"""What the catalog knows, what it says it does not know, and what it answers to a name that is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimates import catalog, pricebook
from estimates.catalog import CatalogError, Machine, Price


def refused(name: str, cloud: str | None = None) -> CatalogError:
    with pytest.raises(CatalogError) as caught:
        catalog.machine(name, cloud=cloud)
    return caught.value


def known(name: str, region: str | None = None) -> Price:
    price = catalog.price(catalog.machine(name), region=region)
    assert price
    return price


def test_a_machine_has_its_hardware() -> None:
    machine = catalog.machine("ml.p3.2xlarge")
    assert (machine.cloud, machine.vcpus, machine.memory_gib) == ("sagemaker", 8, 61)
    assert (machine.gpu, machine.gpu_count, machine.gpu_memory_gib) == ("V100", 1, 16)
    assert machine.label == "8 vCPU, 61 GiB, 1 × V100 16 GiB"


def test_one_gpu_model_has_one_name_in_both_clouds() -> None:
    assert catalog.machine("ml.p4de.24xlarge").label == "96 vCPU, 1152 GiB, 8 × A100 80 GiB"
    assert catalog.machine("a2-ultragpu-8g").label == "96 vCPU, 1360 GiB, 8 × A100 80 GiB"


def test_hardware_that_nobody_has_read_is_not_made_up() -> None:
    machine = catalog.machine("ml.p6e-gb200.36xlarge")
    assert (machine.vcpus, machine.memory_gib, machine.gpu, machine.gpu_count) == (None, None, None, 0)
    assert machine.label == "hardware not known"
    assert catalog.nearest(machine, "vertex") is None


def test_a_machine_is_found_only_in_its_own_cloud() -> None:
    machine = catalog.machine("n1-standard-4", cloud="vertex")
    assert machine in catalog.machines("vertex")
    assert machine not in catalog.machines("sagemaker")


@pytest.mark.parametrize(
    ("name", "region", "usd_per_hour", "component"),
    [
        ("ml.m5.large", "us-east-1", "0.115", "Training"),
        ("ml.m5.xlarge", "us-east-1", "0.23", "Hosting"),
        ("ml.m5.xlarge", "us-west-2", "0.23", "Studio"),
        ("ml.m5.xlarge", "eu-west-1", "0.257", "Training"),
        ("ml.g4dn.xlarge", "eu-west-1", "0.822", "Training"),
        ("ml.g5.2xlarge", "us-east-1", "1.515", "Training"),
        ("ml.g5.xlarge", "us-east-1", "1.408", "unstated"),
        ("ml.g6.xlarge", "ap-northeast-1", "1.634", "Training"),
        ("ml.p3.2xlarge", "us-east-1", "3.825", "Training"),
        ("ml.p4d.24xlarge", "us-east-1", "25.251", "Training"),
        ("ml.t3.medium", "us-west-2", "0.05", "Studio"),
        ("ml.t3.medium", "us-east-1", "0.04992", "derived"),
        ("ml.p3.16xlarge", "us-east-1", "28.152", "derived"),
        ("n1-standard-4", "us-central1", "0.21849885", "Training"),
        ("a3-highgpu-8g", "us-central1", "101.007352", "Training"),
    ],
)
def test_a_price_that_was_read(name: str, region: str, usd_per_hour: str, component: str) -> None:
    price = known(name, region)
    assert (price.usd_per_hour, price.region, price.component) == (Decimal(usd_per_hour), region, component)


def test_a_training_rate_wins_over_a_newer_stand_in() -> None:
    """The Studio row of 2026-09-01 says 1.52, the older Training row 1.515: it is the rate that a job is billed at."""
    price = known("ml.g5.2xlarge", "us-west-2")
    newer = [row for row in catalog.prices(catalog.machine("ml.g5.2xlarge")) if row.as_of > price.as_of]
    assert any(row.region == "us-west-2" and row.component == "Studio" for row in newer)
    assert price.usd_per_hour == Decimal("1.515")


def test_the_newest_reading_of_a_component_wins() -> None:
    assert known("n1-standard-4").as_of == date(2026, 10, 7)
    assert known("ml.g5.2xlarge", "us-east-1").as_of == date(2026, 8, 20)


def test_a_spot_rate_is_kept_but_never_taken_for_the_price() -> None:
    machine = catalog.machine("ml.g5.xlarge")
    assert Decimal("1.4084") in {row.usd_per_hour for row in catalog.prices(machine) if row.market == "spot"}
    assert known("ml.g5.xlarge", "us-east-2").usd_per_hour == Decimal("1.2575")


def test_a_price_that_nobody_published_is_derived_and_says_how() -> None:
    """28.152 for ml.p3.16xlarge stands in two undated or third-party tables only, without a region."""
    assert catalog.prices(catalog.machine("ml.p3.16xlarge")) == ()
    price = known("ml.p3.16xlarge")
    assert (price.published, price.formula) == (False, "EC2 $24.48 × 1.15")
    assert price.label == "~$28.152/h in us-east-1, 2025-11-04"
    assert price.hourly == "~$28.1520"


def test_a_price_that_is_neither_read_nor_derived_is_not_known() -> None:
    """What SageMaker takes over EC2 was read on no machine of these families."""
    for name in ("ml.trn1.2xlarge", "ml.m7i.xlarge", "ml.p5en.48xlarge", "ml.p5.4xlarge"):
        assert catalog.price(catalog.machine(name)) is None


def test_a_price_of_another_region_is_never_given_for_the_one_asked() -> None:
    machine = catalog.machine("ml.p6-b300.48xlarge")
    assert catalog.price(machine, region="us-east-1") is None
    assert known("ml.p6-b300.48xlarge").region == "us-west-2"


def test_without_a_region_the_default_comes_first_and_then_one_near_it() -> None:
    assert known("ml.m5.xlarge").region == "us-east-1"
    # Published in us-west-2 and Tokyo, derived in us-east-1: where one is comes before how one was come by.
    assert (known("ml.g6.xlarge").region, known("ml.g6.xlarge").published) == ("us-east-1", False)
    assert known("a3-megagpu-8g").region == "us-east4"


def test_a_published_price_beats_a_derived_one_of_its_region() -> None:
    assert known("ml.g6.xlarge", "us-west-2").published
    assert not known("ml.g6.xlarge", "eu-central-1").published


@pytest.mark.parametrize(
    ("name", "region", "label"),
    [
        ("ml.p3.2xlarge", "us-east-1", "being retired; last seen 2025-11-04 (EC2's price list)"),
        ("ml.p2.xlarge", "sa-east-1", "being retired"),
    ],
)
def test_a_machine_that_is_being_retired_says_where_it_was_last_seen(name: str, region: str, label: str) -> None:
    found = catalog.retired(catalog.machine(name), region)
    assert found
    assert found.label == label


def test_a_machine_that_is_gone_from_a_region_has_no_derived_price_there() -> None:
    machine = catalog.machine("ml.p3.16xlarge")
    gone = catalog.retired(machine, "us-west-2")
    assert gone
    assert gone.missing_on == date(2026, 9, 1)
    assert "not in the price list of us-west-2 that was read on 2026-09-01" in gone.label
    assert catalog.price(machine, region="us-west-2") is None
    assert catalog.price(machine, region="us-east-2")


def test_what_is_not_being_retired_says_nothing_of_it() -> None:
    assert catalog.retired(catalog.machine("ml.p3dn.24xlarge"), "us-east-1") is None
    assert catalog.retired(catalog.machine("n1-standard-4")) is None


def test_every_price_that_is_given_is_of_the_region_that_was_asked() -> None:
    for machine in catalog.machines():
        for region in catalog.regions(machine.cloud):
            price = catalog.price(machine, region=region)
            assert price is None or price.region == region


def test_a_date_is_shown_as_precisely_as_it_is_known() -> None:
    assert known("ml.m5.large", "us-east-1").label == "$0.115/h in us-east-1, 2026-08-11"
    assert known("ml.m5.xlarge", "eu-west-1").label == "$0.257/h in eu-west-1, 2023-12"
    assert known("ml.g5.16xlarge", "us-west-2").label == "$5.12/h in us-west-2, 2026-08/09"
    assert known("ml.t3.large", "us-west-2").label == "$0.10/h in us-west-2, 2026-09-01"


def test_a_type_that_cannot_train_names_one_that_can_with_its_price() -> None:
    error = refused("ml.t2.medium")
    assert error.what == "SageMaker cannot train on 'ml.t2.medium' (it serves notebooks and endpoints only)"
    assert error.hint == "--instance ml.t3.medium (2 vCPU, 4 GiB, ~$0.04992/h in us-east-1, 2025-11-04)"


def test_an_ec2_name_is_told_its_sagemaker_name() -> None:
    error = refused("p3.2xlarge", "sagemaker")
    assert error.what == "'p3.2xlarge' is the name of an EC2 instance (SageMaker's begin with ml.)"
    assert error.hint.startswith("--instance ml.p3.2xlarge (8 vCPU, 61 GiB, 1 × V100 16 GiB, $3.825/h in us-east-1,")


def test_an_ec2_name_of_a_type_that_cannot_train_says_both() -> None:
    error = refused("t2.medium")
    assert "EC2" in error.what
    assert "cannot train on 'ml.t2.medium'" in error.what
    assert error.hint.startswith("--instance ml.t3.medium ")


def test_an_ec2_name_asked_of_vertex_names_a_machine_of_vertex() -> None:
    error = refused("p3.2xlarge", "vertex")
    assert catalog.machine(error.hint.split()[1], cloud="vertex").gpu_count == 1


def test_a_misspelt_name_is_told_the_nearest() -> None:
    error = refused("ml.p3.2xlrge")
    assert error.what == "no training machine of SageMaker or Vertex AI is called 'ml.p3.2xlrge'"
    assert error.hint.startswith("--instance ml.p3.2xlarge (")
    assert refused("ML.M5.XLARGE").hint.startswith("--instance ml.m5.xlarge (")
    assert refused("n1-standrd-4", "vertex").hint.startswith("--instance n1-standard-4 (")


def test_a_machine_of_the_other_cloud_names_the_nearest_here_and_both_prices() -> None:
    error = refused("n1-standard-4", "sagemaker")
    assert error.what == "'n1-standard-4' is a machine of Vertex AI, not of SageMaker"
    assert error.hint == (
        "--instance ml.m5.xlarge (4 vCPU, 16 GiB, $0.23/h in us-east-1, 2025-01-26); "
        "or --backend vertex for n1-standard-4 (4 vCPU, 15 GiB, $0.21849885/h in us-central1, 2026-10-07)"
    )


def test_a_price_that_is_not_known_is_said_so_in_a_hint() -> None:
    assert refused("ml.p5en.48xlarge", "vertex").hint.count("price unknown") == 1


def test_a_type_that_cannot_train_anywhere_is_not_offered_in_its_own_cloud() -> None:
    error = refused("ml.t2.medium", "vertex")
    assert "not of Vertex AI" in error.what
    assert "--backend sagemaker" not in error.hint


@settings(deadline=None)
@given(st.text(max_size=300), st.sampled_from([None, "sagemaker", "vertex"]))
def test_any_other_name_gets_one_line_and_a_machine_that_exists(name: str, cloud: str | None) -> None:
    error = refused(f"{name}\n\x1b[2J", cloud)
    assert error.what.isprintable()
    assert len(error.what) < 300
    assert catalog.machine(error.hint.split()[1], cloud=cloud)


def test_an_unknown_cloud_is_told_the_known_ones() -> None:
    with pytest.raises(CatalogError) as caught:
        catalog.machines("azure")
    assert caught.value.what == "the catalog has no cloud 'azure'"
    assert caught.value.hint == "--backend sagemaker or vertex"


@pytest.mark.parametrize(
    ("region", "cloud", "hint"),
    [
        ("us-east1", "sagemaker", "--region us-east-1"),
        ("us-central-1", "vertex", "--region us-central1"),
        ("the moon", "sagemaker", "--region us-east-1"),
    ],
)
def test_an_unknown_region_is_an_error_and_not_an_unknown_price(region: str, cloud: str, hint: str) -> None:
    machine = catalog.machines(cloud)[0]
    with pytest.raises(CatalogError) as caught:
        catalog.price(machine, region=region)
    assert region in caught.value.what
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("like", "cloud", "expected"),
    [
        ("ml.p4d.24xlarge", "vertex", "a2-highgpu-8g"),
        ("ml.p4de.24xlarge", "vertex", "a2-ultragpu-8g"),
        ("a3-highgpu-8g", "sagemaker", "ml.p5.48xlarge"),
        ("ml.g6.12xlarge", "vertex", "g2-standard-48"),
        ("n1-standard-4", "sagemaker", "ml.m5.xlarge"),
        # One A100 is nearer to another single GPU of its memory than to SageMaker's eight.
        ("a2-highgpu-1g", "sagemaker", "ml.g6e.2xlarge"),
    ],
)
def test_the_nearest_machine_has_the_nearest_gpus(like: str, cloud: str, expected: str) -> None:
    found = catalog.nearest(catalog.machine(like), cloud)
    assert found
    assert found.name == expected


def test_the_nearest_machine_of_vertex_is_one_that_trains() -> None:
    """n1-standard-2 and the like serve predictions; the smallest that is known to train has four vCPUs."""
    for machine in catalog.machines("sagemaker"):
        found = catalog.nearest(machine, "vertex")
        assert found is None or (found.vcpus or 0) >= 4


def test_the_nearest_to_a_gpu_machine_has_a_gpu_and_to_a_cpu_machine_none() -> None:
    for machine in (machine for machine in catalog.machines() if machine.vcpus):
        for cloud in catalog.CLOUD_NAMES:
            found = catalog.nearest(machine, cloud)
            assert found
            assert found != machine
            assert bool(found.gpu) == bool(machine.gpu)


def test_what_runs_on_chips_of_aws_is_near_to_chips_of_aws() -> None:
    assert refused("ml.inf1.xlarge").hint.startswith("--instance ml.trn1.2xlarge ")


def test_a_machine_can_be_compared_that_is_in_no_table() -> None:
    laptop = Machine("local", "laptop", 8, 32, None, 0, None, None, None, "measured", date(2026, 1, 1))
    found = catalog.nearest(laptop, "vertex")
    assert found
    assert (found.vcpus, found.memory_gib) == (8, 32)


@pytest.fixture
def own_file(tmp_path: Path) -> Iterator[ExitStack]:
    """Prices of a file beside the shipped ones, once `read_own` was called; put back afterwards."""
    with ExitStack() as stack:
        yield stack


def read_own(stack: ExitStack, folder: Path, *rows: str) -> None:
    header = (catalog.TABLES / "prices.csv").read_text("utf-8").splitlines()[0]
    (folder / "own.csv").write_text("\n".join((header, *rows, "")), encoding="utf-8")
    stack.enter_context(pricebook.using(pricebook.read_files(folder)))


def test_of_two_readings_on_one_day_the_dearer_wins(own_file: ExitStack, tmp_path: Path) -> None:
    row = "sagemaker,ml.m5.xlarge,us-east-1,on_demand,Training,{0},2026-11-01,day,A,a bill of {0},"
    read_own(own_file, tmp_path, *(row.format(usd) for usd in ("0.71", "0.73", "0.72")))
    assert known("ml.m5.xlarge", "us-east-1").usd_per_hour == Decimal("0.73")


def test_a_spot_row_of_the_training_component_is_no_on_demand_price(own_file: ExitStack, tmp_path: Path) -> None:
    row = "sagemaker,ml.m5.xlarge,us-east-1,spot,Training,0.07,2026-11-01,day,A,a bill,"
    read_own(own_file, tmp_path, row)
    assert known("ml.m5.xlarge", "us-east-1").usd_per_hour == Decimal("0.23")
    assert catalog.prices(catalog.machine("ml.m5.xlarge"))[-1].market == "spot"


def test_importing_the_catalog_reads_no_table_and_loads_nothing_of_ours_or_of_others() -> None:
    code = (
        "import sys; import estimates.catalog as catalog; "
        "assert catalog._machines.cache_info().currsize == 0; "
        "heavy = {'orchestrator', 'torch', 'boto3', 'botocore', 'google', 'pydantic', 'difflib'} & set(sys.modules); "
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=catalog.TABLES.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
