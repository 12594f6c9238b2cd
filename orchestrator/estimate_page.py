"""An estimate as one web page: cost against time, and the table of all machines, in a file that needs nothing else.

The chart is plotly's, whose script is written into the page (4.8 MB of it), so that the page works from a folder and
asks no server for anything. A content security policy in it holds that, and runs no script but those written here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from estimates.catalog import CLOUD_NAMES
from estimates.cost import format_usd
from orchestrator import estimate_chart as chart
from orchestrator.errors import BadInput
from orchestrator.estimate_chart import escaped
from orchestrator.tables import clean

INSTALL = "pip install 'orchestrate-ml[html]'"


def page(document: Mapping[str, Any]) -> str:
    """The page for the document of `orchestrate estimate --json`.

    Raises BadInput where plotly is not installed.
    """
    plotly_js = _plotly_js()
    market = "usd_spot" if document.get("spot") else "usd"
    points = chart.drawable(document["rows"], market)
    drawn = "<p>No machine here has a known cost: there is nothing to draw.</p>"
    scripts = [_SORT_JS]
    if points:
        figure, height, caption = chart.draw(points)
        drawn = f"{_chart_box(height)}<p class='caption'>{escaped(caption + _left_out(document, market))}</p>"
        scripts = [plotly_js, f"const FIGURE = {_json(figure)};{chart.SCRIPT}", _SORT_JS]
    body = (*_heading(document), drawn, _table(document), *_words(document))
    return _PAGE.format(
        policy=f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src 'unsafe-inline';"
        " img-src data: blob:; base-uri 'none'; form-action 'none'",
        title=escaped(_title(document)),
        style=_STYLE,
        body="\n".join(body),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise BadInput("--html needs plotly, which is not installed", hint=INSTALL) from error
    return str(get_plotlyjs())


def _json(value: object) -> str:
    """*value* as a JavaScript literal that cannot end its script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _left_out(document: Mapping[str, Any], market: str) -> str:
    """How many rows the chart does not show."""
    missing = [row for row in document["rows"] if row[market] is None]
    free = [row for row in document["rows"] if row[market] is not None and float(row[market]) == 0]
    said = []
    if missing:
        said.append(f" {len(missing)} more have no known price{' on spot' if market == 'usd_spot' else ''}.")
    if free:
        said.append(f" {len(free)} more cost nothing under these assumptions, and are in the table alone.")
    return "".join(said)


# Words


def _heading(document: Mapping[str, Any]) -> list[str]:
    made = clean(str(document["made_at"])).replace("T", " ").removesuffix("+00:00")
    counted = f"{document['priced']} of {document['total']} machines have a known price here"
    facts = [f"Hours: {document['hours_from'] or 'not known'}", counted, f"Made {made[:16]} UTC"]
    if document.get("spot"):
        facts.insert(1, "Reckoned on spot machines")
    return [f"<h1>{escaped(_title(document))}</h1>", f"<p class='facts'>{escaped('. '.join(facts))}.</p>"]


def _title(document: Mapping[str, Any]) -> str:
    return f"What {document['script'] or 'a run'} would cost"


def _words(document: Mapping[str, Any]) -> list[str]:
    named = (("Notes", "notes"), ("Assumed", "assumptions"), ("Not counted", "not_counted"))
    lists = [
        f"<h2>{title}</h2><ul>{''.join(f'<li>{escaped(said)}</li>' for said in document[name])}</ul>"
        for title, name in named
        if document[name]
    ]
    signs = "~ stands before what follows from a derived price, not a published one. Amounts are rounded up."
    return [*lists, _sources(document["rows"]), f"<p class='caption'>{escaped(signs)}</p>"]


def _known_sources(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(row["price_source"]) for row in rows if row["price_source"]))


