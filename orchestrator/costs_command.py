"""What `orchestrate costs` does behind its flags: what cloud runs have cost, beside what was thought.

Every amount is that of the run's own row, at the price that it was planned with. No cloud is asked and no price read.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal, localcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimates.cost import format_usd
from orchestrator import money, state
from orchestrator.errors import BadInput, OrchestrateError, raise_all, shown
from orchestrator.runs import Ledger, Run, utc_now
from orchestrator.tables import Column, cell, console, print_table

if TYPE_CHECKING:
    from orchestrator.spending import Month

CHOICES = ("month", "script", "machine")
SHOWN_IDS = 5


@dataclass(frozen=True)
class Entry:
    """One cloud run and what it cost, so far where it has not ended; usd is None where that is not known."""

    run: Run
    usd: Decimal | None
    billed: bool
    """False where nothing has begun that is billed."""

    @property
    def unknown(self) -> bool:
        return self.billed and self.usd is None

    @property
    def exact(self) -> bool:
        """By the cloud's own count of seconds and a price that was read."""
        price = self.run.plan.get("price") or {}
        counted = self.run.ended and (self.run.actual_usd is not None or self.run.billable_seconds is not None)
        return counted and price.get("published", True) is not False

    @property
    def estimated(self) -> Decimal | None:
        """What it was thought to cost; the most that it could where nothing else was known. None where nothing was billed."""
        return None if self.run.estimated_usd is None or not self.billed else Decimal(self.run.estimated_usd)

    @property
    def at_most(self) -> bool:
        return str(self.run.plan.get("seconds_from") or "").startswith("at most")

    def key(self, by: str) -> str:
        if by == "month":
            return begun(self.run).strftime("%Y-%m")
        if by == "script":
            return self.run.script_key
        return str((self.run.plan.get("machine") or {}).get("name") or "not known")


@dataclass(frozen=True)
class Sum:
    """Several cloud runs together."""

    entries: tuple[Entry, ...]

    @cached_property
    def usd(self) -> Decimal | None:
        """USD of those whose cost is known; None where it is of none."""
        return _added(entry.usd for entry in self.entries)

    @cached_property
    def estimated(self) -> Decimal | None:
        return _added(entry.estimated for entry in self.entries)

    @property
    def at_most(self) -> bool:
        """Whether an estimate in the sum is the most that the run could have cost, not what was expected."""
        return any(entry.at_most and entry.estimated is not None for entry in self.entries)

    @property
    def exact(self) -> bool:
        return all(entry.exact for entry in self.entries if entry.usd is not None)

    @property
    def running(self) -> int:
        return sum(1 for entry in self.entries if entry.billed and not entry.run.ended)

    @property
    def unknown(self) -> int:
        return sum(1 for entry in self.entries if entry.unknown)

    @property
    def not_billed(self) -> int:
        return sum(1 for entry in self.entries if not entry.billed)

    @cached_property
    def compared(self) -> tuple[Entry, ...]:
        """Ended runs of which both are known; what one could have cost at most is no estimate to be held against."""
        return tuple(
            entry
            for entry in self.entries
            if entry.run.ended and entry.usd is not None and entry.estimated and not entry.at_most
        )

    @property
    def ratio(self) -> Decimal | None:
        """Actual over estimated, of the runs in `compared`."""
        actual, estimated = (
            _added(entry.usd for entry in self.compared),
            _added(entry.estimated for entry in self.compared),
        )
        return None if actual is None or not estimated else actual / estimated


@dataclass(frozen=True)
class Group:
    """Runs that have one thing in common, and in it the groups of what was asked for next."""

    by: str
    key: str
    label: str
    sum: Sum
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Limit:
    """What this month's runs may cost together, and how the month stands: with what they can still come to."""

    usd: Decimal
    month: Month


