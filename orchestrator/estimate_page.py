"""An estimate as one web page: cost against time, and the table of all machines, in a file that needs nothing else.

The chart is plotly's, whose script is written into the page (4.8 MB of it), so that the page works from a folder and
asks no server for anything. A content security policy in it holds that, and runs no script but those written here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from estimates.catalog import CLOUD_NAMES
from estimates.cost import format_usd
from orchestrator.errors import BadInput
from orchestrator.tables import clean, duration

BARS = 30
INSTALL = "pip install 'orchestrate-ml[html]'"
# Told apart by those who do not see red and green alike, and on white as on black.
COLOURS = {"sagemaker": "#d97a12", "vertex": "#3f83e8"}
OTHER_COLOUR = "#8a8f98"
_SECONDS_PER_HOUR = 3600
_MARKS = ("fastest", "knee", "cheapest")
_BAR_PIXELS, _BAR_MARGIN_PIXELS = 22, 96


@dataclass(frozen=True)
class _Point:
    """A row that can be drawn: its hours, and USD in the market that the estimate is for."""

    row: Mapping[str, Any]
    hours: float
    usd: float

    @property
    def kind(self) -> tuple[str, str]:
        return str(self.row["cloud"]), "GPU" if self.row.get("gpu") else "CPU"


def page(document: Mapping[str, Any]) -> str:
    """The page for the document of `orchestrate estimate --json`.

    Raises BadInput where plotly is not installed.
    """
    plotly_js = _plotly_js()
    market = "usd_spot" if document.get("spot") else "usd"
    points = _points(document["rows"], market)
    compared = len({point.hours for point in points}) > 1
    figure, height, caption = _scatter(points) if compared else _bars(points)
    drawn = f"{_chart_box(height)}<p class='caption'>{_text(caption)}{_left_out(document, points, market)}</p>"
    data = f"const FIGURE = {_json(figure)};"
    scripts = (plotly_js, data + _CHART_JS, _SORT_JS) if points else (_SORT_JS,)
    body = (
        *_heading(document),
        drawn if points else "<p>No machine here has a known price: there is nothing to draw.</p>",
        _table(document["rows"]),
        *_words(document),
    )
    return _PAGE.format(
        policy=f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src 'unsafe-inline';"
        " img-src data: blob:; base-uri 'none'; form-action 'none'",
        title=_text(_title(document)),
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


def _text(value: object) -> str:
    """*value* as text of a page, or of a chart, whose library reads tags of its own: nothing in it is markup."""
    return html.escape(clean(str(value)))


def _json(value: object) -> str:
    """*value* as a JavaScript literal that cannot end its script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


# What is drawn


def _points(rows: Iterable[Mapping[str, Any]], market: str) -> list[_Point]:
    """Rows with hours and a cost, cheapest first. Nothing that is zero has a place on a logarithmic axis."""
    known = [row for row in rows if row["hours"] is not None and row[market] is not None]
    found = [_Point(row, float(row["hours"]), float(row[market])) for row in known]
    return sorted((point for point in found if point.hours > 0 and point.usd > 0), key=lambda point: point.usd)


def _kinds(points: Sequence[_Point]) -> dict[tuple[str, str], list[_Point]]:
    kinds: dict[tuple[str, str], list[_Point]] = {}
    for point in sorted(points, key=lambda point: (point.row["cloud"], point.kind[1] == "CPU")):
        kinds.setdefault(point.kind, []).append(point)
    return kinds


def _kind_name(kind: tuple[str, str]) -> str:
    return _text(f"{CLOUD_NAMES.get(kind[0], kind[0])}, {kind[1]}")


