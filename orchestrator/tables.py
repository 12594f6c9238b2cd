"""What is shown on a terminal: clean text, and tables that fit it; whole lines where it is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def console(*, stderr: bool = False) -> Console:
    """A console that keeps lines whole where it is not a terminal, and makes no emoji of a file named `:x:`."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    tty = stream.isatty()
    return Console(file=stream, width=None if tty else 100_000, soft_wrap=not tty, highlight=False, emoji=False)


def clean(text: str) -> str:
    """*text* without control codes: what came from elsewhere must not move the cursor or colour the screen."""
    return "".join(letter if letter in "\n\t" or letter.isprintable() or letter == " " else "\ufffd" for letter in text)


def cell(text: str) -> Text:
    """*text* as it is, for a table or a line: nothing in it is taken for markup or control codes.

    Not rich.markup.escape: it doubles a backslash at the end.
    """
    from rich.text import Text

    return Text(clean(text))


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float | None) -> str:
    """`3.2 s`, `4 min 05 s`, `2 h 03 min`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(frozen=True)
class Column:
    """A column as wide as what it holds, or, where the terminal is narrow, down to *least* cells (None: always whole).

    What has no room then is carried on in the next line, or, with *cut*, cut off with an ellipsis.
    """

    name: str
    right: bool = False
    least: int | None = None
    cut: bool = False


def print_table(
    out: Console, columns: Sequence[Column], rows: Sequence[Sequence[Text]], dropped_first: Sequence[str] = ()
) -> list[str]:
    """Print a table that fits the console: columns give way down to their least, then those of *dropped_first* go.

    Returns the names of the columns that went.
    """
    gap = 2
    shown = {
        column: max([len(column.name), *(row[number].cell_len for row in rows)])
        for number, column in enumerate(columns)
    }
    gone: list[str] = []
    for name in dropped_first:
        least = sum(min(width, column.least or width) for column, width in shown.items())
        if least + gap * (len(shown) - 1) <= out.width:
            break
        gone.append(name)
        shown = {column: width for column, width in shown.items() if column.name != name}
    excess = sum(shown.values()) + gap * (len(shown) - 1) - out.width
    kept = [number for number, column in enumerate(columns) if column in shown]
    cells = [[row[number] for number in kept] for row in rows]
    if excess <= 0 and not any(cell.spans or cell.style for row in cells for cell in row):
        _print_plain(out, list(shown.items()), cells, " " * gap)
        return gone
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column, width in reversed(shown.items()):  # what stands last gives way first
        given = max(min(excess, width - (column.least or width)), 0)
        shown[column] = width - given
        excess -= given
    for column, width in shown.items():
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            overflow="ellipsis" if column.cut or column.least is None else "fold",
            no_wrap=column.cut or column.least is None,
            width=width,
        )
    for row in cells:
        table.add_row(*row)
    out.print(table)
    return gone


def _print_plain(out: Console, columns: Sequence[tuple[Column, int]], rows: Sequence[Sequence[Text]], gap: str) -> None:
    """A table that fits, line by line: rich takes half a second for two hundred rows."""

    def aligned(words: Iterable[tuple[str, int]]) -> str:
        padded = [
            " " * (width - cells) + text if column.right else text + " " * (width - cells)
            for (column, width), (text, cells) in zip(columns, words, strict=True)
        ]
        return gap.join(padded).rstrip()

    out.print(cell(aligned((column.name, len(column.name)) for column, _ in columns)), style="bold", no_wrap=True)
    lines = (aligned((one.plain, one.cell_len) for one in row) for row in rows)
    out.file.write("".join(f"{line}\n" for line in lines))


def print_pairs(out: Console, pairs: Iterable[tuple[str, Text]]) -> None:
    """Names in bold, and beside each what it stands for."""
    from rich.padding import Padding

    found = list(pairs)
    width = max((len(name) for name, _ in found), default=0) + 2
    for name, words in found:
        if not out.is_terminal or out.width <= width + 20:
            out.print(f"[bold]{name:<{width}}[/]", words, sep="")
            continue
        first, *rest = words.wrap(out, out.width - width)
        out.print(f"[bold]{name:<{width}}[/]", first, sep="", end="\n")
        for line in rest:
            out.print(Padding(line, (0, 0, 0, width), expand=False))
