"""A bill as a tree, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import TYPE_CHECKING, Any

from estimates.bill import Bill, Line, Span
from estimates.cost import format_usd
from orchestrator.tables import Column, cell, console, print_table

if TYPE_CHECKING:
    from rich.console import Console

_TREE = (
    Column("part", least=24),
    Column("quantity", right=True),
    Column("price", right=True),
    Column("low", right=True),
    Column("expected", right=True),
    Column("high", right=True),
    Column("price of"),
)


def show(bill: Bill, out: Console | None = None) -> list[str]:
    """Print *bill*: its total, then every part. Returns the names of the columns for which it was too narrow."""
    lines = [("total", Line("total", usd=bill.usd)), *flat(bill.lines)]
    cells = [[cell(word) for word in _tree_words(*line)] for line in lines]
    return print_table(out or console(), _TREE, cells, ("price of", "low", "quantity"))


def flat(lines: Sequence[Line], before: str = "") -> Iterator[tuple[str, Line]]:
    """Every line with the branches of the tree before its name."""
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        yield f"{before}{'└─ ' if last else '├─ '}{line.what}", line
        yield from flat(line.lines, before + ("   " if last else "│  "))


def _tree_words(name: str, line: Line) -> tuple[str, ...]:
    quantity = "" if line.quantity is None else f"{number(line.quantity.expected)} {line.unit}"
    if line.usd is None:
        return name, quantity, "unknown", "unknown", "unknown", "unknown", ""
    price = "" if line.price is None else f"{'' if line.published else '~'}${line.price.expected.normalize():f}"
    money = tuple(format_usd(part) for part in (line.usd.low, line.usd.expected, line.usd.high))
    return name, quantity, price, *money, line.as_of


def number(value: Decimal) -> str:
    """At most four digits behind the point, rounded up."""
    with localcontext(rounding=ROUND_CEILING):
        rounded = value.quantize(Decimal("0.0001"))
    return f"{rounded.normalize():,f}"


def span_json(name: str, span: Span | None) -> dict[str, str | None]:
    if span is None:
        return {f"{name}_low": None, name: None, f"{name}_high": None}
    return {f"{name}_low": plain(span.low), name: plain(span.expected), f"{name}_high": plain(span.high)}


def line_json(line: Line) -> dict[str, Any]:
    return {
        "what": line.what,
        **span_json("quantity", line.quantity),
        "unit": line.unit or None,
        **span_json("price", line.price),
        **span_json("usd", line.usd),
        "published": line.published,
        "as_of": line.as_of or None,
        "region": line.region or None,
        "source": line.source or None,
        "note": line.note or None,
        "lines": [line_json(part) for part in line.lines],
    }


def plain(value: Decimal) -> str:
    with localcontext(rounding=ROUND_CEILING):
        text = f"{value:.6f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
