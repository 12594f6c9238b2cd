"""Which of several offers to look at first: the cheapest, the fastest, and the knee of the trade between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

Point = tuple[Decimal | None, Decimal | None]
_Known = tuple[Decimal, Decimal, int]
"""Hours, USD, place in what was asked."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Places in the sequence that was asked; None where there is no such point."""

    cheapest: int | None = None
    fastest: int | None = None
    knee: int | None = None


def marks(points: Sequence[Point]) -> Marks:
    """The cheapest, the fastest and the knee of *points*, each (hours, USD); one with an unknown is never marked.

    Of equally cheap points the faster is marked, of equally fast ones the cheaper, of equal ones the first. The knee is the
    point of the Pareto front (none is both faster and cheaper) that lies farthest below the line between the front's
    ends, where a doubling of the hours weighs as much as a doubling of the price. None where the front has fewer than three
    points, or where none lies below that line: then every step along it buys as much as the whole way, or less.
    """
    known = [(hours, usd, at) for at, (hours, usd) in enumerate(points) if hours is not None and usd is not None]
    if not known:
        return Marks()
    cheapest = min(known, key=lambda point: (point[1], point[0], point[2]))
    fastest = min(known)
    return Marks(cheapest[2], fastest[2], _knee(known))


def front(points: Sequence[_Known]) -> list[_Known]:
    """Those of *points* to which no other is preferable in both hours and USD, fastest first; of equal ones the first."""
    kept: list[_Known] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def _knee(known: Sequence[_Known]) -> int | None:
    # What is free, or takes no time, has no logarithm, and nothing to trade.
    ours = front([point for point in known if point[0] > 0 and point[1] > 0])
    if len(ours) < 3:
        return None
    placed = [(math.log(hours), math.log(usd)) for hours, usd, _ in ours]
    (x0, y0), (x1, y1) = placed[0], placed[-1]
    # Twice the triangle's area: the distance from the line, but for a factor that is the same for all.
    below = [(x - x0) * (y1 - y0) - (x1 - x0) * (y - y0) for x, y in placed]
    best = max(range(len(ours)), key=lambda number: (below[number], -number))
    # Three points in a line differ by rounding alone; that is no knee.
    scale = abs(x1 - x0) * abs(y1 - y0)
    return ours[best][2] if below[best] > 1e-9 * scale else None
