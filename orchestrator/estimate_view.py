"""How an estimate looks: one machine's bill as a tree, several machines as a table, both as JSON and CSV."""

from __future__ import annotations

import csv
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

from estimates import catalog, ceiling
from estimates.bill import DEFAULT_DISK_GB, Bill
from estimates.catalog import Machine
from estimates.cost import format_usd
from orchestrator import bill_tree, estimating
from orchestrator.budgets import MIN_SECONDS
from orchestrator.comparison import cheapest_of_each_kind
from orchestrator.estimating import Question, Row
from orchestrator.tables import Column, cell, console, counted, duration, print_pairs, print_table

CHEAPEST = 8  # of all kinds, in a table that shows a few
LAUNCHED = ("sagemaker",)  # the clouds to which this version's submit can send
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
        out.print(cell(_next(question, row, None)))
        return
    out.print()
    gone = bill_tree.show(shown, out)
    out.print()
    print_pairs(out, ((name, cell(words)) for name, words in _about(question, row, shown)))
    if gone:
        out.print(f"Too narrow here to show: {', '.join(gone)}.")
    out.print(cell(_next(question, row, shown)))


def _about(question: Question, row: Row, shown: Bill) -> Iterator[tuple[str, str]]:
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
    for said in estimating.free_tier_notes(question, [row]):
        yield "free tier", said
    for said in shown.assumptions:
        yield "assumed", said
    yield "not counted", "; ".join(shown.not_counted)


# What to type next: what was typed, with a machine


def _next(question: Question, row: Row, shown: Bill | None) -> str:
    """The next command for one machine. shown: its bill; None: there is none on spot."""
    machine = row.machine
    of_it = _estimate(question, machine)
    if shown is None and row.price is not None:
        return f"next: {_estimate(question, machine, spot=False)}   or: {_refresh(machine, row)}"
    if shown is None or shown.usd is None:
        return f"next: {_refresh(machine, row)}   or: {_estimate(question)}"
    if not question.known:
        return f"next: {of_it}   or run it here first"
    if machine.cloud not in LAUNCHED:
        return f"next: {_estimate(question, cloud=LAUNCHED[0])}   or: orchestrate machines {machine.name}"
    return f"next: {_submit(question, row, shown)}   or: {_estimate(question)}"


def _estimate(
    question: Question,
    machine: Machine | None = None,
    *,
    cloud: str | None = None,
    spot: bool = True,
) -> str:
    """The same estimate of one machine, of one cloud or, of neither, of all machines."""
    typed = question.typed
    only = machine.cloud if machine is not None else cloud
    words = list(typed.own) if question.known else ["--hours", "2", *typed.own]
    if machine is not None:
        words += ["--instance", machine.name]
    elif cloud is not None:
        words += ["--backend", cloud]
    else:
        words.append("--all")
    for region in typed.regions:
        words += ["--region", region] if only is None or region in catalog.regions(only) else []
    if typed.data_region is not None and (only is None or typed.data_region in catalog.regions(only)):
        words += ["--data-region", typed.data_region]
    words += typed.shared if spot else [*(word for word in typed.shared if word != "--spot"), "--no-spot"]
    return _command("estimate", question, words)


def _submit(question: Question, row: Row, shown: Bill) -> str:
    words = ["--backend", row.machine.cloud, "--instance", row.machine.name, "--region", row.region]
    return _command("submit", question, [*words, *question.typed.shared, "--budget", str(_budget(row, shown))])


def _budget(row: Row, shown: Bill) -> int:
    """Whole USD with which the hard stop comes after the longest that it may take.

    It is bought at the list price and without the discount of spot, which nobody promises: the expected bill is less.
    """
    from orchestrator.aws.place import STOP_SECONDS  # only where a submit is named

    job = row.job
    held = [line.quantity.high for line in row.on_demand.lines[0].lines if line.quantity is not None]
    seconds = math.ceil(sum(held, Decimal(0)) * estimating.SECONDS_PER_HOUR / job.count)
    disk_gb = DEFAULT_DISK_GB[row.machine.cloud] if job.disk_gb is None else job.disk_gb
    most = ceiling.of(
        row.machine, count=job.count, region=row.region, spot=job.spot, disk_gb=disk_gb, stop_seconds=STOP_SECONDS,
        book=row.book,
    )  # fmt: skip
    usd = [most.usd_at(max(seconds, MIN_SECONDS))] if most is not None else []
    usd += [shown.usd.high] if shown.usd is not None else []
    return max(1, *(int(one.to_integral_value(ROUND_CEILING)) for one in usd))


def _refresh(machine: Machine, row: Row) -> str:
    words = ["orchestrate", "prices", "refresh", "--cloud", machine.cloud]
    return shlex.join([*words, "--region", row.region] if row.job.region is not None else words)


def _command(verb: str, question: Question, words: Sequence[str]) -> str:
    """A command as it is typed, in full."""
    typed = question.typed
    script = [] if typed.script is None else [typed.script]
    arguments = [] if typed.arguments is None else ["--", *typed.arguments]
    return shlex.join(["orchestrate", verb, *script, *words, *arguments])


# Several machines


def _show_table(question: Question, found: Sequence[Row], *, every: bool) -> None:
    out = console()
    what = question.script or "a job"
    hours = duration(float(found[0].job.seconds.expected)) if found and question.hours is not None else ""
    out.print(cell(f"{what} on each machine{f', {hours} of training' if hours else ''}"), style="bold")
    if not found:
        out.print("no machine fits: ask for less, or leave a filter out")
        out.print(cell(f"next: {_estimate(question)}"))
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
    out.print(f"{counted(len(priced), 'machine')} with a price{left}; {unknown} without.")
    out.print("Costs are those expected; low, high and a bill's parts: --instance MACHINE.")
    for said in estimating.notes(question, found):
        out.print(cell(f"note: {said}"))
    assumed = dict.fromkeys(said.partition(":")[0] for said in estimating.all_assumed(shown, spot=True))
    out.print(cell(f"assumed (a machine's own bill says how much): {', '.join(assumed)}"))
    if gone:
        out.print(f"Too narrow here to show: {', '.join(gone)}.")
    first = shown[0]
    this = _refresh(first.machine, first) if not priced else _estimate(question, first.machine)
    out.print(cell(f"next: {this}   or: --html FILE for a chart"))


def _few(found: list[Row]) -> list[Row]:
    """The cheapest, those with a mark, and the cheapest of each kind of GPU in each cloud."""
    wanted = {row.machine.name for row in (*found[:CHEAPEST], *cheapest_of_each_kind(found))}
    return [row for row in found if row.machine.name in wanted or row.marks]


def _table_words(row: Row) -> tuple[str, ...]:
    machine, price = row.machine, row.price
    return (
        machine.cloud,
        machine.name + ("†" if row.retired else ""),
        machine.gpus or "-",
        "-" if machine.memory_gib is None else f"{machine.memory_gib:g}",
        row.region,
        bill_tree.number(row.hours),
        _usd(row.on_demand),
        _usd(row.spot),
        price.dated if price else "-",
        ", ".join(row.marks),
    )


def _usd(bill: Bill | None) -> str:
    """What is expected: `~$57.31`."""
    if bill is None or bill.usd is None or bill.price is None:
        return "unknown"
    derived = "" if bill.price.published else "~"
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
