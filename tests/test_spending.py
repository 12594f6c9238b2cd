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
from orchestrator import books, budgets, spending
from orchestrator import plan as plans
from orchestrator.aws import place as places
from orchestrator.aws import request as requests
from orchestrator.entrypoint import Entrypoint
from orchestrator.errors import BadInput, OrchestrateError, OverBudget
from orchestrator.plan import Plan
from orchestrator.runs import Ledger, Run, RunState
from orchestrator.spec import CloudOptions, Spending, TrainingSpec
from tests.test_runs import a_run

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
    terms = pricebook.Terms(dict(spec.spending.discounts), dict(spec.spending.contract))
    with pricebook.using(pricebook.current().with_terms(terms)):
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


def contract_of(spec: TrainingSpec) -> list[Decimal]:
    """The contract price of its machine by the pattern that names it best; none where no pattern does."""
    known, name = dict(spec.spending.contract), str(spec.instance)
    return [known[pattern] for pattern in (f"{name}@{spec.region}", name, f"{name[:5]}*") if pattern in known][:1]


def most_usd(request: dict[str, Any], spec: TrainingSpec) -> Fraction:
    """What *request* can be billed, from its own fields and the tables alone: at the list's price or the contract's."""
    resources, stop, region = request["ResourceConfig"], request["StoppingCondition"], str(spec.region)
    machine = catalog.machine(resources["InstanceType"])
    markets = ["on_demand", "spot"] if request["EnableManagedSpotTraining"] else ["on_demand"]
    assert len(markets) == 1 or stop["MaxWaitTimeInSeconds"] >= stop["MaxRuntimeInSeconds"]
    listed = [pricebook.shipped().price(machine, region, market) for market in markets]
    hourly = Fraction(max([price.usd_per_hour for price in listed if price is not None] + contract_of(spec)))
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
A_PART = st.integers(1, 99) | st.integers(101, 3000)
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
    # Contract prices, in hundredths of the list's (or of a dollar), and a discount, in hundredths.
    st.dictionaries(st.sampled_from(["{}@{}", "{}", "{:.5}*", "{}@sa-east-1", "ml.none"]), A_PART, max_size=3),
    st.none() | st.integers(1, 100),
)  # fmt: skip


def spec_from(choices: tuple[Any, ...]) -> TrainingSpec:
    (name, region, hourly), market, thousandths, count, volume, raw, some, money, contract, discount = choices
    which, first, second, more, digits = money
    hours = None if thousandths is None else Decimal(thousandths) / 1000
    wait = max(Decimal(some) / 100, hours or Decimal(0)) if market == "spot and wait" else None
    options = CloudOptions(
        volume_gb=volume,
        max_wait_hours=wait,
        keep_alive_minutes=1 + some % 360 if market == "warm" else None,
        extra={} if raw is None else {"ResourceConfig": {"VolumeSizeInGB": raw}},
    )
    limits = Spending(
        contract=tuple((form.format(name, region), hourly * part / 100) for form, part in contract.items()),
        discounts=() if discount is None else (("sagemaker", Decimal(discount) / 100),),
    )
    hourly = max([hourly, *contract_of(spec_of(name, region=region, spending=limits))])
    budget, each = (
        (hourly * count * minutes / 60).quantize(Decimal(1).scaleb(-digits)) + Decimal(more).scaleb(-digits)
        for minutes in (first, second)
    )
    return spec_of(
        name, region=region, count=count, spot=market.startswith("spot"), max_hours=hours,
        budget_usd=None if which == "each" else budget,
        spending=dataclasses.replace(limits, per_run_usd=None if which == "budget" else each), cloud=options,
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
    assert most_usd(request, spec) <= min(given_usd)
    runtime = request["StoppingCondition"]["MaxRuntimeInSeconds"]
    assert runtime >= 60 or spec.cloud.max_wait_hours is not None
    bought = spec.max_hours is None and runtime < places.MAX_SECONDS and spec.cloud.max_wait_hours is None
    if bought:  # and none of it is given away
        request["StoppingCondition"]["MaxRuntimeInSeconds"] += 1
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = places.MAX_SECONDS
        assert most_usd(request, spec) > min(given_usd)


def check_the_refusal_is_honest(spec: TrainingSpec, problem: OrchestrateError) -> None:
    """What the hint says can be typed is accepted, and held."""
    if "is unknown" in problem.what:
        assert catalog.price(catalog.machine(str(spec.instance)), region=spec.region) is None
        assert not contract_of(spec)
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
        alone = dataclasses.replace(spec.spending, per_run_usd=None)
        assert planned(dataclasses.replace(spec, budget_usd=Decimal(least[2]), spending=alone), []) is not None
    request = requests.training_job(accepted(other), "0" * 64)
    assert most_usd(request, spec) <= min(usd for usd in (other.budget_usd, other.spending.per_run_usd) if usd)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=asked())
