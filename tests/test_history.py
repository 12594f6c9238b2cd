"""What an estimate takes from earlier runs: seconds that the cloud billed, their wall clock, or the script's own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from estimates import catalog
from estimates.bill import Bill, Job, Span, assumptions, bill
from orchestrator import history
from orchestrator.history import Earlier
from orchestrator.runs import Ledger, RunState
from tests.test_runs import a_run

MACHINE = "ml.p3.2xlarge"
BEGAN = datetime.fromisoformat("2026-11-01T10:00:00.000+00:00")


@pytest.fixture
def ledger(home: Path) -> Iterator[Ledger]:
    with Ledger.open(home / "ledger.sqlite") as opened:
        yield opened


def took(
    ledger: Ledger, seconds: float, billed: int | None, *, count: int = 1, spot: bool = False, **more: Any
) -> None:
    """Write the row of a run that ended *seconds* after its start and was billed *billed* seconds."""
    number = len(ledger.newest())
    values: dict[str, Any] = {
        "run_id": f"r-{number:010}", "created_at": f"2026-11-01T10:00:{number:02}.000+00:00", "backend": "sagemaker",
        "state": RunState.SUCCEEDED, "started_at": BEGAN.isoformat(),
        "ended_at": (BEGAN + timedelta(seconds=seconds)).isoformat(), "billable_seconds": billed,
        "spec": {"arguments": [], "count": count, "spot": spot, "cloud": more.pop("cloud", {})},
        "plan": {"machine": {"name": MACHINE}},
    }  # fmt: skip
    ledger.insert(a_run(**(values | more)))


def told(*, count: int = 1, spot: bool = False, machine: str | None = MACHINE) -> Earlier:
    return history.of_script("shipped:mlp", [], count=count, spot=spot)[machine]


def billed_next(earlier: Earlier, *, spot: bool = False, keep_alive_seconds: int = 0) -> Bill:
    """The bill of the next run, when the last one is *earlier*."""
    job = Job(
        catalog.machine(MACHINE), earlier.seconds, "us-east-1", 1, spot, earlier.billable,
        keep_alive_seconds=keep_alive_seconds, around_included=earlier.around_included,
        held_seconds=earlier.held_seconds,
    )  # fmt: skip
    return bill(job)


def machine_hours(made: Bill) -> list[tuple[str, Decimal]]:
    return [(line.what, line.quantity.expected) for line in made.lines[0].lines if line.quantity is not None]


def test_the_warm_pool_of_an_earlier_run_is_not_taken_for_training(ledger: Ledger) -> None:
    took(ledger, 3599.25, 3600 + 1800, cloud={"keep_alive_minutes": 30})
    earlier = told()
    assert (earlier.seconds, earlier.billable) == (Span.of(3600), True)
    assert machine_hours(billed_next(earlier, keep_alive_seconds=1800)) == [
        ("training, by what earlier runs were billed", Decimal(1)),
        ("warm pool afterwards, at most", Decimal("0.5")),
    ]


def test_a_row_that_does_not_tell_of_its_pool_gives_no_more_than_its_wall_clock(ledger: Ledger) -> None:
    took(ledger, 3600, 5400, spec={"arguments": [], "count": 1, "spot": False})
    took(ledger, 3600, 3500, spec={"arguments": [], "count": 1, "spot": False})
    assert told().seconds == Span(Decimal(3500), Decimal(3550), Decimal(3600))


def test_the_wall_clock_of_runs_with_other_hosts_has_no_pull_and_no_upload_added(ledger: Ledger) -> None:
    took(ledger, 7200, 7200, count=2)
    earlier = told()
    assert (earlier.billable, earlier.around_included, earlier.held_seconds) == (False, True, None)
    assert earlier.words == f"the last run on {MACHINE}, with 2 machines"
    assert machine_hours(billed_next(earlier)) == [("training, by the wall clock of earlier runs", Decimal(2))]


def test_a_run_on_demand_gets_the_discount_when_the_next_is_on_spot(ledger: Ledger) -> None:
    took(ledger, 7200, 7200)
    fraction = assumptions()["spot_billable"].span.expected
    asked_on_spot, asked_on_demand = told(spot=True), told()
    assert (asked_on_spot.billable, asked_on_demand.billable) == (False, True)
    for earlier in (asked_on_spot, asked_on_demand):
        made = billed_next(earlier, spot=True)
        assert machine_hours(made) == [("training, by the wall clock of earlier runs", 2 * fraction)]


def test_a_run_on_spot_is_no_measure_of_what_is_billed_on_demand(ledger: Ledger) -> None:
    took(ledger, 7200, 2000, spot=True)
    earlier = told()
    assert (earlier.seconds, earlier.billable, earlier.around_included) == (Span.of(7200), False, True)


def test_runs_on_spot_give_what_was_billed_and_the_wall_clock_that_their_disks_were_held_for(ledger: Ledger) -> None:
    for seconds, billed in ((7200, 1800), (10800, 3600), (14400, 5400)):
        took(ledger, seconds, billed, spot=True)
    took(ledger, 50, 50)
    earlier = told(spot=True)
    assert earlier.seconds == Span(Decimal(1800), Decimal(3600), Decimal(5400))
    assert earlier.held_seconds == earlier.wall_clock == Span(Decimal(7200), Decimal(10800), Decimal(14400))
    made = billed_next(earlier, spot=True)
    assert machine_hours(made) == [("training, by what earlier runs were billed", Decimal(1))]
    disk = made.lines[1].quantity
    assert disk is not None
    assert round(disk.expected * 730 / 30, 12) == 3


@pytest.mark.parametrize("rehearsed", [False, True])
def test_what_ran_here_took_the_scripts_own_seconds_and_the_cloud_adds_its_own(ledger: Ledger, rehearsed: bool) -> None:
    took(ledger, 90.5, 77 if rehearsed else None, backend="sagemaker" if rehearsed else "local", rehearsed=rehearsed)
    earlier = told(machine=None)
    assert (earlier.seconds, earlier.billable, earlier.around_included) == (Span.of("90.5"), False, False)
    assert [what for what, _ in machine_hours(billed_next(earlier))] == [
        "training", "image pull", "upload of the results",
    ]  # fmt: skip
