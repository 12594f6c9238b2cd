"""What the same run would cost in both clouds: the machine that was named, then the cheapest of each kind."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from estimates import catalog, cost
from orchestrator.plan import Plan
from orchestrator.tables import Column, cell, console, duration, print_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_COST_COLUMNS = (
    Column("cloud"),
    Column("machine"),
    Column("what", least=28, cut=True),
    Column("region"),
    Column("$/hour", right=True),
    Column("this run", right=True),
    Column("price of"),
)


def show_costs(plan: Plan, seconds: float | None, seconds_from: str, out: Console | None = None) -> None:
    """What the same run would cost in both clouds: the machine that was named, then the cheapest of each kind."""
    out = out or console()
    rows = plan.cost_rows(seconds)
    how_long = f"{duration(seconds)} ({seconds_from})" if seconds is not None else seconds_from
    out.print("[bold]The same run in the cloud[/]")
    out.print(cell(f"for {how_long}; how fast each machine would be is not predicted yet"))
    own = plan.machine_row(seconds)
    shown = [own] if own else []
    shown += [row for row in cheapest_of_each_kind(rows) if own is None or row.machine != own.machine]
    gone = print_table(
        out, _COST_COLUMNS, [_cost_cells(row) for row in shown], ("price of", "region", "what", "cloud", "$/hour")
    )
    out.print(
        f"{len(rows)} machines have a price here (all with --json); ~ is derived, not published; of the others it is unknown."
        " Machine time only: orchestrate estimate has the whole bill."
        + (f" Too narrow here to show: {', '.join(gone)}." if gone else "")
    )


def _cost_cells(row: cost.CostRow) -> list[Text]:
    price = row.price
    derived = "" if price is None or price.published else "~"
    hourly = "unknown" if price is None else f"{derived}{_four_digits(price.usd_per_hour * row.count)}"
    cost_text = (derived if row.usd is not None else "") + cost.format_usd(row.usd) if row.hours is not None else "-"
    machine = row.machine.name if row.count == 1 else f"{row.count} × {row.machine.name}"
    dated = price.dated if price else "-"
    words = (row.machine.cloud, machine, row.machine.label, row.region, hourly, cost_text, dated)
    return [cell(text) for text in words]


def _four_digits(usd: Decimal) -> str:
    with localcontext(rounding=ROUND_CEILING):
        return f"${usd:,.4f}"


class OfAMachine(Protocol):
    """A row of a table of machines."""

    @property
    def machine(self) -> catalog.Machine: ...


RowOf = TypeVar("RowOf", bound=OfAMachine)


def cheapest_of_each_kind(rows: Iterable[RowOf]) -> list[RowOf]:
    """The first row of every kind of accelerator in each cloud."""
    kinds: dict[tuple[str, str | None], RowOf] = {}
    for row in filter(lambda row: catalog.suggested(row.machine), rows):
        kinds.setdefault((row.machine.cloud, row.machine.gpu), row)
    return list(kinds.values())


def costs_json(plan: Plan, seconds: float | None) -> list[dict[str, Any]]:
    rows = list(plan.cost_rows(seconds))
    own = plan.machine_row(seconds)
    if own is not None and own.price is None:
        rows.append(own)
    return [dict(cost.as_json(row)) for row in rows]