def test_no_request_that_comes_out_can_be_billed_above_its_budget(spec: TrainingSpec) -> None:
    check_no_request_is_over_its_budget(spec)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=asked())
def test_none_of_ten_thousand_requests_can_be_billed_above_its_budget(spec: TrainingSpec) -> None:
    check_no_request_is_over_its_budget(spec)


def test_a_raw_volume_is_counted_and_not_the_option() -> None:
    large = {"ResourceConfig": {"VolumeSizeInGB": 16384}}
    plain = accepted(spec_of(budget_usd=Decimal(20)))
    raw = accepted(spec_of(budget_usd=Decimal(20), cloud=CloudOptions(extra=large)))
    assert plain.cloud is not None
    assert raw.cloud is not None
    assert raw.cloud.max_seconds < plain.cloud.max_seconds


@pytest.mark.parametrize(
    "extra",
    [
        {"DebugRuleConfigurations": [{"RuleConfigurationName": "a", "InstanceType": "ml.m5.xlarge"}]},
        {"ProfilerRuleConfigurations": [{"RuleConfigurationName": "a", "InstanceType": "ml.m5.xlarge"}]},
        {"ServerlessJobConfig": {"JobType": "FineTuning"}},
        {"ResourceConfig": {"SelectedInstanceCount": 3}},
    ],
)
def test_raw_fields_that_are_billed_apart_cannot_be_under_a_budget(extra: dict[str, Any]) -> None:
    budgeted = refused(spec_of(budget_usd=Decimal(20), cloud=CloudOptions(extra=extra)))
    assert isinstance(budgeted, OverBudget)
    assert "billed apart, so --budget 20 cannot be held" in budgeted.what
    month = Spending(per_month_usd=Decimal(100))
    assert "per_month_usd 100" in refused(spec_of(spending=month, cloud=CloudOptions(extra=extra))).what
    assert accepted(spec_of(cloud=CloudOptions(extra=extra)))


def test_aws_own_debugger_rules_cost_nothing_and_pass() -> None:
    rules = {"DebugRuleConfigurations": [{"RuleConfigurationName": "a", "RuleEvaluatorImage": "image"}]}
    assert accepted(spec_of(budget_usd=Decimal(20), cloud=CloudOptions(extra=rules)))


def test_the_smaller_of_budget_and_per_run_limit_holds() -> None:
    limits = Spending(per_run_usd=Decimal(5))
    for budget, name in ((Decimal(20), "per_run_usd 5"), (Decimal(3), "--budget 3"), (None, "per_run_usd 5")):
        made = accepted(spec_of(budget_usd=budget, spending=limits))
        assert made.cloud is not None
        assert made.cloud.max_seconds_from.startswith(f"what {name} buys")


def test_a_per_run_limit_is_refused_by_its_name_and_with_what_it_buys() -> None:
    limits = Spending(per_run_usd=Decimal(5))
    problem = refused(spec_of(spending=limits, max_hours=Decimal(10)))
    assert "is over per_run_usd 5 of [limits]" in problem.what
    assert "--max-hours 1." in str(problem.hint)
    assert "per_run_usd = " in str(refused(spec_of(spending=Spending(per_run_usd=Decimal("0.01")))).hint)


