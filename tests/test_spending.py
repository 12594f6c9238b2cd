"""Budgets cannot be overrun: by no request, by no month, however many submit at once."""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estimates import catalog, pricebook
from orchestrator import plan as plans
from orchestrator.aws import place as places
from orchestrator.aws import request as requests
from orchestrator.entrypoint import Entrypoint
from orchestrator.errors import OrchestrateError, OverBudget
from orchestrator.plan import Plan
from orchestrator.spec import CloudOptions, Spending, TrainingSpec

ROLE = "arn:aws:iam::111122223333:role/training"
SCRIPT = Entrypoint(Path("/nowhere"), "train.py", "train", "named", shipped=False)
NOW = "2026-11-22T12:00:00.000+00:00"


def spec_of(instance: str = "ml.p3.2xlarge", *, region: str = "us-east-1", **changes: Any) -> TrainingSpec:
    cloud = changes.pop("cloud", CloudOptions())
    cloud = dataclasses.replace(cloud, role=ROLE, bucket="my-bucket", image="image:1")
    return TrainingSpec("train.py", backend="sagemaker", instance=instance, region=region, cloud=cloud, **changes)


def planned(spec: TrainingSpec, problems: list[OrchestrateError]) -> Plan | None:
    """The plan of *spec* without a folder, a package or data: all that decides what it can cost. None: refused."""
    machine = catalog.machine(str(spec.instance))
    run_id = plans.new_run_id()
    place = places.decide(spec, machine, run_id=run_id, name="train", stage=None, problems=problems)
    if place is None:
        return None
    folder = Path("/nowhere/runs") / run_id
    seconds = float(place.max_seconds)
    return Plan(run_id, "train", spec, SCRIPT, "0" * 64, 1, 1, folder, machine, (), seconds, "at most", cloud=place)


def accepted(spec: TrainingSpec) -> Plan:
    problems: list[OrchestrateError] = []
    made = planned(spec, problems)
    assert made is not None, problems
    return made


def refused(spec: TrainingSpec) -> OrchestrateError:
    problems: list[OrchestrateError] = []
    assert planned(spec, problems) is None
    (problem,) = problems
    return problem


# No request can be billed above its budget


@functools.cache
def storage_rates() -> dict[str, Fraction]:
    with (catalog.TABLES / "rates.csv").open(encoding="utf-8", newline="") as lines:
        return {
            row["region"]: Fraction(row["usd"]) for row in csv.DictReader(lines) if row["item"] == "training_storage"
        }


@functools.cache
def with_nvme() -> frozenset[str]:
    with (catalog.TABLES / "machines.csv").open(encoding="utf-8", newline="") as lines:
        return frozenset(row["machine"] for row in csv.DictReader(lines) if row["local_nvme_gb"] not in ("", "0"))


def most_usd(request: dict[str, Any], region: str) -> Fraction:
    """What *request* can be billed, from its own fields and the tables alone."""
    resources, stop = request["ResourceConfig"], request["StoppingCondition"]
    machine = catalog.machine(resources["InstanceType"])
    book = pricebook.shipped()
    found = [book.price(machine, region)]
    if request["EnableManagedSpotTraining"]:
        found.append(book.price(machine, region, "spot"))
        assert stop["MaxWaitTimeInSeconds"] >= stop["MaxRuntimeInSeconds"]
    hourly = max(Fraction(price.usd_per_hour) for price in found if price is not None)
    rates = storage_rates()
    volume = 0 if machine.name in with_nvme() else resources["VolumeSizeInGB"]
    monthly = volume * rates.get(region, max(rates.values()))
    seconds = stop["MaxRuntimeInSeconds"] + 120 + resources.get("KeepAlivePeriodInSeconds", 0)
    return resources["InstanceCount"] * seconds * (hourly / 3600 + monthly / (28 * 24 * 3600))


def rentable() -> tuple[list[tuple[str, str, Decimal]], list[tuple[str, str, Decimal]]]:
    """Machines, regions and what an hour costs: with a price, and (at 1 USD) without."""
    places_of = ("us-east-1", "us-west-2", "eu-west-1", "ap-northeast-1")
    found = [
        (machine.name, region, catalog.price(machine, region=region))
        for machine in catalog.machines("sagemaker")
        for region in places_of
    ]
    priced = [(name, region, price.usd_per_hour) for name, region, price in found if price is not None]
    return priced, [(name, region, Decimal(1)) for name, region, price in found if price is None]