def _scatter(points: Sequence[_Point]) -> tuple[dict[str, Any], int, str]:
    """Cost against time; the figure, its height in pixels, and what to say beneath it."""
    from plotly import graph_objects

    traces = [
        graph_objects.Scatter(
            name=_kind_name(kind),
            mode="markers",
            x=[point.hours for point in members],
            y=[point.usd for point in members],
            hovertext=[_hover(point) for point in members],
            hoverinfo="text",
            marker={
                "color": COLOURS.get(kind[0], OTHER_COLOUR),
                "symbol": "circle" if kind[1] == "GPU" else "square-open",
                "size": [15 if point.row["marks"] else 9 for point in members],
                "opacity": 0.85,
            },
        )
        for kind, members in _kinds(points).items()
    ]
    layout = _layout(
        xaxis={
            "title": {"text": "hours of the run"},
            "type": "log",
            "range": _range([point.hours for point in points]),
        },
        yaxis={"title": {"text": "cost, USD"}, "type": "log", "range": _range([point.usd for point in points])},
        annotations=_annotations(points),
    )
    caption = (
        "Each mark is a machine; further left is faster, further down is cheaper, both on logarithmic scales. The knee"
        " is where the trade of time for money bends most."
    )
    return _plain(graph_objects.Figure(traces, layout)), 540, caption


def _bars(points: Sequence[_Point]) -> tuple[dict[str, Any], int, str]:
    """Cost by machine, for machines that all take equally long: there is no time to set it against."""
    from plotly import graph_objects

    shown = list(points[:BARS])
    places = {id(point): number for number, point in enumerate(shown)}
    traces = [
        graph_objects.Bar(
            name=_kind_name(kind),
            orientation="h",
            x=[point.usd for point in members],
            y=[places[id(point)] for point in members],
            text=[_text(_cost(point.row, point.usd)) for point in members],
            textposition="outside",
            cliponaxis=False,
            hovertext=[_hover(point) for point in members],
            hoverinfo="text",
            marker={
                "color": COLOURS.get(kind[0], OTHER_COLOUR),
                "pattern": {"shape": "" if kind[1] == "GPU" else "/", "solidity": 0.35},
            },
        )
        for kind, members in _kinds(shown).items()
    ]
    most = max((point.usd for point in shown), default=1.0)
    layout = _layout(
        xaxis={"title": {"text": "cost, USD"}, "range": [0, most * 1.18], "tickprefix": "$"},
        yaxis={
            "tickvals": list(range(len(shown))),
            "ticktext": [_text(point.row["machine"]) for point in shown],
            "range": [len(shown) - 0.4, -0.6],
            "automargin": True,
            "showgrid": False,
        },
        bargap=0.3,
    )
    count = f"The cheapest {len(shown)} of {len(points)}" if len(shown) < len(points) else f"All {len(shown)}"
    caption = f"{count} machines, by cost: all are reckoned with the same time, so that there is none to compare."
    height = _BAR_MARGIN_PIXELS + _BAR_PIXELS * max(len(shown), 3)
    return _plain(graph_objects.Figure(traces, layout)), height, caption


def _plain(figure: Any) -> dict[str, Any]:
    return dict(json.loads(figure.to_json()))