@dataclass(frozen=True)
class Report:
    """All that is told: cloud runs in groups, and those that cost nothing apart."""

    by: tuple[str, ...]
    since: date | None
    until: date | None
    groups: tuple[Group, ...]
    total: Sum
    rehearsed: tuple[Run, ...]
    would_have_cost: Decimal | None
    local: tuple[Run, ...]
    limit: Limit | None

    @property
    def empty(self) -> bool:
        return not (self.total.entries or self.rehearsed or self.local)


def run(*, by: tuple[str, ...], since: str | None, until: str | None, as_json: bool, as_csv: bool) -> None:
    """Print what runs have cost. Raises BadInput, or Problems, for what was typed."""
    problems: list[OrchestrateError] = []
    wanted = tuple(by) or CHOICES[:1]
    problems.extend(_faults(wanted, as_json=as_json, as_csv=as_csv))
    first, end = _day("--since", since, problems), _day("--until", until, problems)
    if first and end and first >= end:
        problems.append(BadInput(f"no day lies between --since {first} and --until {end}", hint="put --until later"))
    raise_all(problems)
    now = utc_now()
    with Ledger.open_to_read(state.ledger_file()) as ledger:
        runs = ledger.newest()
        limit, note = _limit(ledger, now)
    found = report(runs, wanted, first, end, limit, now)
    if as_json:
        from orchestrator.render import print_json

        print_json(document(found))
    elif as_csv:
        _print_csv(found)
    else:
        _show(found)
    if note:
        print(note, file=sys.stderr)


def report(
    runs: Iterable[Run], by: tuple[str, ...], since: date | None, until: date | None, limit: Limit | None, now: str
) -> Report:
    """What *runs* that began from *since* on and before *until* (UTC) have cost up to *now*."""
    chosen = [run for run in runs if _within(begun(run).date(), since, until)]
    local = tuple(run for run in chosen if run.backend == money.HERE)
    rehearsed = tuple(run for run in chosen if run.rehearsed and run.backend != money.HERE)
    entries = tuple(_entry(run, now) for run in chosen if run.backend != money.HERE and not run.rehearsed)
    scripts = Counter(script for script, _ in {(run.script, run.script_key) for run in chosen})
    return Report(
        by, since, until, tuple(_groups(entries, by, scripts)), Sum(entries), rehearsed,
        _added(money.of_a_run(run, now) for run in rehearsed), local, limit,
    )  # fmt: skip


def begun(run: Run) -> datetime:
    """When *run* began, UTC; when it was asked for, where it never did."""
    return datetime.fromisoformat(run.started_at or run.created_at).astimezone(UTC)


def _entry(run: Run, now: str) -> Entry:
    # As money.short has it: without seconds and without an amount, nothing has been billed.
    billed = run.actual_usd is not None or run.billable_seconds is not None or run.started_at is not None
    return Entry(run, money.of_a_run(run, now) if billed else None, billed)


def _within(day: date, since: date | None, until: date | None) -> bool:
    return (since is None or day >= since) and (until is None or day < until)


def _groups(entries: Sequence[Entry], by: tuple[str, ...], scripts: Mapping[str, int]) -> Iterator[Group]:
    """Months in their order, scripts and machines dearest first."""
    if not by:
        return
    members: dict[str, list[Entry]] = {}
    for entry in entries:
        members.setdefault(entry.key(by[0]), []).append(entry)
    sums = {key: Sum(tuple(found)) for key, found in members.items()}
    dearest = (lambda key: (Decimal(0), key)) if by[0] == "month" else (lambda key: (-(sums[key].usd or 0), key))
    for key in sorted(sums, key=dearest):
        yield Group(
            by[0], key, _label(by[0], key, members[key][0].run, scripts), sums[key],
            tuple(_groups(sums[key].entries, by[1:], scripts)),
        )  # fmt: skip


def _label(by: str, key: str, run: Run, scripts: Mapping[str, int]) -> str:
    """A script's own name; all that it is known by, where two are called the same."""
    return run.script if by == "script" and scripts[run.script] == 1 else key


