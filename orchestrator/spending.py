"""What may be spent: a month's limit and what counts against it, and the questions before a cloud run that costs money.

A month's limit counts what ended runs cost and the ceiling of each that has not ended: its reservation. It is added up in the
transaction that writes a run's row, so of two commands at once the second sees the first. A run counts in every month in
which it was not over, with all of its cost: no month gets more than its limit, however its runs lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, localcontext
from fractions import Fraction
from typing import Any

from estimates import catalog, ceiling
from estimates.ceiling import Ceiling
from estimates.cost import format_usd
from orchestrator import budgets, cloudspec, planned_cost
from orchestrator import spec as specs
from orchestrator.aws import place as places
from orchestrator.errors import OverBudget, raise_all
from orchestrator.plan import CLOUDS, Plan
from orchestrator.runs import Run, RunState, utc_now
from orchestrator.spec import TrainingSpec

BilledSince = Callable[[str], list[Run]]
SHOWN_RUNS = 5


# What a run can cost


def is_billed(spec: TrainingSpec) -> bool:
    """Does somebody pay for it? Not for a run on this machine, nor for a rehearsal."""
    return spec.backend in CLOUDS and not spec.rehearse


def ceiling_of(plan: Plan) -> tuple[Ceiling | None, int]:
    """The most that *plan* can be billed, and the seconds of its hard stop; None where a price is not known."""
    spec, machine = plan.spec, plan.machine
    if machine is None:
        return None, 0
    if plan.cloud is not None:
        return places.ceiling_of(spec, machine, plan.cloud.region), plan.cloud.max_seconds
    return budgets.vertex_ceiling(spec, machine), budgets.vertex_stop(spec, machine, [])[0]


def reservation(plan: Plan) -> dict[str, Any] | None:
    """The ceiling of *plan* as its row keeps it: prices that change later change nothing of it. None: not known, or none."""
    if plan.spec.backend not in CLOUDS:
        return None
    most, seconds = ceiling_of(plan)
    return None if most is None else as_json(most, seconds, 60 * (plan.spec.cloud.keep_alive_minutes or 0))


def as_json(most: Ceiling, seconds: int, kept_seconds: int = 0) -> dict[str, Any]:
    """*most* for a hard stop after *seconds*, after which the machines may be kept warm for *kept_seconds*."""
    disk = Fraction(0) if most.disk is None else most.usd_per_second - _without_disk(most)
    return {
        "usd": str(_micros(most.usd_at(seconds))),
        "seconds": seconds,
        "usd_per_second": str(_rounded_up(most.usd_per_second)),
        "disk_usd_per_second": str(_rounded_up(disk)),
        "kept_seconds": kept_seconds,
    }


def _micros(usd: Decimal) -> Decimal:
    """To the millionth, rounded up: such sums are exact, whatever their order."""
    with localcontext(rounding=ROUND_CEILING):
        return usd.quantize(Decimal("0.000001"))


def _without_disk(most: Ceiling) -> Fraction:
    return dataclasses.replace(most, disk=None).usd_per_second


def _rounded_up(usd: Fraction) -> Decimal:
    with localcontext(rounding=ROUND_CEILING):
        return Decimal(usd.numerator) / usd.denominator


# A month


@dataclass(frozen=True)
class Month:
    """How a calendar month (UTC) stands. reserved: what each run that may still cost something can come to."""

    name: str
    used: Decimal
    reserved: tuple[tuple[Run, Decimal], ...]
    unknown: tuple[Run, ...]

    @property
    def reserved_usd(self) -> Decimal:
        return sum((usd for _, usd in self.reserved), Decimal(0))

    def left(self, limit: Decimal) -> Decimal:
        return limit - self.used - self.reserved_usd

    def words(self, limit: Decimal) -> str:
        """`$62.10 of $100.00 used in 2026-11, $30.00 reserved by r-… ($20.00) and r-… ($10.00), $7.90 left`."""
        said = [f"{format_usd(self.used)} of {format_usd(limit)} used in {self.name}"]
        if self.reserved:
            runs = [f"{run.id} ({format_usd(usd)})" for run, usd in self.reserved]
            more = f" and {len(runs) - SHOWN_RUNS} more" if len(runs) > SHOWN_RUNS else ""
            said.append(f"{format_usd(self.reserved_usd)} reserved by {', '.join(runs[:SHOWN_RUNS])}{more}")
        left = max(self.left(limit), Decimal(0))
        return ", ".join((*said, f"{_rounded_down(left)} left"))


def month(billed_since: BilledSince, now: str | None = None) -> Month:
    """The month of *now* (UTC, ISO 8601; default: this moment), by the runs that Ledger.billed_since tells of."""
    name = (now or utc_now())[:7]
    used, reserved, unknown = Decimal(0), [], []
    for run in billed_since(f"{name}-01"):
        usd = counted(run)
        if usd is None:
            unknown.append(run)
        elif run.ended and run.actual_usd is not None:
            used += usd
        elif usd:
            reserved.append((run, usd))
    return Month(name, used, tuple(reserved), tuple(unknown))


def counted(run: Run) -> Decimal | None:
    """USD of *run* that a month's limit counts; None where no price of it is known.

    What it cost once it has ended, with its disks and, at the most, its warm pool; until then, and where nobody told what was
    billed, its ceiling. Nothing if it never had a machine. A run without a ceiling in its row, of an earlier version or brought
    in from the cloud, is reckoned with the prices of today.
    """
    if run.backend not in CLOUDS or run.rehearsed or run.state == RunState.ABANDONED:
        return Decimal(0)
    if run.ended and run.started_at is None and not run.billable_seconds:
        return Decimal(0)
    kept: dict[str, Any] | None = run.plan.get("ceiling") or _reckoned(run)
    if not run.ended or run.actual_usd is None:
        return None if kept is None else Decimal(kept["usd"])
    actual = Decimal(run.actual_usd)
    if kept is None:
        return actual
    disks = Decimal(kept["disk_usd_per_second"]) * (run.billable_seconds or 0)
    warm = Decimal(kept["usd_per_second"]) * int(kept["kept_seconds"])
    return _micros(min(actual + disks + warm, max(actual, Decimal(kept["usd"]))))


def _reckoned(run: Run) -> dict[str, Any] | None:
    """The ceiling of a run whose row has none."""
    cloud, options = run.plan.get("cloud") or {}, run.spec.get("cloud") or {}
    named = run.plan.get("machine") or {}
    seconds = cloud.get("max_seconds")
    if seconds is None or run.region is None:
        return None
    kept_seconds = 60 * (options.get("keep_alive_minutes") or 0)
    try:
        most = ceiling.of(
            catalog.machine(str(named.get("name")), cloud=run.backend),
            count=int(run.plan.get("count") or 1),
            region=run.region,
            spot=cloud.get("max_wait_seconds") is not None,
            disk_gb=int(options.get("volume_gb") or specs.CloudOptions.volume_gb),
            keep_alive_seconds=kept_seconds,
            stop_seconds=places.STOP_SECONDS,
        )
    except catalog.CatalogError:
        return None
    return None if most is None else as_json(most, seconds, kept_seconds)


def admission(plan: Plan) -> Callable[[BilledSince], None] | None:
    """What Ledger.insert is to ask before it writes the row of *plan*: does it fit into the month? None: it need not.

    Raises OverBudget, then and there, where it does not fit or where that cannot be told.
    """
    limit = plan.spec.spending.per_month_usd
    if limit is None or not is_billed(plan.spec):
        return None
    most, seconds = ceiling_of(plan)
    if most is None:
        name = plan.machine.name if plan.machine else "the machine"
        what = f"the price of {name} is unknown, so per_month_usd {limit} cannot be held"
        raise OverBudget(what, hint=f'[prices.contract] "{name}" = USD an hour, or a machine with a known price')

    def admit(billed_since: BilledSince) -> None:
        check_month(month(billed_since), most, seconds, limit)

    return admit


def check_month(known: Month, most: Ceiling, seconds: int, limit: Decimal) -> None:
    """Raise OverBudget where a run of *seconds* does not fit into what is left of *limit*."""
    if known.unknown:
        names = ", ".join(run.id for run in known.unknown[:SHOWN_RUNS])
        what = f"what {names} can cost is not known, so per_month_usd {limit} cannot be held"
        machine = (known.unknown[0].plan.get("machine") or {}).get("name") or "MACHINE"
        raise OverBudget(what, hint=f'[prices.contract] "{machine}" = USD an hour, or take per_month_usd out')
    left = known.left(limit)
    worst = _micros(most.usd_at(seconds))
    if worst <= left:
        return
    what = f"per_month_usd {limit}: {known.words(limit)}; this run can cost {most.shown(seconds)}"
    fitting = most.seconds_within(left - Decimal("0.000001"))  # so that it fits when it has been rounded up
    if fitting >= budgets.MIN_SECONDS:
        raise OverBudget(what, hint=f"--max-hours {budgets.hours_of(fitting)} fits")
    raise OverBudget(what, hint=_way_out(known, limit + worst - left))


def _way_out(known: Month, enough: Decimal) -> str:
    higher = f"per_month_usd = {budgets.cents(enough)} in [limits]"
    alive = [(usd, run) for run, usd in known.reserved if not run.ended]
    if not alive:
        return higher
    run = max(alive, key=lambda entry: entry[0])[1]
    return f"wait for {run.id} to end (orchestrate status {run.id}), orchestrate cancel {run.id}, or {higher}"


def _rounded_down(usd: Decimal) -> str:
    """What is left is never said to be more than it is."""
    return f"${int(usd * 100) / Decimal(100):,.2f}"


# Questions


def hard_stop_question(spec: TrainingSpec) -> str | None:
    """What to ask at a terminal where nothing says when a cloud run is to be stopped; None where something does."""
    wait = spec.cloud.max_wait_hours
    waits = spec.spot and wait is not None and wait < budgets.DEFAULT_HOURS
    if not is_billed(spec) or spec.max_hours is not None or budgets.of(spec) is not None or waits:
        return None
    return f"hard stop in hours [{budgets.DEFAULT_HOURS}]:"


def with_hard_stop(spec: TrainingSpec, answer: str) -> TrainingSpec:
    """*spec* stopped as was answered to hard_stop_question; an empty answer is a day. Raises BadInput."""
    hours = specs.hours(answer.strip() or budgets.DEFAULT_HOURS)
    raise_all(cloudspec.check_together(spec.cloud, spot=spec.spot, max_hours=hours))
    return dataclasses.replace(spec, max_hours=hours)


def confirmation(plans: Sequence[Plan]) -> str | None:
    """What to ask before the first of *plans* is sent, if the dearest of them costs over confirm_above_usd; else None.

    By its estimate, else its ceiling. What costs nobody knows what is asked about too.
    """
    asked = [found for found in map(_amount, plans) if found is not None]
    return max(asked, key=lambda found: found[0])[1] if asked else None


def _amount(plan: Plan) -> tuple[Decimal, str] | None:
    """What *plan* costs and the words for it, if it is to be asked about."""
    spec, machine = plan.spec, plan.machine
    if not is_billed(spec) or machine is None:
        return None
    most, seconds = ceiling_of(plan)
    machines = f"{spec.count} × {machine.name}"
    if most is None:
        return Decimal("Infinity"), f"what {machines} cost is not known, and the hard stop is after {_hours(seconds)}"
    worst = most.usd_at(seconds)
    bill = planned_cost.bill_of(plan)
    usd = worst if bill is None or bill.usd is None else min(bill.usd.expected, worst)
    if usd <= spec.spending.confirm_above_usd:
        return None
    derived = "" if most.price.published else "~"
    about = f"about {derived}{format_usd(usd)}, " if usd < worst else ""
    return usd, f"{machines}: {about}at most {most.shown(seconds)} until the hard stop after {_hours(seconds)}"


def unconfirmed(question: str) -> OverBudget:
    """What is raised where nobody can be asked, or said no: nothing has been sent."""
    return OverBudget(question, hint="--yes to spend it, or a higher confirm_above_usd in [limits]; nothing was sent")


def _hours(seconds: int) -> str:
    return f"{Decimal(seconds) / 3600:.3g} h"
