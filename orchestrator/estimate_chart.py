"""The chart of an estimate's page: cost against time, or by machine where all take equally long. Drawn by plotly."""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Any

from estimates.catalog import CLOUD_NAMES
from estimates.cost import format_usd
from orchestrator.tables import clean, duration

BARS = 30
_SAME_TIME = 0.8  # of the machines: from there on a chart against time is a vertical line
# Told apart by those who do not see red and green alike, and on white as on black.
_COLOURS = {"sagemaker": (217, 122, 18), "vertex": (63, 131, 232)}
_OTHER_COLOUR = (138, 143, 152)
_SECONDS_PER_HOUR = 3600
_MARKS = ("fastest", "knee", "cheapest")
_BAR_PIXELS, _BAR_MARGIN_PIXELS = 22, 96


@dataclass(frozen=True)
class Point:
    """A row that can be drawn: its hours, and USD in the market that the estimate is for."""

    row: Mapping[str, Any]
    hours: float
    usd: float

    @property
    def kind(self) -> tuple[str, str]:
        return str(self.row["cloud"]), "GPU" if self.row.get("gpu") else "CPU"


def drawable(rows: Iterable[Mapping[str, Any]], market: str) -> list[Point]:
    """Rows with hours and a cost, cheapest first. Nothing that is zero has a place on a logarithmic axis."""
    known = [row for row in rows if row["hours"] is not None and row[market] is not None]
    found = [Point(row, float(row["hours"]), float(row[market])) for row in known]
    return sorted((point for point in found if point.hours > 0 and point.usd > 0), key=lambda point: point.usd)


def draw(points: Sequence[Point]) -> tuple[dict[str, Any], int, str]:
    """The figure, its height in pixels, and what to say beneath it: against time, if the machines differ in it."""
    ((_, alike),) = Counter(point.hours for point in points).most_common(1)
    return _bars(points, alike) if alike > _SAME_TIME * len(points) else _scatter(points)


def _kinds(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    kinds: dict[tuple[str, str], list[Point]] = {}
    for point in sorted(points, key=lambda point: (point.row["cloud"], point.kind[1] == "CPU")):
        kinds.setdefault(point.kind, []).append(point)
    return kinds


def _kind_name(kind: tuple[str, str]) -> str:
    return escaped(f"{CLOUD_NAMES.get(kind[0], kind[0])}, {kind[1]}")


def _colour(cloud: str, opacity: float = 1) -> str:
    red, green, blue = _COLOURS.get(cloud, _OTHER_COLOUR)
    return f"rgba({red}, {green}, {blue}, {opacity})"


def _scatter(points: Sequence[Point]) -> tuple[dict[str, Any], int, str]:
    """Cost against time."""
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
                "color": _colour(kind[0]),
                "symbol": "circle" if kind[1] == "GPU" else "square-open",
                "size": [15 if point.row["marks"] else 9 for point in members],
                "opacity": 0.85,
            },
        )
        for kind, members in _kinds(points).items()
    ]
    layout = _layout(
        xaxis={
            "title": {"text": "time of the run"},
            "type": "log",
            "range": _range([point.hours for point in points]),
        },
        yaxis={"title": {"text": "cost, USD"}, "type": "log", "range": _range([point.usd for point in points], 2)},
        annotations=_annotations(points),
    )
    caption = (
        "Each mark is a machine; further left is faster, further down is cheaper, both on logarithmic scales. The knee"
        " is where the trade of time for money bends most."
    )
    return _plain(graph_objects.Figure(traces, layout)), 540, caption