PRICED, UNPRICED = rentable()
A_TIME = st.integers(0, 6) | st.integers(0, 4000) | st.integers(0, 60_000)  # minutes of the machines
CHOICES = st.tuples(
    st.sampled_from([*PRICED, *UNPRICED[:: max(1, 12 * len(UNPRICED) // len(PRICED))]]),
    st.sampled_from(["spot", "spot and wait", "warm", "cold"]),
    st.none() | st.integers(17, 672_000) | st.integers(17, 3000),  # thousandths of an hour
    st.integers(1, 4) | st.integers(1, 64),
    st.integers(1, 16384) | st.just(30),
    st.none() | st.integers(1, 16384),  # a volume among the raw fields
    st.integers(2, 70_000),  # hundredths of an hour, or minutes
    st.tuples(st.sampled_from(["budget", "each", "both"]), A_TIME, A_TIME, st.integers(1, 9999), st.sampled_from([2, 4])),
)  # fmt: skip


def spec_from(choices: tuple[Any, ...]) -> TrainingSpec:
    (name, region, hourly), market, thousandths, count, volume, raw, some, money = choices
    which, first, second, more, digits = money
    hours = None if thousandths is None else Decimal(thousandths) / 1000
    wait = max(Decimal(some) / 100, hours or Decimal(0)) if market == "spot and wait" else None
    options = CloudOptions(
        volume_gb=volume,
        max_wait_hours=wait,
        keep_alive_minutes=1 + some % 360 if market == "warm" else None,
        extra={} if raw is None else {"ResourceConfig": {"VolumeSizeInGB": raw}},
    )
    budget, each = (
        (hourly * count * minutes / 60).quantize(Decimal(1).scaleb(-digits)) + Decimal(more).scaleb(-digits)
        for minutes in (first, second)
    )
    return spec_of(
        name, region=region, count=count, spot=market.startswith("spot"), max_hours=hours,
        budget_usd=None if which == "each" else budget,
        spending=Spending(per_run_usd=None if which == "budget" else each), cloud=options,
    )  # fmt: skip


def asked() -> st.SearchStrategy[TrainingSpec]:
    return CHOICES.map(spec_from)


def check_no_request_is_over_its_budget(spec: TrainingSpec) -> None:
    given_usd = [usd for usd in (spec.budget_usd, spec.spending.per_run_usd) if usd is not None]
    problems: list[OrchestrateError] = []
    made = planned(spec, problems)
    if made is None:
        (problem,) = problems
        assert isinstance(problem, OverBudget)
        check_the_refusal_is_honest(spec, problem)
        return
    request = requests.training_job(made, "0" * 64)
    most = most_usd(request, str(spec.region))
    assert most <= min(given_usd)
    runtime = request["StoppingCondition"]["MaxRuntimeInSeconds"]
    assert runtime >= 60 or spec.cloud.max_wait_hours is not None
    bought = spec.max_hours is None and runtime < places.MAX_SECONDS and spec.cloud.max_wait_hours is None
    if bought:  # and none of it is given away
        request["StoppingCondition"]["MaxRuntimeInSeconds"] += 1
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = places.MAX_SECONDS
        assert most_usd(request, str(spec.region)) > min(given_usd)


def check_the_refusal_is_honest(spec: TrainingSpec, problem: OrchestrateError) -> None:
    """What the hint says can be typed is accepted, and held."""
    if "is unknown" in problem.what:
        assert catalog.price(catalog.machine(str(spec.instance)), region=spec.region) is None
        return
    hint = str(problem.hint)
    hours = re.search(r"--max-hours ([0-9.]+)$", hint)
    least = re.search(r"(--budget|per_run_usd =) ([0-9.]+)", hint)
    if hours:
        other = dataclasses.replace(spec, max_hours=Decimal(hours[1]))
    else:
        assert least, hint
        more = Decimal(least[2]) + Decimal("0.01")
        both = dataclasses.replace(spec.spending, per_run_usd=more)
        other = dataclasses.replace(spec, budget_usd=more, spending=both)
        assert planned(dataclasses.replace(spec, budget_usd=Decimal(least[2]), spending=Spending()), []) is not None
    request = requests.training_job(accepted(other), "0" * 64)
    assert most_usd(request, str(spec.region)) <= min(
        usd for usd in (other.budget_usd, other.spending.per_run_usd) if usd is not None
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=asked())
def test_no_request_that_comes_out_can_be_billed_above_its_budget(spec: TrainingSpec) -> None:
    check_no_request_is_over_its_budget(spec)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=asked())
def test_none_of_ten_thousand_requests_can_be_billed_above_its_budget(spec: TrainingSpec) -> None:
    check_no_request_is_over_its_budget(spec)