def _layout(**own: Any) -> dict[str, Any]:
    return {
        "margin": {"l": 64, "r": 16, "t": 8, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        "hovermode": "closest",
        "template": "none",
        **own,
    }


def _range(values: Sequence[float]) -> list[float]:
    """The logarithms between which an axis shows *values* with room around them."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.1 * (high - low), 0.15)
    return [low - 1.3 * room, high + room]


def _annotations(points: Sequence[_Point]) -> list[dict[str, Any]]:
    """The names of the marked machines. Left of and below a point of the Pareto front nothing is drawn, but an axis."""
    marked = [point for point in points if point.row["marks"]]
    middle = sum(_range([point.hours for point in points])) / 2
    notes = []
    for point in sorted(marked, key=lambda point: point.hours):
        left = math.log10(point.hours) < middle
        names = ", ".join(mark for mark in _MARKS if mark in point.row["marks"])
        notes.append(
            {
                "x": math.log10(point.hours),
                "y": math.log10(point.usd),
                "text": f"<b>{_text(names)}</b><br>{_text(point.row['machine'])}",
                "align": "left" if left else "right",
                "xanchor": "left" if left else "right",
                "yanchor": "top",
                "ax": -6 if left else 6,
                "ay": 16,
                "arrowhead": 0,
                "arrowwidth": 1,
                "standoff": 7,
                "borderpad": 2,
            }
        )
    return notes


def _hover(point: _Point) -> str:
    row = point.row
    lines = [
        f"<b>{_text(row['machine'])}</b>",
        _text(f"{CLOUD_NAMES.get(row['cloud'], row['cloud'])}, {row['region']}"),
        _text(_hardware(row)),
        _text(f"{_time(row['hours'])}, {_cost(row, point.usd)}"),
        _text(_price(row)),
        *(f"<b>{_text(mark)}</b>" for mark in row["marks"]),
        *([_text(row["retired"])] if row["retired"] else []),
    ]
    return "<br>".join(lines)


def _left_out(document: Mapping[str, Any], points: Sequence[_Point], market: str) -> str:
    missing = [row for row in document["rows"] if row[market] is None]
    free = [row for row in document["rows"] if row[market] is not None and float(row[market]) == 0]
    said = []
    if missing:
        said.append(f" {len(missing)} more have no known price{' on spot' if market == 'usd_spot' else ''}.")
    if free:
        said.append(f" {len(free)} more cost nothing under these assumptions, and are in the table alone.")
    return _text("".join(said)) if points else ""


# Words


def _heading(document: Mapping[str, Any]) -> list[str]:
    made = clean(str(document["made_at"])).replace("T", " ").removesuffix("+00:00")
    counted = f"{document['priced']} of {document['total']} machines have a known price here"
    facts = [f"Hours: {document['hours_from'] or 'not known'}", counted, f"made {made[:16]} UTC"]
    if document.get("spot"):
        facts.insert(1, "reckoned on spot machines")
    return [f"<h1>{_text(_title(document))}</h1>", f"<p class='facts'>{_text('. '.join(facts))}.</p>"]


def _title(document: Mapping[str, Any]) -> str:
    return f"What {document['script'] or 'a run'} would cost"


def _words(document: Mapping[str, Any]) -> list[str]:
    named = (("Notes", "notes"), ("Assumed", "assumptions"), ("Not counted", "not_counted"))
    lists = [
        f"<h2>{title}</h2><ul>{''.join(f'<li>{_text(said)}</li>' for said in document[name])}</ul>"
        for title, name in named
        if document[name]
    ]
    signs = "~ stands before what follows from a derived price, not a published one. Amounts are rounded up."
    return [*lists, _sources(document["rows"]), f"<p class='caption'>{_text(signs)}</p>"]


def _known_sources(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(row["price_source"]) for row in rows if row["price_source"]))


def _sources(rows: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(
        f"<li id='source-{number}'>{_text(source)}</li>" for number, source in enumerate(_known_sources(rows), 1)
    )
    return f"<h2>Where the prices were read</h2><ol>{items}</ol>" if items else ""


def _hardware(row: Mapping[str, Any]) -> str:
    accelerators = _accelerators(row)
    host = [f"{row['vcpus']} vCPU" if row["vcpus"] else "", f"{row['memory_gib']:g} GiB" if row["memory_gib"] else ""]
    return ", ".join(part for part in (accelerators, *host) if part) or "hardware not known"


def _accelerators(row: Mapping[str, Any]) -> str:
    if not row["gpu"]:
        return ""
    memory = f" {row['gpu_memory_gib']:g} GiB" if row["gpu_memory_gib"] else ""
    return f"{row['gpu_count']} × {row['gpu']}{memory}"


def _time(hours: str | None) -> str:
    return "unknown" if hours is None else duration(float(hours) * _SECONDS_PER_HOUR)


def _cost(row: Mapping[str, Any], usd: object) -> str:
    """`~$57.31`; the sign where the price was derived."""
    if usd is None:
        return "unknown"
    return ("~" if row["price_published"] is False else "") + format_usd(Decimal(str(usd)))


def _price(row: Mapping[str, Any]) -> str:
    """`~$28.152/h, price of 2026-08-17`."""
    if row["price_usd_per_hour"] is None:
        return "price unknown"
    old = ", which is old" if row["stale"] else ""
    return f"{_hourly(row)}/h, price of {row['price_as_of']}{old}"


def _hourly(row: Mapping[str, Any]) -> str:
    if row["price_usd_per_hour"] is None:
        return "unknown"
    return f"{'~' if row['price_published'] is False else ''}${row['price_usd_per_hour']}"


# The table

_COLUMNS = ("machine", "cloud", "region", "GPUs", "vCPU", "GiB", "time", "on demand", "on spot", "per hour", "price of")
_RIGHT = {"vCPU", "GiB", "time", "on demand", "on spot", "per hour"}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every row, readable without the script; with it, a click on a column's name sorts."""
    sources = {source: number for number, source in enumerate(_known_sources(rows), 1)}
    head = "".join(f"<th scope='col'{_class(name)}>{name}</th>" for name in _COLUMNS)
    body = "\n".join(f"<tr>{_cells(row, sources)}</tr>" for row in rows)
    return (
        "<h2>All machines</h2>"
        "<div class='scroll' role='region' aria-label='All machines' tabindex='0'>"
        f"<table id='machines'><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _class(name: str) -> str:
    return " class='number'" if name in _RIGHT else ""


def _cells(row: Mapping[str, Any], sources: Mapping[str, int]) -> str:
    badges = "".join(f" <b class='mark'>{_text(mark)}</b>" for mark in row["marks"])
    retired = f"<br><small>{_text(row['retired'])}</small>" if row["retired"] else ""
    number = sources.get(str(row["price_source"]))
    read_at = f" <a href='#source-{number}'>[{number}]</a>" if number else ""
    old = " <small>old</small>" if row["stale"] else ""
    gpu_gib = (row["gpu_memory_gib"] or 0) * row["gpu_count"]
    cells = (
        (f"{_text(row['machine'])}{badges}{retired}", None),
        (_text(CLOUD_NAMES.get(row["cloud"], row["cloud"])), None),
        (_text(row["region"]), None),
        (_text(_accelerators(row) or "-"), gpu_gib),
        (_text(row["vcpus"] or "-"), row["vcpus"]),
        (_text("-" if row["memory_gib"] is None else f"{row['memory_gib']:g}"), row["memory_gib"]),
        (_text(_time(row["hours"])), row["hours"]),
        (_cost_cell(row, "usd"), row["usd"]),
        (_cost_cell(row, "usd_spot"), row["usd_spot"]),
        (_text(_hourly(row)), row["price_usd_per_hour"]),
        (f"{_text(row['price_as_of'] or '-')}{old}{read_at}", row["price_as_of"]),
    )
    return "".join(
        f"<td{_class(name)}{'' if value is None else f' data-v={_quoted(value)}'}>{words}</td>"
        for name, (words, value) in zip(_COLUMNS, cells, strict=True)
    )


def _quoted(value: object) -> str:
    return f"'{_text(value)}'"


def _cost_cell(row: Mapping[str, Any], name: str) -> str:
    """The expected cost; beneath it the range, where there is one."""
    usd, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    words = _text(_cost(row, usd))
    if usd is None or low is None or high is None or Decimal(low) == Decimal(high):
        return words
    return f"{words}<br><small>{_text(_cost(row, low))}–{_text(format_usd(Decimal(high)))}</small>"


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
body { margin: 0 auto; padding: 20px 16px 48px; max-width: 1200px; background: var(--paper); color: var(--ink);
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
table { border-collapse: collapse; width: 100%; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: 5px 10px; text-align: left; white-space: nowrap; vertical-align: top; }
th { border-bottom: 1px solid var(--line); }
tbody tr + tr td { border-top: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; font-weight: bold; }
th button:focus-visible { outline: 2px solid; outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
.mark { background: var(--mark); border-radius: 4px; padding: 0 5px; font-weight: 600; font-size: .8rem; }
@media print { .scroll { overflow: visible; } body { max-width: none; } }
"""

# Ticks are ours: plotly's own on a logarithmic axis are bare digits, and hours read better as minutes or days.
_CHART_JS = """
const chart = document.getElementById("chart");
const dark = matchMedia("(prefers-color-scheme: dark)");
const TIMES = [[1, "s", [1, 2, 5, 10, 20, 30]], [60, "min", [1, 2, 5, 10, 20, 30]], [3600, "h", [1, 2, 5, 10]],
  [86400, "d", [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]]];
const number = value => Number(value.toPrecision(3)).toLocaleString("en-US", {maximumFractionDigits: 9});
function hours() {
  return TIMES.flatMap(([seconds, unit, counts]) => counts.map(count => [count * seconds / 3600, count + " " + unit]));
}
function dollars() {
  const steps = [];
  for (let power = -6; power < 9; power++)
    for (const digit of [1, 2, 5]) steps.push([digit * 10 ** power, "$" + number(digit * 10 ** power)]);
  return steps;
}
function ticks(all, range, most, words) {
  const [low, high] = range.map(end => 10 ** end).sort((one, other) => one - other);
  let within = all.filter(([value]) => value >= low && value <= high);
  const apart = Math.ceil(within.length / most);
  if (apart > 1) within = within.filter((_, at) => at % apart === 0);
  if (within.length < 3) {
    const step = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(step));
    const even = unit * [1, 2, 5, 10].find(factor => factor * unit >= step);
    within = [];
    for (let value = Math.ceil(low / even) * even; value <= high; value += even) within.push([value, words(value)]);
  }
  return {tickmode: "array", tickvals: within.map(([value]) => value), ticktext: within.map(([, text]) => text)};
}
function dressed(layout) {
  const css = getComputedStyle(document.documentElement);
  const [paper, ink, line] = ["--paper", "--ink", "--line"].map(name => css.getPropertyValue(name).trim());
  const narrow = chart.clientWidth < 600;
  const axis = {gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line};
  Object.assign(layout.xaxis, axis);
  Object.assign(layout.yaxis, axis);
  if (layout.xaxis.type === "log") {
    Object.assign(layout.xaxis, ticks(hours(), layout.xaxis.range, narrow ? 5 : 10, value => number(value) + " h"));
    Object.assign(layout.yaxis, ticks(dollars(), layout.yaxis.range, 9, value => "$" + number(value)));
  } else {
    layout.xaxis.nticks = narrow ? 4 : 9;
  }
  layout.font.color = ink;
  layout.hoverlabel = {bgcolor: paper, bordercolor: line, font: {color: ink}, align: "left"};
  for (const note of layout.annotations || []) Object.assign(note, {bgcolor: paper, opacity: 0.9, arrowcolor: ink});
  layout.dragmode = narrow ? false : "zoom";
  layout.margin.l = narrow ? 48 : 64;
  layout.font.size = narrow ? 11 : 13;
  return layout;
}
const full = structuredClone(FIGURE.layout);
let shown = full;
function draw() {
  const config = {displaylogo: false, displayModeBar: false, responsive: true, doubleClick: "reset"};
  return Plotly.react(chart, FIGURE.data, structuredClone(dressed(shown)), config);
}
draw().then(() => {
  chart.on("plotly_relayout", change => {
    const ends = axis => ["range[0]", "range[1]"].map(end => change[axis + "." + end]);
    if (full.xaxis.type !== "log" || !("xaxis.range[0]" in change || "yaxis.range[0]" in change)) return;
    shown = structuredClone(shown);
    for (const axis of ["xaxis", "yaxis"]) if (ends(axis)[0] !== undefined) shown[axis].range = ends(axis);
    draw();
  });
});
dark.addEventListener("change", draw);
addEventListener("resize", draw);
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
