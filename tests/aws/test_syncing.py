"""What a job that was made elsewhere can cost is in its row: its machines' price, their disks and their warm pool."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from estimates import catalog, pricebook
from estimates.pricebook import Terms
from orchestrator import spending
from orchestrator.aws import syncing
from orchestrator.aws.client import Aws
from orchestrator.rehearsal import control
from orchestrator.rehearsal.server import Rehearsal
from orchestrator.runs import Ledger, Run, RunState
from tests.rehearsal.conftest import BUCKET, REGION, cloud, sagemaker, spot, training_request, wait_for_end

__all__ = ["cloud", "sagemaker"]
LAUNCH_ID = "0123456789" * 2
NAME = f"orc-train-{LAUNCH_ID}"


@pytest.fixture
def aws(cloud: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    for name, value in control.environment(cloud.url, REGION).items():
        monkeypatch.setenv(name, value)
    with Aws(REGION, endpoint=cloud.url) as made:
        yield made


@pytest.fixture
def ledger(home: Path) -> Iterator[Ledger]:
    with Ledger.open(home / "ledger.sqlite") as opened:
        yield opened


def brought_in(aws: Aws, ledger: Ledger, sagemaker: Any, **changes: Any) -> Run:
    """The row of a job of ours that this ledger did not know."""
    environment = {"ORCHESTRATE_LAUNCH_ID": LAUNCH_ID, "ORCHESTRATE_LAUNCH_KEY": "key"}
    request = training_request(NAME, "true", Environment=environment, **changes)
    request.setdefault("CheckpointConfig", {"S3Uri": f"s3://{BUCKET}/checkpoints/"})
    sagemaker.create_training_job(**request)
    wait_for_end(sagemaker, NAME)
    (run_id,) = syncing.bring_in(aws, ledger, rehearsed=False)
    return ledger.get(run_id)


def test_the_disks_and_the_warm_pool_of_a_run_from_elsewhere_are_counted(
    aws: Aws, ledger: Ledger, sagemaker: Any
) -> None:
    """2 × (28.152 × 7,320 s / 3,600 + 4,000 GB × 0.14 × 7,320 s / 28 days): an hour, an hour of pool, two minutes to stop."""
    resources = {"InstanceType": "ml.p3.16xlarge", "InstanceCount": 2, "VolumeSizeInGB": 4000}
    kept = {**resources, "KeepAlivePeriodInSeconds": 3600}
    run = brought_in(aws, ledger, sagemaker, ResourceConfig=kept)
    assert run.spec["cloud"] == {"volume_gb": 4000, "keep_alive_minutes": 60}
    running = dataclasses.replace(run, state=RunState.RUNNING, ended_at=None)
    counted = spending.counted(running)
    assert counted is not None
    hours = Decimal(7320) / 3600
    most = 2 * hours * (Decimal("28.152") + 4000 * Decimal("0.14") / (28 * 24))
    assert abs(counted - most) < Decimal("0.00001")
    assert Decimal("117.87") < counted < Decimal("117.88")


@pytest.mark.parametrize(("seconds", "minutes"), [(None, None), (0, None), (60, 1), (61, 2), (21600, 360)])
def test_a_begun_minute_of_a_pool_is_a_minute_and_none_is_none(seconds: int | None, minutes: int | None) -> None:
    kept = {} if seconds is None else {"KeepAlivePeriodInSeconds": seconds}
    assert syncing._options({"VolumeSizeInGB": 7, **kept}) == {"volume_gb": 7, "keep_alive_minutes": minutes}


def test_a_run_from_elsewhere_has_the_users_own_price_with_the_lists_beside_it() -> None:
    with pricebook.using(pricebook.shipped().with_terms(Terms(discounts={"sagemaker": Decimal("0.25")}))):
        price = syncing._price("ml.p3.16xlarge", REGION, spot=False)
    assert price is not None
    assert (price["usd_per_hour"], price["list_usd_per_hour"]) == ("21.114", "28.152")
    assert (price["published"], price["region"], price["as_of"]) == (False, REGION, "2025-11-04")
    assert "24.48" in str(price["formula"])


def test_of_a_machine_that_no_table_knows_no_price_is_made_up() -> None:
    contract = Terms(contract={"ml.m6i.xlarge": Decimal("0.25")})
    with pricebook.using(pricebook.shipped().with_terms(contract)):
        assert [syncing._price(name, REGION, spot=False) for name in (None, "ml.new.xlarge")] == [None, None]
        own = syncing._price("ml.m6i.xlarge", REGION, spot=False)
    assert own is not None
    assert own["usd_per_hour"] == "0.25"


@pytest.mark.slow
def test_a_run_on_spot_from_elsewhere_has_the_rate_of_spot(aws: Aws, ledger: Ledger, sagemaker: Any) -> None:
    """The rate on spot was read in us-east-2 alone: this book has the machine's rows in the job's region."""
    machine = catalog.machine("ml.g5.xlarge")
    shipped = pricebook.shipped()
    rows = tuple(dataclasses.replace(row, region=REGION) for row in shipped.machines["sagemaker", machine.name])
    here = dataclasses.replace(shipped, machines={("sagemaker", machine.name): rows})
    resources = {"InstanceType": machine.name, "InstanceCount": 1, "VolumeSizeInGB": 30}
    with pricebook.using(here):
        run = brought_in(aws, ledger, sagemaker, ResourceConfig=resources, **spot())
        on_demand = syncing._price(machine.name, REGION, spot=False)
    assert on_demand is not None
    assert run.plan["price"]["usd_per_hour"] == "1.4084" != on_demand["usd_per_hour"]
    assert run.plan["cloud"]["max_wait_seconds"] == 7200