def _bars(points: Sequence[Point], alike: int) -> tuple[dict[str, Any], int, str]:
    """Cost by machine, for machines that take equally long, all or *alike* of them: there is no time to set it against."""
    from plotly import graph_objects

    shown = list(points[:BARS])
    places = {id(point): number for number, point in enumerate(shown)}
    traces = [
        graph_objects.Bar(
            name=_kind_name(kind),
            orientation="h",
            x=[point.usd for point in members],
            y=[places[id(point)] for point in members],
            text=[escaped(cost(point.row, point.usd)) for point in members],
            textposition="outside",
            cliponaxis=False,
            hovertext=[_hover(point) for point in members],
            hoverinfo="text",
            marker={
                "color": _colour(kind[0], 1 if kind[1] == "GPU" else 0.25),
                "line": {"color": _colour(kind[0]), "width": 1.5},
            },
        )
        for kind, members in _kinds(shown).items()
    ]
    most = max(point.usd for point in shown)
    layout = _layout(
        xaxis={"title": {"text": "cost, USD"}, "range": [0, most * 1.28], "tickprefix": "$"},
        yaxis={
            "tickvals": list(range(len(shown))),
            "ticktext": [escaped(point.row["machine"]) for point in shown],
            "range": [len(shown) - 0.4, -0.6],
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
        },
        bargap=0.3,
    )
    count = f"the cheapest {len(shown)} of {len(points)} machines" if len(shown) < len(points) else "each machine"
    same = "All" if alike == len(points) else f"{alike} of {len(points)}"
    caption = f"Cost of {count}. {same} are reckoned with the same time, so that there is none to set it against."
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


def _range(values: Sequence[float], below: float = 1.3) -> list[float]:
    """The logarithms between which an axis shows *values* with room around them: *below* times as much at the low end."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.1 * (high - low), 0.15)
    return [low - below * room, high + room]


def _annotations(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The names of the marked machines; where beside their points there is room for them, the page's script finds out."""
    marked = [point for point in points if point.row["marks"]]
    return [
        {
            "x": math.log10(point.hours),
            "y": math.log10(point.usd),
            "text": f"<b>{escaped(', '.join(mark for mark in _MARKS if mark in point.row['marks']))}</b>"
            f"<br>{escaped(point.row['machine'])}",
            "arrowhead": 0,
            "arrowwidth": 1,
            "standoff": 8,
            "borderpad": 1,
        }
        for point in sorted(marked, key=lambda point: point.hours)
    ]


def _hover(point: Point) -> str:
    row = point.row
    lines = [
        f"<b>{escaped(row['machine'])}</b>",
        escaped(f"{CLOUD_NAMES.get(row['cloud'], row['cloud'])}, {row['region']}"),
        escaped(hardware(row)),
        escaped(f"{time(row['hours'])}, {cost(row, point.usd)}"),
        escaped(price(row)),
        *(f"<b>{escaped(mark)}</b>" for mark in row["marks"]),
        *([escaped(row["retired"])] if row["retired"] else []),
    ]
    return "<br>".join(lines)


# Words


def escaped(value: object) -> str:
    """*value* as text of a page, or of a chart, whose library reads tags of its own: nothing in it is markup."""
    return html.escape(clean(str(value)))


def hardware(row: Mapping[str, Any]) -> str:
    host = [f"{row['vcpus']} vCPU" if row["vcpus"] else "", f"{row['memory_gib']:g} GiB" if row["memory_gib"] else ""]
    return ", ".join(part for part in (accelerators(row), *host) if part) or "hardware not known"


def accelerators(row: Mapping[str, Any]) -> str:
    if not row["gpu"]:
        return ""
    memory = f" {row['gpu_memory_gib']:g} GiB" if row["gpu_memory_gib"] else ""
    return f"{row['gpu_count']} × {row['gpu']}{memory}"


def time(hours: str | None) -> str:
    return "unknown" if hours is None else duration(float(hours) * _SECONDS_PER_HOUR)


def cost(row: Mapping[str, Any], usd: object) -> str:
    """`~$57.31`; the sign where the price was derived."""
    if usd is None:
        return "unknown"
    return ("~" if row["price_published"] is False else "") + format_usd(Decimal(str(usd)))


def price(row: Mapping[str, Any]) -> str:
    """`~$28.152/h, price of 2026-08-17`."""
    if row["price_usd_per_hour"] is None:
        return "price unknown"
    old = ", which is old" if row["stale"] else ""
    return f"{hourly(row)}/h, price of {row['price_as_of']}{old}"


