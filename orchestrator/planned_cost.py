"""The bill of a plan: what a cloud run is thought to cost, before it is sent and beside its actual cost afterwards."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from estimates import bill as bills
from estimates import pricebook
from estimates.bill import Bill, Job, Span
from estimates.cost import format_usd, prices_of
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
            around_included=plan.around_included,
            held_seconds=None if plan.held_seconds is None else Span.of(Decimal(str(plan.held_seconds))),
            disk_gb=options.volume_gb,
            keep_alive_seconds=60 * (options.keep_alive_minutes or 0),
        )
    )


def at_most(plan: Plan) -> bool:
    """Is nothing known of how long it takes but its hard stop?"""
    return plan.seconds_from.startswith("at most")


def machines_usd(plan: Plan) -> Decimal | None:
    """USD that the machines of *plan* are thought to cost: what its billable seconds will be held against.

    Where nothing but the hard stop is known, all the time until then. None: no price is known.
    """
    found = bill_of(plan)
    if found is None or found.usd is None:
        return None
    if at_most(plan):
        row = plan.machine_row()
        return None if row is None else row.usd
    usd = found.lines[0].usd
    return None if usd is None else usd.expected


def age_note(plan: Plan) -> str | None:
    """What has to be said of a price that is old; None where it is not, or not known."""
    if plan.machine is None or plan.spec.backend not in CLOUDS:
        return None
    _, listed = prices_of(plan.machine, plan.region, spot=plan.spec.spot)
    days = None if listed is None else pricebook.days_old(listed.as_of, datetime.now(UTC).date())
    return (
        None
        if days is None
        else f"the price of {plan.machine.name} was read {days} days ago: orchestrate prices refresh"
    )


def in_words(plan: Plan) -> str | None:
    """`estimate: ~$57.31 ($56.80 to $60.01), as the last run …`; None for a run on this machine."""
    found = bill_of(plan)
    if found is None or plan.machine is None:
        return None
    what = "estimate, were it no rehearsal" if plan.spec.rehearse else "estimate"
    if found.usd is None or found.price is None:
        return f"{what}: unknown, for want of a price of {plan.machine.name}"
    if at_most(plan):
        typed = f"orchestrate estimate --hours 2 --instance {plan.machine.name} --region {plan.region}"
        return f"{what}: none, it has not run on {plan.machine.name} yet; what hours of it cost: {typed}"
    derived = "" if found.price.published else "~"
    span = found.usd
    between = "" if span.exact else f" ({format_usd(span.low)} to {format_usd(span.high)})"
    return f"{what}: {derived}{format_usd(span.expected)}{between}, {plan.seconds_from}; price of {found.price.dated}"