def _sources(rows: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(
        f"<li id='source-{number}'>{escaped(source)}</li>" for number, source in enumerate(_known_sources(rows), 1)
    )
    return f"<h2>Where the prices were read</h2><ol>{items}</ol>" if items else ""


# The table

_COLUMNS = ("machine", "cloud", "region", "GPUs", "vCPU", "GiB", "time", "on demand", "on spot", "per hour", "price of")
_RIGHT = {"vCPU", "GiB", "time", "on demand", "on spot", "per hour"}


def _table(document: Mapping[str, Any]) -> str:
    """Every row, readable without the script; with it, a click on a column's name sorts."""
    rows = document["rows"]
    sources = {source: number for number, source in enumerate(_known_sources(rows), 1)}
    head = "".join(f"<th scope='col'{_class(name)}>{name}</th>" for name in _COLUMNS)
    body = "\n".join(f"<tr>{_cells(row, sources, document['hours_from'])}</tr>" for row in rows)
    return (
        "<h2>All machines</h2>"
        "<div class='scroll' role='region' aria-label='All machines' tabindex='0'>"
        f"<table id='machines'><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _class(name: str) -> str:
    return " class='number'" if name in _RIGHT else ""


def _cells(row: Mapping[str, Any], sources: Mapping[str, int], hours_from: str | None) -> str:
    why = "" if row["hours_from"] == hours_from else f"<small class='why'>{escaped(row['hours_from'])}</small>"
    badges = "".join(f" <b class='mark'>{escaped(mark)}</b>" for mark in row["marks"])
    retired = f"<br><small>{escaped(row['retired'])}</small>" if row["retired"] else ""
    number = sources.get(str(row["price_source"]))
    read_at = f" <a href='#source-{number}'>[{number}]</a>" if number else ""
    old = " <small>old</small>" if row["stale"] else ""
    gpu_gib = (row["gpu_memory_gib"] or 0) * row["gpu_count"]
    cells = (
        (f"{escaped(row['machine'])}{badges}{retired}", None),
        (escaped(CLOUD_NAMES.get(row["cloud"], row["cloud"])), None),
        (escaped(row["region"]), None),
        (escaped(chart.accelerators(row) or "-"), gpu_gib),
        (escaped(row["vcpus"] or "-"), row["vcpus"]),
        (escaped("-" if row["memory_gib"] is None else f"{row['memory_gib']:g}"), row["memory_gib"]),
        (f"{escaped(chart.time(row['hours']))}{why}", row["hours"]),
        (_cost_cell(row, "usd"), row["usd"]),
        (_cost_cell(row, "usd_spot"), row["usd_spot"]),
        (escaped(chart.hourly(row)), row["price_usd_per_hour"]),
        (f"{escaped(row['price_as_of'] or '-')}{old}{read_at}", row["price_as_of"]),
    )
    return "".join(
        f"<td{_class(name)}{'' if value is None else f' data-v={_quoted(value)}'}>{words}</td>"
        for name, (words, value) in zip(_COLUMNS, cells, strict=True)
    )


def _quoted(value: object) -> str:
    return f"'{escaped(value)}'"


def _cost_cell(row: Mapping[str, Any], name: str) -> str:
    """The expected cost; beneath it the range, where there is one."""
    usd, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    words = escaped(chart.cost(row, usd))
    if usd is None or low is None or high is None or Decimal(low) == Decimal(high):
        return words
    return f"{words}<br><small>{escaped(chart.cost(row, low))}–{escaped(format_usd(Decimal(high)))}</small>"


def _chart_box(height: int) -> str:
    return (
        f"<div id='chart' style='height:{height}px' role='img' aria-label='The costs of the table below, drawn'>"
        "<noscript>The chart needs JavaScript. The table below says the same.</noscript></div>"
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
{scripts}
</body>
</html>
"""

_STYLE = """
:root { --paper: #fff; --ink: #1c1f23; --faint: #626a73; --line: #dfe3e8; --mark: #fff3cd; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e6e8eb; --faint: #9aa3ad; --line: #2e343b; --mark: #4a3f10; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 20px 16px 48px; max-width: 1320px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 28px 0 8px; }
.facts, .caption, small { color: var(--faint); }
.facts { margin: 4px 0 12px; }
.caption { margin: 4px 0; font-size: .9rem; }
ul, ol { margin: 0; padding-left: 22px; }
li:target { background: var(--mark); }
a { color: inherit; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; overflow-wrap: normal; }
th, td { padding: 5px 7px; text-align: left; white-space: nowrap; vertical-align: top; }
th { border-bottom: 1px solid var(--line); }
tbody tr + tr td { border-top: 1px solid var(--line); }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
td .why { display: block; white-space: normal; min-width: 18ch; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; font-weight: bold; }
th button:focus-visible { outline: 2px solid; outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
.mark { background: var(--mark); border-radius: 4px; padding: 0 5px; font-weight: 600; font-size: .8rem; }
@media print { .scroll { overflow: visible; } body { max-width: none; } }
"""

_SORT_JS = """
const table = document.getElementById("machines");
function sort(column, header) {
  const down = header.getAttribute("aria-sort") === "ascending";
  const key = row => row.cells[column].dataset.v ?? (header.classList.contains("number") ? "" : row.cells[column].textContent);
  const compare = (one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", {numeric: true}) : a - b;
    return down ? -order : order;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
}
[...table.tHead.rows[0].cells].forEach((header, column) => {
  const button = document.createElement("button");
  button.append(...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => sort(column, header));
});
"""
