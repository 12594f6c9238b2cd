"""Reads prices and rates from files, the shipped tables and a user's own alike; a damaged one is named by file and line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TypeVar

from estimates.rows import CLOUD_NAMES, PRECISIONS, CatalogError, Price, dated, machines

PRICE_COLUMNS = (
    "cloud", "machine", "region", "market", "component", "usd_per_hour", "as_of", "as_of_precision", "grade", "source",
    "note",
)  # fmt: skip
RATE_COLUMNS = (
    "cloud", "item", "region", "usd", "unit", "as_of", "as_of_precision", "source", "published", "note",
)  # fmt: skip
MARKETS = ("on_demand", "spot")
# Wide about every rate that is known (0.004 to 0.66): what lies outside is of another unit or another machine.
USD_PER_VCPU_HOUR = (Decimal("0.001"), Decimal(20))
Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Rate:
    """What one unit of something that is not a machine costs: disks, storage, logs, transfer."""

    item: str
    usd: Decimal
    unit: str
    """`GB-month`, `GiB-month`, `GB`, `1,000 requests`."""
    region: str
    """A region, or `*` where it is the same everywhere or no source tells them apart."""
    as_of: date
    source: str
    published: bool
    note: str = ""
    as_of_precision: str = "day"
    cloud: str = ""
    """Whose; `gce`: of what lies beneath Vertex AI; "": of whichever is asked."""

    @property
    def dated(self) -> str:
        """The date as precisely as it is known: `2025-11-04`, `2023-12`."""
        return dated(self.as_of, self.as_of_precision)


def prices(path: Path, latest: date | None = None) -> dict[tuple[str, str], tuple[Price, ...]]:
    """The rows of a file with PRICE_COLUMNS, by cloud and machine.

    Raises CatalogError if it is damaged, has a row dated after *latest*, or a price that no such machine can have.
    """
    found: dict[tuple[str, str], list[Price]] = {}
    for key, price in _rows(path, PRICE_COLUMNS, latest, _price):
        found.setdefault(key, []).append(price)
    return {key: tuple(rows) for key, rows in found.items()}


def rates(path: Path, latest: date | None = None) -> tuple[Rate, ...]:
    """The rows of a file with RATE_COLUMNS. Raises CatalogError if it is damaged or has a row dated after *latest*."""
    return tuple(_rows(path, RATE_COLUMNS, latest, _rate))


def _rows(
    path: Path, columns: tuple[str, ...], latest: date | None, read: Callable[[dict[str, str]], Read]
) -> Iterator[Read]:
    table = None
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            table = csv.reader(lines, strict=True)
            header = tuple(next(table, ()))
            missing = [column for column in columns if column not in header]
            if missing:
                raise ValueError(f"no column {', '.join(missing)}")
            for cells in table:
                if len(cells) != len(header):
                    raise ValueError(f"{len(cells)} cells under {len(header)} columns")
                row = dict(zip(header, cells, strict=True))
                if latest is not None and _day(row) > latest:
                    raise ValueError(f"as_of is {row['as_of']}, later than today by this machine's clock")
                yield read(row)
    except (ValueError, csv.Error, InvalidOperation, OSError) as error:
        hint = "take the file away, then read the prices anew: orchestrate prices refresh"
        line = max(1, table.line_num) if table is not None else 1
        raise CatalogError(f"{path}, line {line}: {_reason(error)}", hint) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return error.strerror or "cannot be read" if isinstance(error, OSError) else str(error)


def _price(row: dict[str, str]) -> tuple[tuple[str, str], Price]:
    _known(row, "cloud", tuple(CLOUD_NAMES))
    _known(row, "market", MARKETS)
    price = Price(
        usd_per_hour=_usd(row, "usd_per_hour"),
        region=_filled(row, "region"),
        market=row["market"],
        component=_filled(row, "component"),
        as_of=_day(row),
        as_of_precision=row["as_of_precision"],
        grade=row["grade"],
        source=_filled(row, "source"),
        note=row["note"],
    )
    check_possible(price.usd_per_hour, _filled(row, "machine"))
    return (row["cloud"], row["machine"]), price


def check_possible(usd_per_hour: Decimal, name: str) -> None:
    """Raise ValueError where no machine of that name can cost so much, or so little: in cents, by the month, for nothing.

    Where the machine's size is not known, nothing is.
    """
    machine = machines().get(name)
    if machine is None or not machine.vcpus:
        return
    least, most = (usd * machine.vcpus for usd in USD_PER_VCPU_HOUR)
    if not least <= usd_per_hour <= most:
        words = f"{name}, with {machine.vcpus} vCPU, costs {least} to {most} USD an hour"
        raise ValueError(f"usd_per_hour is {str(usd_per_hour)!r}, and {words} at any rate")


def _rate(row: dict[str, str]) -> Rate:
    _known(row, "cloud", (*CLOUD_NAMES, "gce"))
    _known(row, "published", ("yes", "no"))
    return Rate(
        item=_filled(row, "item"),
        usd=_usd(row, "usd"),
        unit=_filled(row, "unit"),
        region=_filled(row, "region"),
        as_of=_day(row),
        source=_filled(row, "source"),
        published=row["published"] == "yes",
        note=row["note"],
        as_of_precision=row["as_of_precision"],
        cloud=row["cloud"],
    )


def _known(row: dict[str, str], column: str, known: tuple[str, ...]) -> None:
    if row[column] not in known:
        raise ValueError(f"{column} is {row[column]!r}, not {' or '.join(known)}")


def _filled(row: dict[str, str], column: str) -> str:
    if not row[column].strip():
        raise ValueError(f"{column} is empty")
    return row[column]


def _usd(row: dict[str, str], column: str) -> Decimal:
    """A price of 0 is refused: price lists have rows of free tiers and of nothing, and they are nobody's price."""
    try:
        usd = Decimal(row[column])
    except InvalidOperation:
        raise ValueError(f"{column} is {row[column]!r}, not a number") from None
    if not usd.is_finite() or usd <= 0:
        raise ValueError(f"{column} is {row[column]!r}, and a price is above 0")
    return usd


def _day(row: dict[str, str]) -> date:
    _known(row, "as_of_precision", PRECISIONS)
    try:
        return date.fromisoformat(row["as_of"])
    except ValueError:
        raise ValueError(f"as_of is {row['as_of']!r}, not a date such as 2026-11-22") from None
