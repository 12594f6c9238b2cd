"""The bill of a plan: what a cloud run is thought to cost, before it is sent and beside its actual cost afterwards."""

from __future__ import annotations

from decimal import Decimal

from estimates import bill as bills
from estimates.bill import Bill, Job, Span
from estimates.cost import format_usd
from orchestrator.plan import CLOUDS, Plan


def bill_of(plan: Plan, seconds: float | None = None) -> Bill | None:
    """What *plan* costs if it takes *seconds* (default: those it is thought to take); None for a run on this machine.

    None also where nothing tells how long it takes.
    """
    seconds = plan.seconds if seconds is None else seconds
    if plan.machine is None or plan.spec.backend not in CLOUDS or seconds is None:
        return None
    options = plan.spec.cloud
    return bills.bill(
        Job(
            plan.machine,
            Span.of(Decimal(str(seconds))),
            plan.region,
            plan.spec.count,
            plan.spec.spot,
            billable=plan.seconds_are_billed,
            disk_gb=options.volume_gb,
            keep_alive_seconds=60 * (options.keep_alive_minutes or 0),
        )
    )


def in_words(plan: Plan) -> str | None:
    """`estimate: ~$57.31 ($56.80 to $60.01), as the last run …`; None for a run on this machine."""
    found = bill_of(plan)
    if found is None or plan.machine is None:
        return None
    what = "estimate, were it no rehearsal" if plan.spec.rehearse else "estimate"
    if found.usd is None or found.price is None:
        return f"{what}: unknown, for want of a price of {plan.machine.name}"
    if plan.seconds_from.startswith("at most"):
        typed = f"orchestrate estimate --hours 2 --instance {plan.machine.name} --region {plan.region}"
        return f"{what}: none, it has not run on {plan.machine.name} yet; what hours of it cost: {typed}"
    derived = "" if found.price.published else "~"
    span = found.usd
    between = "" if span.exact else f" ({format_usd(span.low)} to {format_usd(span.high)})"
    return f"{what}: {derived}{format_usd(span.expected)}{between}, {plan.seconds_from}; price of {found.price.dated}"