def test_a_budget_waits_no_longer_than_max_wait() -> None:
    made = accepted(spec_of(budget_usd=Decimal(100), spot=True, cloud=CloudOptions(max_wait_hours=Decimal(3))))
    assert made.cloud is not None
    assert (made.cloud.max_seconds, made.cloud.max_wait_seconds) == (3 * 3600, 3 * 3600)


def test_a_budget_becomes_the_timeout_of_a_job_of_vertex() -> None:
    machine = catalog.machine("n1-standard-8")
    spec = TrainingSpec(backend="vertex", instance=machine.name, budget_usd=Decimal(10))
    problems: list[OrchestrateError] = []
    seconds, words = budgets.vertex_stop(spec, machine, problems)
    assert not problems
    assert words.startswith("what --budget 10 buys at ")
    price = pricebook.shipped().price(machine, "us-central1")
    disk = pricebook.shipped().rate("vertex", "pd_ssd", "us-central1")
    assert price is not None
    assert disk is not None
    each = Fraction(price.usd_per_hour) / 3600 + 100 * Fraction(disk.usd) / (28 * 24 * 3600)
    assert seconds * each <= 10 < (seconds + 1) * each
    budgets.vertex_stop(dataclasses.replace(spec, max_hours=Decimal(600)), machine, problems)
    (problem,) = problems
    assert isinstance(problem, OverBudget)
    assert budgets.vertex_stop(dataclasses.replace(spec, budget_usd=None), machine, [])[0] == 86_400


# A month


@pytest.fixture
def ledger(home: Path) -> Any:
    with Ledger.open(home / "ledger.sqlite") as opened:
        yield opened


def sent(ledger: Ledger, plan: Plan, **changes: Any) -> Run:
    """The row of *plan*, reserved as launch reserves it."""
    run = row_of(plan, **changes)
    ledger.insert(run, admit=spending.admission(plan))
    return ledger.get(run.id)


def row_of(decided: Plan, **changes: Any) -> Run:
    place = decided.cloud
    assert place is not None
    values: dict[str, Any] = {
        "id": decided.run_id, "backend": "sagemaker", "region": place.region, "rehearsed": place.rehearsed,
        "plan": {**plans.as_json(decided), "ceiling": spending.reservation(decided)},
    }  # fmt: skip
    return dataclasses.replace(a_run("r-x"), **(values | changes))


def monthly(limit: str, hours: str = "1", **changes: Any) -> Plan:
    limits = Spending(per_month_usd=Decimal(limit))
    return accepted(spec_of(spending=limits, max_hours=Decimal(hours), **changes))


def most_of(plan: Plan) -> Decimal:
    kept = spending.reservation(plan)
    assert kept is not None
    return Decimal(kept["usd"])


EACH = most_of(accepted(spec_of(max_hours=Decimal(1))))


def test_a_month_takes_the_runs_that_fit_to_the_last_cent_and_no_more(ledger: Ledger) -> None:
    limit = str(3 * EACH)
    runs = [sent(ledger, monthly(limit)) for _ in range(3)]
    with pytest.raises(OverBudget) as caught:
        sent(ledger, monthly(limit))
    assert caught.value.exit_code == 4
    assert all(run.id in caught.value.what for run in runs)
    assert "$0.00 left" in caught.value.what
    assert f"orchestrate cancel {runs[0].id}" in str(caught.value.hint)
    assert len(ledger.newest()) == 3


def test_a_cent_less_takes_one_run_less(ledger: Ledger) -> None:
    limit = str(2 * EACH - Decimal("0.000001"))
    sent(ledger, monthly(limit))
    with pytest.raises(OverBudget):
        sent(ledger, monthly(limit))


def test_what_would_fit_is_said_and_fits(ledger: Ledger) -> None:
    limit = str(EACH * Decimal("1.5"))
    sent(ledger, monthly(limit))
    with pytest.raises(OverBudget) as caught:
        sent(ledger, monthly(limit))
    hours = re.fullmatch(r"--max-hours ([0-9.]+) fits", str(caught.value.hint))
    assert hours
    sent(ledger, monthly(limit, hours[1]))


