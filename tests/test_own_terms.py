"""What is kept of a price when a run is planned: the user's own, the list's beside it; and what is said of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from orchestrator import books, money, planned_cost, spending
from orchestrator import plan as plans
from orchestrator.runs import Ledger, RunState
from orchestrator.spec import Spending, TrainingSpec
from tests.conftest import Orchestrate
from tests.test_spending import accepted, row_of, spec_of

SUBMIT = (
    "submit", "train.py", "--backend", "sagemaker", "--instance", "ml.p3.2xlarge", "--region", "us-east-1",
    "--role", "arn:aws:iam::123456789012:role/training", "--bucket", "a-bucket-of-mine", "--dry-run",
)  # fmt: skip


@pytest.fixture
def ledger(home: Path) -> Iterator[Ledger]:
    with Ledger.open(home / "ledger.sqlite") as opened:
        yield opened


def counted_after(ledger: Ledger, spec: TrainingSpec, seconds: int) -> Decimal:
    """What a month counts of a run of *spec* that was billed *seconds*."""
    with books.prices_of(spec):
        row = row_of(accepted(spec))
    ledger.insert(row)
    ledger.move(row.id, RunState.RUNNING)
    actual = money.usd_for(row.plan, seconds)
    assert actual is not None
    ledger.move(row.id, RunState.SUCCEEDED, billable_seconds=seconds, actual_usd=str(actual))
    found = spending.counted(ledger.get(row.id))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("terms", "machine", "hourly"),
    [
        (Spending(contract=(("ml.p3.2xlarge", Decimal(8)),)), "ml.p3.2xlarge", "8"),
        (Spending(contract=(("ml.m6i.xlarge", Decimal("0.25")),)), "ml.m6i.xlarge", "0.25"),
        (Spending(discounts=(("sagemaker", Decimal("0.5")),)), "ml.p3.2xlarge", "1.9125"),
        (Spending(), "ml.p3.2xlarge", "3.825"),
    ],
    ids=["contract above the list", "contract alone", "discount", "list"],
)
def test_a_run_that_has_ended_counts_what_the_user_pays(
    ledger: Ledger, terms: Spending, machine: str, hourly: str
) -> None:
    spec = spec_of(machine, max_hours=Decimal(5), spending=terms)
    counted = counted_after(ledger, spec, 5 * 3600)
    disk = Decimal(30) * 5 * 3600 / (28 * 86400) * Decimal("0.14")
    assert abs(counted - 5 * Decimal(hourly) - disk) < Decimal("0.00001")


def test_the_list_price_is_kept_beside_the_own_one() -> None:
    spec = spec_of(max_hours=Decimal(1), spending=Spending(discounts=(("sagemaker", Decimal("0.2")),)))
    with books.prices_of(spec):
        kept = plans.as_json(accepted(spec))["price"]
    assert (kept["usd_per_hour"], kept["list_usd_per_hour"], kept["published"]) == ("3.06", "3.825", True)


def test_the_estimate_in_the_ledger_is_of_the_machines_with_spot_and_terms() -> None:
    spec = spec_of(max_hours=Decimal(10), spot=True)
    plan = dataclasses.replace(accepted(spec), seconds=36000.0, seconds_from="as the last run")
    usd = planned_cost.machines_usd(plan)
    assert usd is not None
    assert Decimal("13.38") < usd < Decimal("14.5")  # 10 h × $3.825 × 0.35, and what is billed around the script
    certain = dataclasses.replace(plan, seconds_are_billed=True)
    assert planned_cost.machines_usd(certain) == Decimal("38.25")


def test_a_dry_run_shows_no_amount_above_the_budget_that_it_explains(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text("print('hello')\n")
    answer = orchestrate(*SUBMIT, "--budget", "10")
    assert answer.code == 0, answer.err
    bill = answer.out[answer.out.index("\nBill\n") : answer.out.index("The same run in the cloud")]
    assert all(Decimal(amount) <= 10 for amount in re.findall(r"\$([0-9.]+[0-9])", bill)), bill
    assert re.search(r"price of ml\.p3\.2xlarge was read \d+ days ago: orchestrate prices refresh", bill)


def test_a_dry_run_says_what_the_months_limit_would(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text("print('hello')\n")
    (project / "orchestrate.toml").write_text("[limits]\nper_month_usd = 2\n")
    answer = orchestrate(*SUBMIT, "--max-hours", "5")
    assert answer.code == 0, answer.err
    assert "without --dry-run this would be refused: per_month_usd 2" in answer.err
    assert "would be refused" not in orchestrate(*SUBMIT, "--max-hours", "0.2").err