def _added(amounts: Iterable[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    with localcontext(rounding=ROUND_CEILING):
        return sum(known, Decimal(0)) if known else None


# What was typed


def _faults(by: tuple[str, ...], *, as_json: bool, as_csv: bool) -> Iterator[OrchestrateError]:
    for name in dict.fromkeys(by):
        if name not in CHOICES:
            yield BadInput(f"costs cannot be told by {shown(name)}", hint=f"--by {', --by '.join(CHOICES)}")
        elif by.count(name) > 1:
            yield BadInput(f"--by {name} was given {by.count(name)} times", hint="once is enough")
    if as_json and as_csv:
        yield BadInput("--json and --csv are two formats", hint="leave one of them out")


def _day(option: str, text: str | None, problems: list[OrchestrateError]) -> date | None:
    if text is None:
        return None
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
            return date.fromisoformat(text)
    except ValueError:
        pass  # the 31st of a short month
    problems.append(BadInput(f"{option} {shown(text)} is no day", hint=f"{option} {datetime.now(UTC).date()}"))
    return None


def _limit(ledger: Ledger, now: str) -> tuple[Limit | None, str | None]:
    """The month's limit of orchestrate.toml, if it has one, and a note where the file cannot be read."""
    from orchestrator import settings

    try:
        file = settings.find_file(Path.cwd())
        usd = None if file is None else settings.load(settings.Flags(), file).spending.per_month_usd
        if usd is None:
            return None, None
        from orchestrator import spending

        return Limit(usd, spending.month(ledger.billed_since, now)), None
    except OrchestrateError as error:
        return None, f"note: the limits are not shown: {error.what}"


# For people


def _show(found: Report) -> None:
    out = console()
    span = f"{f' from {found.since} on' if found.since else ''}{f' before {found.until}' if found.until else ''}"
    if found.empty:
        out.print(f"there are no runs{span} yet" if not span else f"there are no runs{span}")
        out.print("next: orchestrate submit" if not span else "next: orchestrate costs")
        return
    if found.groups:
        out.print(f"[bold]What runs have cost[/], by {', then by '.join(found.by)}{span} (UTC)")
        columns = (
            Column(" / ".join(found.by), least=16),
            Column("runs", right=True),
            Column("actual", right=True),
            Column("estimated", right=True),
            Column("actual/estimate", right=True),
            Column("no known cost", right=True),
        )
        rows = [*_lines(found.groups, 0), ("total", *_amounts(found.total))]
        cells = [[cell(word) for word in row] for row in rows]
        for each in cells[-1]:
            each.stylize("bold")
        print_table(out, columns, cells, ("estimated", "actual/estimate"))
    else:
        out.print(f"no run has been in a cloud{span}: nothing was billed")
    for line in _remarks(found):
        out.print(cell(line))
    others = [name for name in CHOICES if name not in found.by]
    next_by = f"orchestrate costs --by {others[0]}" if found.groups and others else "orchestrate list"
    out.print(f"next: {next_by}   or: orchestrate costs --csv")


def _lines(groups: Iterable[Group], depth: int) -> Iterator[tuple[str, ...]]:
    for group in groups:
        yield "  " * depth + group.label, *_amounts(group.sum)
        yield from _lines(group.groups, depth + 1)


def _amounts(of: Sum) -> tuple[str, ...]:
    """The cells of a sum. `~`: not by the cloud's own count, or not at a published price. `≤`: the most that it could be."""
    actual = "-" if of.usd is None and not of.unknown else format_usd(of.usd)
    ratio = "-" if of.ratio is None else str(of.ratio.quantize(Decimal("0.01"), ROUND_HALF_UP))
    estimated = "-" if of.estimated is None else ("≤ " if of.at_most else "") + format_usd(of.estimated)
    rough = "" if of.exact else "~"
    return str(len(of.entries)), rough + actual, estimated, ratio, str(of.unknown or "-")


def _remarks(found: Report) -> Iterator[str]:
    """What the table does not say."""
    total = found.total
    if total.unknown:
        ids = [entry.run.id for entry in total.entries if entry.unknown]
        more = ", …" if len(ids) > SHOWN_IDS else ""
        yield f"{_runs(total.unknown)} without a known cost, in no sum: {', '.join(ids[:SHOWN_IDS])}{more}"
    if total.running:
        yield f"{_runs(total.running)} not ended, as the ledger has it, counted up to now: orchestrate status asks the cloud"
    if total.not_billed:
        yield f"{_runs(total.not_billed)} never began: nothing was billed"
    if total.at_most:
        yield "≤ holds an estimate that is only the most that a run could cost; no ratio is taken of it"
    if not total.exact:
        yield "~ is not by the cloud's own count of seconds, or not at a published price"
    if total.usd is not None:
        yield "machine time alone: disks, storage, logs and transfer are on the cloud's own bill"
    if found.rehearsed:
        would = f" (would have cost {format_usd(found.would_have_cost)})" if found.would_have_cost is not None else ""
        yield f"{_runs(len(found.rehearsed))} rehearsed: $0{would}"
    if found.local:
        yield f"{_runs(len(found.local))} on this machine: $0"
    if found.limit is not None:
        yield f"limit: {found.limit.month.words(found.limit.usd)} (per_month_usd of orchestrate.toml)"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"


# For programs


def document(found: Report) -> dict[str, Any]:
    """The report as plain data: USD as decimal strings, rounded up to the millionth; what is not known is null."""
    return {
        "by": list(found.by),
        "since": None if found.since is None else found.since.isoformat(),
        "until": None if found.until is None else found.until.isoformat(),
        "groups": [_group_json(group) for group in found.groups],
        "total": _sum_json(found.total),
        "unknown_runs": [entry.run.id for entry in found.total.entries if entry.unknown],
        "rehearsed": {"runs": len(found.rehearsed), "would_have_cost_usd": _plain(found.would_have_cost)},
        "local": {"runs": len(found.local)},
        "limit": None if found.limit is None else _limit_json(found.limit),
    }


def _limit_json(limit: Limit) -> dict[str, Any]:
    return {
        "per_month_usd": _plain(limit.usd),
        "month": limit.month.name,
        "used_usd": _plain(limit.month.used),
        "reserved_usd": _plain(limit.month.reserved_usd),
        "unknown_runs": [run.id for run in limit.month.unknown],
    }


def _group_json(group: Group) -> dict[str, Any]:
    inner = {"groups": [_group_json(one) for one in group.groups]} if group.groups else {}
    return {group.by: group.key, **_sum_json(group.sum), **inner}


def _sum_json(of: Sum) -> dict[str, Any]:
    return {
        "runs": len(of.entries),
        "usd": _plain(of.usd),
        "exact": of.exact,
        "estimated_usd": _plain(of.estimated),
        "estimate_is_at_most": of.at_most,
        "actual_over_estimated": None if of.ratio is None else str(of.ratio.quantize(Decimal("0.0001"), ROUND_HALF_UP)),
        "compared_runs": len(of.compared),
        "unknown_runs": of.unknown,
        "running_runs": of.running,
        "not_billed_runs": of.not_billed,
    }


def _plain(usd: Decimal | None) -> str | None:
    with localcontext(rounding=ROUND_CEILING):
        return None if usd is None else f"{usd:.6f}"


def _print_csv(found: Report) -> None:
    """One line for each innermost group."""
    names = (*found.by, *_sum_json(found.total))
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    for keys, of in _leaves(found.groups, {}):
        writer.writerow({**keys, **_sum_json(of)})


def _leaves(groups: Iterable[Group], outer: Mapping[str, str]) -> Iterator[tuple[dict[str, str], Sum]]:
    for group in groups:
        keys = {**outer, group.by: group.key}
        if group.groups:
            yield from _leaves(group.groups, keys)
        else:
            yield keys, group.sum