def hourly(row: Mapping[str, Any]) -> str:
    if row["price_usd_per_hour"] is None:
        return "unknown"
    with localcontext(rounding=ROUND_CEILING):
        return f"{'~' if row['price_published'] is False else ''}${Decimal(row['price_usd_per_hour']):,.4f}"


# In the browser

# Ticks are ours: plotly's own on a logarithmic axis are bare digits, and hours read better as minutes or days.
SCRIPT = """
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
  for (const note of layout.annotations || []) note.arrowcolor = ink;
  layout.dragmode = narrow ? false : "zoom";
  layout.margin.l = narrow ? 48 : 64;
  layout.font.size = narrow ? 11 : 13;
  return layout;
}
// Each label goes where it covers least: to one of 24 places around its point, by the pixels of what is drawn.
function placed(layout) {
  const {w, h} = chart._fullLayout._size, em = layout.font.size;
  const pixel = (axis, log, size) => (log - axis.range[0]) / (axis.range[1] - axis.range[0]) * size;
  const spot = (x, y) => ({x: pixel(layout.xaxis, x, w), y: h - pixel(layout.yaxis, y, h)});
  const points = FIGURE.data.flatMap(trace => trace.x.map((x, at) => spot(Math.log10(x), Math.log10(trace.y[at]))));
  const taken = [];
  for (const note of layout.annotations) {
    const {x, y} = spot(note.x, note.y);
    const letters = Math.max(...note.text.replace(/<.?b>/g, "").split("<br>").map(line => line.length));
    const wide = letters * em * 0.62 + 6, high = em * 2.7;
    const places = [16, 34, 56, 80].flatMap(far => [["right", "top"], ["left", "top"], ["left", "bottom"], ["right", "bottom"],
      ["center", "top"], ["center", "bottom"]].map(([across, along]) => {
      const ax = across === "center" ? 0 : across === "left" ? 8 : -8, ay = along === "top" ? far : -far;
      const left = x + ax - {left: 0, center: wide / 2, right: wide}[across], top = y + ay - (along === "top" ? 0 : high);
      const box = {left, top, right: left + wide, bottom: top + high};
      const out = Math.max(0, -left) + Math.max(0, box.right - w) + Math.max(0, -top) + Math.max(0, box.bottom - h);
      const hit = points.filter(at => at.x > left - 5 && at.x < box.right + 5 && at.y > top - 5 && at.y < box.bottom + 5);
      const over = taken.filter(other => other.left < box.right && other.right > left && other.top < box.bottom
        && other.bottom > top);
      const cost = 1000 * over.length + 20 * out + 10 * hit.length + far / 10;
      return {cost, box, set: {ax, ay, xanchor: across, yanchor: along, align: across}};
    }));
    const best = places.reduce((one, other) => other.cost < one.cost ? other : one);
    taken.push(best.box);
    Object.assign(note, best.set);
  }
  return layout;
}
const full = structuredClone(FIGURE.layout);
let shown = full;
function draw() {
  const config = {displaylogo: false, displayModeBar: false, responsive: true, doubleClick: false};
  const drawn = Plotly.react(chart, FIGURE.data, structuredClone(dressed(shown)), config);
  if (!shown.annotations?.length) return drawn;
  return drawn.then(() => Plotly.react(chart, FIGURE.data, structuredClone(placed(shown)), config));
}
draw().then(() => {
  chart.on("plotly_relayout", change => {
    const ends = axis => ["range[0]", "range[1]"].map(end => change[axis + "." + end]);
    if (full.xaxis.type !== "log" || !("xaxis.range[0]" in change || "yaxis.range[0]" in change)) return;
    shown = structuredClone(shown);
    for (const axis of ["xaxis", "yaxis"]) if (ends(axis)[0] !== undefined) shown[axis].range = ends(axis);
    draw();
  });
  chart.on("plotly_doubleclick", () => { shown = full; draw(); });
});
dark.addEventListener("change", draw);
addEventListener("resize", draw);
"""
