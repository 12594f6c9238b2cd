"""Files of prices: those that were refreshed, in the state folder, and price lists that somebody has downloaded.

Refreshed ones are joined with what was read anew, written beside and renamed.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO, TypeVar

from estimates import offers, readings, skus
from estimates.offers import ListingError, PriceRow, RateRow, Reading
from orchestrator import state
from orchestrator.errors import BadInput, StateError, shown

HEAD_LETTERS = 1 << 20
Row = TypeVar("Row", PriceRow, RateRow)


@dataclass(frozen=True, slots=True)
class Kept:
    """What came of a reading: the file that has it, and in which regions what was there is newer and stays."""

    path: Path
    prices: tuple[PriceRow, ...]
    newer_there: tuple[str, ...]


def prices_file(cloud: str) -> Path:
    return state.prices_dir() / f"{cloud}.csv"


def rates_file(cloud: str) -> Path:
    return state.prices_dir() / f"rates-{cloud}.csv"


def clouds() -> list[str]:
    """The clouds whose prices were refreshed here."""
    return [path.stem for path in sorted(state.prices_dir().glob("*.csv")) if not path.stem.startswith("rates-")]


def prices(cloud: str) -> list[PriceRow]:
    """The refreshed prices of *cloud*; none if it never was refreshed. Raises StateError if its file is damaged."""
    return _read(prices_file(cloud), PriceRow)


def believable(reading: Reading) -> Reading:
    """*reading* without the prices that no such machine can have: with one of them the file could not be read again."""
    kept, left_out = [], 0
    for row in reading.prices:
        try:
            readings.check_possible(row.usd_per_hour, row.machine)
        except ValueError:
            left_out += 1
        else:
            kept.append(row)
    if not left_out:
        return reading
    ignored = {**reading.ignored, "a price that no such machine can have": left_out}
    return replace(reading, prices=tuple(kept), ignored=ignored)


def keep(reading: Reading) -> Kept:
    """Put *reading* in the place of what the files have of its regions, unless that was read on a later day.

    Other regions stay. Either file is replaced as a whole or not at all. Raises StateError if that cannot be done, or a
    file that is there is damaged.
    """
    with state.locked(state.prices_dir() / ".lock"):
        old = _read(prices_file(reading.cloud), PriceRow)
        rows, newer_there = _joined(old, reading.prices)
        if reading.prices:
            _write(prices_file(reading.cloud), rows, PriceRow)
        if reading.rates:
            rates, _ = _joined(_read(rates_file(reading.cloud), RateRow), reading.rates)
            _write(rates_file(reading.cloud), rates, RateRow)
    return Kept(prices_file(reading.cloud), tuple(rows), newer_there)


def _joined(old: Sequence[Row], new: Sequence[Row]) -> tuple[list[Row], tuple[str, ...]]:
    """*old* with the regions of *new* replaced, and the regions that were not, since *old* is newer there."""
    read_on: dict[str, date] = {}
    for row in old:
        read_on[row.region] = max(row.as_of, read_on.get(row.region, row.as_of))
    newer_there = tuple(sorted({row.region for row in new if row.as_of < read_on.get(row.region, row.as_of)}))
    replaced = {row.region for row in new} - set(newer_there)
    rows = [row for row in old if row.region not in replaced] + [row for row in new if row.region in replaced]
    return rows, newer_there


def _write(path: Path, rows: Iterable[Row], kind: type[Row]) -> None:
    text = io.StringIO(newline="")
    names = [field.name for field in fields(kind)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_text(getattr(row, name)) for name in names])
    with state.explained(path):
        state.write_whole(path, text.getvalue().encode("utf-8"))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Decimal):
        return f"{value:f}"
    return str(value)


_READERS: dict[str, Callable[[str], Any]] = {
    "as_of": date.fromisoformat,
    "usd": Decimal,
    "usd_per_hour": Decimal,
    "published": lambda text: text == "yes",
}


def _read(path: Path, kind: type[Row]) -> list[Row]:
    with state.explained(path):
        if not path.exists():
            return []
        data = path.read_bytes()
    names = [field.name for field in fields(kind)]
    rows = csv.DictReader(io.StringIO(data.decode("utf-8", "replace"), newline=""), strict=True)
    try:
        return [kind(**{name: _READERS.get(name, str)(row[name]) for name in names}) for row in rows]
    except (ValueError, ArithmeticError, KeyError, TypeError, csv.Error) as error:
        what = f"{path} is damaged, in line {rows.line_num} ({shown(error)})"
        raise StateError(what, hint=f"rm {path}, then: orchestrate prices refresh") from error


# What somebody has downloaded

_WHICH = "the index.json of AmazonSageMaker in one region, or the pages of the Cloud Billing Catalog, .gz or not"


def downloaded(path: Path, reader: str) -> Reading:
    """The training prices in *path*: AWS's bulk offer file, a kept answer of GetProducts, or an export of Google's SKUs.

    What it is, is told from its content. reader: the command that reads it, for the source of the rows.
    Raises BadInput if it is none of these, cannot be read, or has no price of training.
    """
    with _explained(path):
        with _text_of(path) as text:
            head = offers.head(text.read(HEAD_LETTERS))
        reading = _READ[head.kind](path, head, reader)
    if not reading.prices:
        what = f"{path.name} has no price of training: {counts(reading.ignored) or 'it lists nothing'}"
        raise BadInput(what, hint="the offer file of AmazonSageMaker, or the SKUs of Vertex AI")
    return reading


def counts(ignored: Mapping[str, int]) -> str:
    """`1,204 for something else: Hosting, 12 free`, the most frequent first."""
    return ", ".join(f"{number:,} {why}" for why, number in sorted(ignored.items(), key=lambda entry: -entry[1]))


def today() -> date:
    return datetime.now(UTC).date()


def _bulk(path: Path, head: offers.Head, reader: str) -> Reading:
    if head.offer not in ("AmazonSageMaker", ""):
        raise BadInput(f"{path.name} is the price list of {shown(head.offer)}", hint="the one of AmazonSageMaker")
    as_of = min(head.published, today()) if head.published else _day_of(path)
    version = f", version {head.version}" if head.version else ""
    items = offers.bulk_items(lambda: _text_of(path))
    return offers.read(items, as_of=as_of, source=f"AWS offer file AmazonSageMaker{version}, read by {reader}")


def _answer(path: Path, _: offers.Head, reader: str) -> Reading:
    items = offers.answered_items(lambda: _text_of(path))
    source = f"AWS Price List API (a kept answer of GetProducts), read by {reader}"
    return offers.read(items, as_of=_day_of(path), source=source)


def _export(path: Path, _: offers.Head, reader: str) -> Reading:
    with _text_of(path) as text:
        source = f"Google Cloud Billing Catalog API (an export), read by {reader}"
        return skus.read(skus.exported(text), as_of=_day_of(path), source=source)


def _neither(path: Path, _: offers.Head, __: str) -> Reading:
    raise BadInput(f"{path.name} is neither an offer file of AWS nor an export of Google's SKUs", hint=_WHICH)


_READ = {"bulk": _bulk, "answer": _answer, "skus": _export, "": _neither}


def _day_of(path: Path) -> date:
    """The day by which the content of *path*, which does not tell its date, was read: that of the file's last change."""
    return min(datetime.fromtimestamp(path.stat().st_mtime, UTC).date(), today())


def _text_of(path: Path) -> TextIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding="utf-8-sig") if packed else path.open(encoding="utf-8-sig")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what can be wrong with a file into one line."""
    try:
        yield
    except ListingError as error:
        raise BadInput(f"{path.name} cannot be read: {error}", hint=f"download it again: {_WHICH}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path.name} is not UTF-8 at byte {error.start:,}", hint=_WHICH) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInput(f"{path.name} is damaged: {error}", hint="download it again") from error
    except OSError as error:
        raise BadInput(f"cannot read {shown(path, 300)}: {error.strerror}", hint="check the path") from error
