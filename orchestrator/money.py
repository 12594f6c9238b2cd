"""What a run has cost, from the price that was read when it was planned: USD, rounded up, "unknown" without such a price."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Any

from estimates.cost import SECONDS_PER_HOUR, format_usd
from orchestrator.runs import Run

HERE = "local"  # the one backend whose machines cost nothing


def usd_for(plan: Mapping[str, Any], seconds: float | None) -> Decimal | None:
    """USD for *seconds* on the machines of *plan* at its own price; None where either is not known."""
    hourly = usd_per_hour(plan)
    if hourly is None or seconds is None:
        return None
    with localcontext(rounding=ROUND_CEILING):
        return hourly * math.ceil(seconds) / SECONDS_PER_HOUR  # a begun second is billed whole


def usd_per_hour(plan: Mapping[str, Any]) -> Decimal | None:
    """What all machines of *plan* cost together in an hour; None where their price is not known."""
    price = plan.get("price")
    return None if price is None else Decimal(price["usd_per_hour"]) * _count(plan)


def of_a_run(run: Run, now: str | None = None) -> Decimal | None:
    """What the machines of *run* cost, up to *now* where it has not ended; None: not known, or nothing is billed yet.

    A rehearsal is counted as if it were none.
    """
    if run.ended and run.actual_usd is not None and not run.rehearsed:
        return Decimal(run.actual_usd)
    return usd_for(run.plan, _seconds(run, now))


def so_far(run: Run, now: str | None = None) -> str:
    """Dollars up to *now*, for a line that is redrawn: `$0.0447 so far`; "" where nothing is billed yet, or not known."""
    usd = None if run.backend == HERE else of_a_run(run, now)
    if usd is None:
        return ""
    return f"would have cost {format_usd(usd)} so far" if run.rehearsed else f"{format_usd(usd)} so far"


def short(run: Run, now: str | None = None) -> str:
    """For a table's cell: `$0.0329`, `~$0.0447 so far` while it runs, `$0 (rehearsed)`, `unknown`, `-`."""
    if run.backend == HERE:
        return _usd(run.actual_usd)
    if run.rehearsed:
        return "$0 (rehearsed)"
    return _amount(run, now)


def in_full(run: Run, now: str | None = None) -> str:
    """What *run* cost, from which numbers, and what it was thought to cost."""
    most = str(run.plan.get("seconds_from") or "").startswith("at most")  # nothing but the hard stop is known
    estimated = f"{'at most' if most else 'estimated'} {_usd(run.estimated_usd)}"
    if run.backend == HERE:
        return f"{_usd(run.actual_usd)} ({estimated})"
    factors = _factors(run, now)
    if run.rehearsed:
        would = f": {factors} would have been {format_usd(of_a_run(run, now))}" if factors else ""
        return f"$0 (rehearsed{would})"
    if usd_per_hour(run.plan) is None:
        factors = "no price of this machine is known"
    return f"{_amount(run, now)} ({'; '.join(filter(None, (factors, estimated)))})"


def _amount(run: Run, now: str | None) -> str:
    if _seconds(run, now) is None and run.actual_usd is None:
        return "-"  # nothing has been billed
    usd = of_a_run(run, now)
    if usd is None or (run.ended and (run.actual_usd is not None or run.billable_seconds is not None)):
        return format_usd(usd)
    return f"~{format_usd(usd)}" + ("" if run.ended else " so far")


def _factors(run: Run, now: str | None) -> str | None:
    """`31 billable s × 1 × $3.825/h`; None where seconds or price are not known."""
    price, seconds = run.plan.get("price"), _seconds(run, now)
    if price is None or seconds is None:
        return None
    billable = "s" if run.billable_seconds is None else "billable s"
    return f"{math.ceil(seconds):,} {billable} × {_count(run.plan)} × ${price['usd_per_hour']}/h"


def _seconds(run: Run, now: str | None) -> float | None:
    """The seconds that the cloud bills, by its own count; until it tells that, by ours."""
    return run.seconds(now) if run.billable_seconds is None else run.billable_seconds


def _usd(usd: str | None) -> str:
    return "-" if usd is None else format_usd(Decimal(usd))


def _count(plan: Mapping[str, Any]) -> int:
    return int(plan.get("count") or 1)