@pytest.mark.parametrize("end", [RunState.ABANDONED, RunState.FAILED])
def test_a_run_that_was_refused_or_never_had_a_machine_frees_its_reservation_at_once(
    ledger: Ledger, end: RunState
) -> None:
    limit = str(EACH)
    run = sent(ledger, monthly(limit))
    ledger.move(run.id, end, note="no quota")
    sent(ledger, monthly(limit))


def test_an_ended_run_counts_what_it_cost_with_its_disk_and_warm_pool(ledger: Ledger) -> None:
    plan = monthly("1000", "10", cloud=CloudOptions(volume_gb=1000, keep_alive_minutes=10))
    run = sent(ledger, plan)
    ledger.move(run.id, RunState.RUNNING)
    ledger.move(run.id, RunState.SUCCEEDED, actual_usd="3.825000", billable_seconds=3600)
    (counted,) = [spending.counted(one) for one in ledger.newest()]
    assert counted is not None
    by_hand = Fraction("3.825") * (1 + Fraction(1, 6)) + 1000 * Fraction("0.14") * 4200 / (28 * 24 * 3600)
    assert 0 <= Fraction(counted) - by_hand < Fraction(1, 100_000)
    known = spending.month(ledger.billed_since)
    assert (known.used, known.reserved) == (counted, ())


def test_an_ended_run_of_which_nobody_told_the_cost_keeps_its_ceiling(ledger: Ledger) -> None:
    run = sent(ledger, monthly(str(EACH)))
    ledger.move(run.id, RunState.RUNNING)
    ledger.move(run.id, RunState.STOPPED, note="the job is gone")
    with pytest.raises(OverBudget) as caught:
        sent(ledger, monthly(str(EACH)))
    assert "orchestrate cancel" not in str(caught.value.hint)  # it has ended: there is nothing to wait for
    assert "per_month_usd = " in str(caught.value.hint)


def test_only_this_month_and_what_reaches_into_it_counts(ledger: Ledger) -> None:
    plan = monthly("1000")
    for number, (ended_at, cost) in enumerate(
        [("2026-10-31T23:59:59.999+00:00", "7"), ("2026-11-01T00:00:00.000+00:00", "2"), ("2026-11-20T01:00:00.000+00:00", "1")]
    ):  # fmt: skip
        row = row_of(plan, id=f"r-{number}", created_at="2026-10-30T10:00:00.000+00:00")
        ledger.insert(row)
        ledger.move(row.id, RunState.RUNNING)
        ledger.move(row.id, RunState.SUCCEEDED, ended_at=ended_at, actual_usd=cost, billable_seconds=1)
    ledger.insert(row_of(plan, id="r-old", created_at="2026-08-01T00:00:00.000+00:00"))
    known = spending.month(ledger.billed_since, NOW)
    assert known.name == "2026-11"
    assert 3 <= known.used < Decimal("3.0001")
    assert [(run.id, usd) for run, usd in known.reserved] == [("r-old", EACH)]


def test_rehearsed_and_local_runs_count_nothing_and_are_never_refused(ledger: Ledger) -> None:
    limit = str(EACH)
    ledger.insert(a_run("r-local"))
    for _ in range(3):
        rehearsed = monthly(limit, rehearse=True)
        assert spending.admission(rehearsed) is None
        sent(ledger, rehearsed)
    known = spending.month(ledger.billed_since)
    assert (known.used, known.reserved, known.unknown) == (0, (), ())
    sent(ledger, monthly(limit))


def test_a_run_without_a_known_price_is_refused_where_a_month_has_a_limit(ledger: Ledger) -> None:
    with pytest.raises(OverBudget) as caught:
        sent(ledger, monthly("1000000", instance="ml.p6-b200.48xlarge"))
    assert "per_month_usd 1000000 cannot be held" in caught.value.what
    assert not ledger.newest()


