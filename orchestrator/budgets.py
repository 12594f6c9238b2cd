"""A budget for one run, held by its hard stop: how many seconds of these machines it buys at the most, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

from estimates import catalog, ceiling
from estimates.bill import DEFAULT_DISK_GB
from estimates.ceiling import Ceiling
from orchestrator import spec as specs
from orchestrator.errors import OrchestrateError, OverBudget
from orchestrator.spec import TrainingSpec

DEFAULT_HOURS = 24  # SageMaker's own default, said aloud; Vertex AI's of a week is too long to be met by surprise
MAX_SECONDS = int(specs.MAX_HOURS * 3600)
MIN_SECONDS = 60


@dataclass(frozen=True)
class Budget:
    """What one run may cost, USD, and where that stands: *name* as it is said, *raised* as one types another sum."""

    usd: Decimal
    name: str
    raised: str

    @property
    def words(self) -> str:
        return f"{self.name} {self.usd}"


def of(spec: TrainingSpec) -> Budget | None:
    """The budget of a run: --budget or [limits] per_run_usd, whichever is less; None where there is neither."""
    found = []
    if spec.budget_usd is not None:
        found.append(Budget(spec.budget_usd, "--budget", "--budget {}"))
    if spec.spending.per_run_usd is not None and spec.backend != "local":
        found.append(Budget(spec.spending.per_run_usd, "per_run_usd", "per_run_usd = {} in [limits]"))
    return min(found, key=lambda budget: budget.usd, default=None)


def names_of_limits(spec: TrainingSpec) -> str:
    """What of money is held for this run: `--budget 10 and per_month_usd 100`; "" where nothing is."""
    budget, month = of(spec), spec.spending.per_month_usd
    names = [] if budget is None else [budget.words]
    if month is not None and not spec.rehearse:
        names.append(f"per_month_usd {month}")
    return " and ".join(names)


def asked_seconds(spec: TrainingSpec) -> int | None:
    """--max-hours in whole seconds."""
    return None if spec.max_hours is None else int(spec.max_hours * 3600)


def hold(
    spec: TrainingSpec,
    machine: catalog.Machine,
    most: Ceiling | None,
    *,
    longest: int = MAX_SECONDS,
    where: str = "",
    problems: list[OrchestrateError],
) -> tuple[int, str]:
    """Seconds until the hard stop, and where they come from, so that the budget of *spec* cannot be overrun.

    That is --max-hours if the budget allows it, else what the budget buys, *longest* at the most. Without a price, and where
    the budget buys less than a minute or less than was asked for, OverBudget goes to *problems*.
    """
    budget, asked = of(spec), asked_seconds(spec)
    assert budget is not None, "there is something to hold"
    if most is None:
        what = f"the price of {machine.name}{where} is unknown, so {budget.words} cannot be held"
        problems.append(OverBudget(what, hint="choose a machine with a known price, or --max-hours in its place"))
        return 0, ""
    bought = most.seconds_within(budget.usd)
    if bought < MIN_SECONDS:
        least = cents(most.usd_at(MIN_SECONDS if asked is None else asked))
        what = f"{budget.words} buys {max(0, bought)} s of {spec.count} × {machine.name}"
        problems.append(OverBudget(what, hint=f"a cheaper machine, or {budget.raised.format(least)} at least"))
    elif asked is not None and asked > bought:
        allowed = hours_of(bought)
        limit = f"the budget of ${budget.usd}" if budget.name == "--budget" else f"{budget.words} of [limits]"
        what = f"worst case {most.shown(asked)} ({spec.max_hours} h × {spec.count} × {machine.name})"
        what += f" is over {limit}"
        problems.append(OverBudget(what, hint=f"the budget buys {allowed} h: --max-hours {allowed}"))
    if asked is not None:
        return asked, "--max-hours"
    if longest < bought:
        return longest, "--max-wait" if longest < MAX_SECONDS else f"the longest there is, within {budget.words}"
    return bought, f"what {budget.words} buys at {most.words}"


def vertex_stop(spec: TrainingSpec, machine: catalog.Machine, problems: list[OrchestrateError]) -> tuple[int, str]:
    """`timeout` of a job of Vertex AI in seconds, and where it comes from; see hold."""
    asked = asked_seconds(spec)
    if of(spec) is not None:
        region = vertex_region(spec)
        return hold(spec, machine, vertex_ceiling(spec, machine), where=f" in {region}", problems=problems)
    return (DEFAULT_HOURS * 3600, f"no --max-hours: {DEFAULT_HOURS} h") if asked is None else (asked, "--max-hours")


def vertex_ceiling(spec: TrainingSpec, machine: catalog.Machine) -> Ceiling | None:
    """The most that a job of Vertex AI can be billed."""
    disk = DEFAULT_DISK_GB["vertex"]
    return ceiling.of(machine, count=spec.count, region=vertex_region(spec), spot=spec.spot, disk_gb=disk)


def vertex_region(spec: TrainingSpec) -> str:
    known = spec.region is not None and spec.region in catalog.regions("vertex")
    return str(spec.region) if known else catalog.DEFAULT_REGION["vertex"]


def hours_of(seconds: int) -> Decimal:
    """*seconds* as hours to type: never more, to the thousandth unless that would be under a minute."""
    short = (Decimal(seconds) / 3600).quantize(Decimal("0.001"), ROUND_FLOOR)
    if short * 3600 >= MIN_SECONDS:
        return short
    return (Decimal(seconds) / 3600).quantize(Decimal("0.000001"), ROUND_CEILING)  # read back, the same whole seconds


def cents(usd: Decimal) -> Decimal:
    """*usd* to the cent, rounded up."""
    with localcontext(rounding=ROUND_CEILING):
        return usd.quantize(Decimal("0.01"))
