"""How an estimate looks: one machine's bill as a tree, several machines as a table, both as JSON and CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import ROUND_CEILING
from typing import Any

from estimates.bill import Bill
from estimates.cost import format_usd
from orchestrator import bill_tree, estimating
from orchestrator.estimating import Question, Row
from orchestrator.tables import Column, cell, console, duration, print_pairs, print_table

SHOWN = 25
_TABLE = (
    Column("cloud"),
    Column("machine"),
    Column("GPUs"),
    Column("GiB", right=True),
    Column("region"),
    Column("hours", right=True),
    Column("on demand", right=True),
    Column("on spot", right=True),
    Column("price of"),
    Column(""),
)


def show(
    question: Question, found: Sequence[Row], *, one: bool, as_json: bool, as_csv: bool, every: bool = False
) -> None:
    """Print the estimate. one: a single machine was asked for, and gets its bill in all parts."""
    if as_json:
        from orchestrator.render import print_json

        print_json(document(question, found))
    elif as_csv:
        _print_csv(question, found)
    elif one:
        _show_bill(question, found[0])
    else:
        _show_table(question, found, every=every)


# One machine


def _show_bill(question: Question, row: Row) -> None:
    out = console()
    machine = row.machine
    many = "" if question.count == 1 else f"{question.count} × "
    what = f"{question.script} on {many}{machine.name}" if question.script else f"{many}{machine.name}"
    out.print(cell(f"{what} in {row.region}: {machine.label}"), style="bold")
    out.print(cell(f"{duration(float(row.job.seconds.expected))} of training: {row.hours_from}"))
    shown = row.spot if question.spot else row.on_demand
    if shown is None:
        out.print(cell(f"{machine.name}: no spot price is known in {row.region}"))
        return
    out.print()
    gone = bill_tree.show(shown, out)
    out.print()
    print_pairs(out, ((name, cell(words)) for name, words in _about(row, shown)))
    if gone:
        out.print(f"Too narrow here to show: {', '.join(gone)}.")
    out.print(cell(_next(question, row, shown)))


def _about(row: Row, shown: Bill) -> Iterator[tuple[str, str]]:
    """Where the figures come from, and what is not in them."""
    price = shown.price
    if price is None:
        yield "price", f"of {row.machine.name} unknown: no list and no bill of it was found, and it is not made up"
    else:
        formula = f" = {price.formula}" if price.formula else ""
        yield "price", f"{price.label}{formula}; {price.component}: {price.source}"
        if shown.listed is not None and shown.listed != price:
            yield "list price", f"{shown.listed.label}: {shown.listed.source}"
    if row.days_old is not None:
        yield "old", f"the price was read {row.days_old} days ago: orchestrate prices refresh"
    if row.retired:
        yield "withdrawn", row.retired
    for said in shown.assumptions:
        yield "assumed", said
    yield "not counted", "; ".join(shown.not_counted)


def _next(question: Question, row: Row, shown: Bill) -> str:
    script = f" {question.script.removesuffix('.py')}" if question.script == "mlp.py" else f" {question.script}"
    script = script if question.script else ""
    if not question.known:
        return f"next: orchestrate estimate{script} --instance {row.machine.name} --hours 2   or run it here first"
    if shown.usd is None:
        return "next: orchestrate estimate --all"
    count = "" if question.count == 1 else f" --count {question.count}"
    budget = shown.usd.high.to_integral_value(ROUND_CEILING)
    submit = f"orchestrate submit{script} --backend {row.machine.cloud} --instance {row.machine.name}{count}"
    return f"next: {submit} --region {row.region} --budget {budget}   or: orchestrate estimate{script} --all"


# Several machines


def _show_table(question: Question, found: Sequence[Row], *, every: bool) -> None:
    out = console()
    what = question.script or "a job"
    hours = duration(float(found[0].job.seconds.expected)) if found and question.hours is not None else ""
    out.print(cell(f"{what} on each machine{f', {hours} of training' if hours else ''}"), style="bold")
    if not found:
        out.print("no machine fits: ask for less, or leave a filter out")
        return
    if not question.known:
        out.print(cell(f"how long it trains is {estimating.NOT_KNOWN}; --hours says it, or run it here once"))
    elif question.hours is None:
        out.print(cell(f"hours: {found[0].hours_from}"))
    priced = [row for row in found if row.price is not None]
    shown = list(found) if every else _few(priced or list(found))
    gone = print_table(
        out, _TABLE, [[cell(word) for word in _table_words(row)] for row in shown],
        ("price of", "cloud", "region", "GiB", "on spot"),
    )  # fmt: skip
    left = f", {len(shown)} of them here (--all: every one)" if len(shown) < len(priced) else ""
    unknown = len(found) - len(priced)
    out.print(f"{len(priced)} machines with a price{left}; {unknown} without. Each bill's parts: --instance MACHINE.")
    for said in estimating.notes(question, found):
        out.print(cell(f"note: {said}"))
    assumed = dict.fromkeys(said.partition(":")[0] for said in estimating.all_assumed(shown, spot=True))
    out.print(cell(f"assumed (a machine's own bill says how much): {', '.join(assumed)}"))
    if gone:
        out.print(f"Too narrow here to show: {', '.join(gone)}.")
    script = f" {question.script}" if question.script else ""
    out.print(
        cell(f"next: orchestrate estimate{script} --instance {shown[0].machine.name}   or: --html FILE for a chart")
    )


def _few(found: list[Row]) -> list[Row]:
    """The cheapest, those with a mark, and the cheapest of each kind of GPU in each cloud."""
    kinds: dict[tuple[str, str | None, int], Row] = {}
    for row in found:
        kinds.setdefault((row.machine.cloud, row.machine.gpu, 0), row)
    wanted = {row.machine.name for row in found[: SHOWN // 3]} | {row.machine.name for row in kinds.values()}
    return [row for row in found if row.machine.name in wanted or row.marks]


def _table_words(row: Row) -> tuple[str, ...]:
    machine, price = row.machine, row.price
    memory = "" if not machine.gpu_memory_gib else f" {machine.gpu_memory_gib:g}"
    return (
        machine.cloud,
        machine.name + ("†" if row.retired else ""),
        f"{machine.gpu_count} × {machine.gpu}{memory}" if machine.gpu else "-",
        "-" if machine.memory_gib is None else f"{machine.memory_gib:g}",
        row.region,
        bill_tree.number(row.hours),
        _usd(row.on_demand),
        _usd(row.spot, span=True),
        price.dated if price else "-",
        ", ".join(row.marks),
    )


def _usd(bill: Bill | None, *, span: bool = False) -> str:
    """`~$57.31`, or from low to high, `$9.10–21.40`."""
    if bill is None or bill.usd is None or bill.price is None:
        return "unknown"
    derived = "" if bill.price.published else "~"
    if span and bill.usd.low != bill.usd.high:
        return f"{derived}{format_usd(bill.usd.low)}–{format_usd(bill.usd.high).removeprefix('$')}"
    return f"{derived}{format_usd(bill.usd.expected)}"


# For programs


def document(question: Question, found: Sequence[Row]) -> dict[str, Any]:
    """The whole estimate as plain data: amounts as decimal strings, USD rounded up to the millionth, unknown as null."""
    return {
        "script": question.script,
        "hours_known": question.known,
        "hours_from": found[0].hours_from if found else None,
        "count": question.count,
        "spot": question.spot,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": [_row_json(row, tree=len(found) == 1) for row in found],
        "priced": sum(1 for row in found if row.price is not None),
        "total": len(found),
        "notes": list(estimating.notes(question, found)),
        "assumptions": list(estimating.all_assumed(found, spot=question.spot)),
        "not_counted": list(estimating.all_not_counted(found)),
    }


def _row_json(row: Row, *, tree: bool) -> dict[str, Any]:
    machine, price = row.machine, row.price
    described: dict[str, Any] = {
        "machine": machine.name, "cloud": machine.cloud, "region": row.region, "vcpus": machine.vcpus,
        "memory_gib": machine.memory_gib, "gpu": machine.gpu, "gpu_count": machine.gpu_count,
        "gpu_memory_gib": machine.gpu_memory_gib, "hours": bill_tree.plain(row.hours), "hours_from": row.hours_from,
        **bill_tree.span_json("usd", row.on_demand.usd), **bill_tree.span_json("usd_spot", row.spot.usd if row.spot else None),
        "price_usd_per_hour": str(price.usd_per_hour) if price else None,
        "price_published": price.published if price else None,
        "price_formula": (price.formula or None) if price else None,
        "price_component": price.component if price else None,
        "price_region": price.region if price else None,
        "price_as_of": price.dated if price else None,
        "price_source": price.source if price else None,
        "stale": row.days_old is not None, "retired": row.retired, "marks": list(row.marks),
    }  # fmt: skip
    if tree:
        described["bill"] = [bill_tree.line_json(line) for line in row.on_demand.lines]
        described["bill_spot"] = [bill_tree.line_json(line) for line in row.spot.lines] if row.spot else None
    return described


_CSV = (
    "machine", "cloud", "region", "vcpus", "memory_gib", "gpu", "gpu_count", "gpu_memory_gib", "hours", "usd_low", "usd",
    "usd_high", "usd_spot_low", "usd_spot", "usd_spot_high", "price_usd_per_hour", "price_published", "price_as_of",
    "price_source", "stale", "retired", "marks",
)  # fmt: skip


def _print_csv(question: Question, found: Sequence[Row]) -> None:
    writer = csv.DictWriter(sys.stdout, _CSV, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in document(question, found)["rows"]:
        writer.writerow({**row, "marks": " ".join(row["marks"])})