def test_a_run_of_an_earlier_version_is_reckoned_and_one_without_a_price_stands_in_the_way(ledger: Ledger) -> None:
    plan = monthly(str(2 * EACH))
    ledger.insert(row_of(plan, id="r-first", plan=plans.as_json(plan), spec={"cloud": {"volume_gb": 30}}))
    known = spending.month(ledger.billed_since)
    assert [(run.id, usd) for run, usd in known.reserved] == [("r-first", EACH)]
    unpriced = accepted(spec_of("ml.p6-b200.48xlarge", max_hours=Decimal(1)))
    ledger.insert(row_of(unpriced))
    with pytest.raises(OverBudget) as caught:
        sent(ledger, plan)
    assert f"what {unpriced.run_id} can cost is not known" in caught.value.what
    terms = pricebook.Terms(contract={"ml.p6-b200.48xlarge": Decimal(1)})
    with pricebook.using(pricebook.shipped().with_terms(terms)), pytest.raises(OverBudget, match="this run can cost"):
        sent(ledger, plan)  # with a price it counts as any other does


def test_a_contract_price_above_the_list_is_what_is_reserved(home: Path) -> None:
    spec = spec_of(max_hours=Decimal(1), spending=Spending(contract=(("ml.p3.2xlarge", Decimal("38.25")),)))
    with books.prices_of(spec):
        assert most_of(accepted(spec)) > 9 * EACH
    cheap = dataclasses.replace(spec, spending=Spending(discounts=(("sagemaker", Decimal("0.9")),)))
    with books.prices_of(cheap):
        assert most_of(accepted(cheap)) == EACH


# Questions


def test_a_cloud_run_without_a_hard_stop_is_asked_for_one() -> None:
    question = spending.hard_stop_question(spec_of())
    assert question == "hard stop in hours [24]:"
    assert spending.with_hard_stop(spec_of(), "").max_hours == 24
    assert spending.with_hard_stop(spec_of(), " 1.5 ").max_hours == Decimal("1.5")
    with pytest.raises(BadInput):
        spending.with_hard_stop(spec_of(), "soon")


@pytest.mark.parametrize(
    "spec",
    [
        spec_of(max_hours=Decimal(2)), spec_of(budget_usd=Decimal(2)), spec_of(rehearse=True), TrainingSpec(),
        spec_of(spending=Spending(per_run_usd=Decimal(2))), spec_of(spot=True, cloud=CloudOptions(max_wait_hours=Decimal(2))),
    ],
)  # fmt: skip
def test_nothing_is_asked_where_something_says_when_to_stop_or_nothing_is_billed(spec: TrainingSpec) -> None:
    assert spending.hard_stop_question(spec) is None


def test_a_run_over_the_amount_is_asked_about_and_a_cheaper_one_is_not() -> None:
    dear, cheap = (accepted(spec_of(max_hours=Decimal(hours))) for hours in ("2", "1"))
    question = spending.confirmation([dear])
    assert question is not None
    assert "1 × ml.p3.2xlarge" in question
    assert "at most $7.80" in question
    assert spending.confirmation([cheap]) is None
    assert spending.confirmation([cheap, dear]) == question
    assert spending.confirmation([accepted(spec_of(max_hours=Decimal(2), rehearse=True))]) is None
    never = Spending(confirm_above_usd=Decimal(100))
    assert spending.confirmation([accepted(spec_of(max_hours=Decimal(2), spending=never))]) is None
    always = Spending(confirm_above_usd=Decimal(0))
    assert spending.confirmation([accepted(spec_of(max_hours=Decimal("0.02"), spending=always))]) is not None
    assert spending.unconfirmed(question).exit_code == 4
    assert "--yes" in str(spending.unconfirmed(question).hint)


def test_what_has_no_price_is_asked_about() -> None:
    question = spending.confirmation([accepted(spec_of("ml.p6-b200.48xlarge", max_hours=Decimal("0.02")))])
    assert "is not known" in str(question)
