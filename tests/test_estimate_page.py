"""The page of an estimate: whole in one file, inert whatever it is told, and looked at in a real browser where there is one.

The browser's tests need Chromium on PATH; they are slow, and skipped where there is none, as in CI.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import BadInput
from orchestrator.estimate_page import INSTALL, page
from tests.browser import Browser
from tests.conftest import REPOSITORY, wait_until

EVIL = "<script>pwned=1</script><img src=x onerror=pwned=1>'\"&</td><b>"


def a_row(machine: str, hours: str | None, usd: str | None, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "machine": machine, "cloud": "sagemaker" if machine.startswith("ml.") else "vertex", "region": "us-east-1",
        "gpu": "A100", "gpu_count": 8, "gpu_memory_gib": 40.0, "vcpus": 96, "memory_gib": 1152.0, "hours": hours,
        "hours_from": "as typed (--hours)", "usd_low": usd, "usd": usd, "usd_high": usd, "usd_spot_low": None,
        "usd_spot": None, "usd_spot_high": None, "price_usd_per_hour": "12.5" if usd else None,
        "price_published": True if usd else None, "price_as_of": "2026-08-17" if usd else None,
        "price_source": "a price list" if usd else None, "stale": False, "marks": [], "retired": None,
    }  # fmt: skip
    return row | changes


def a_document(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "script": "mlp.py", "hours_from": "as typed (--hours)", "made_at": "2026-11-22T22:04:11+00:00", "rows": rows,
        "priced": sum(row["usd"] is not None for row in rows), "total": len(rows), "notes": ["a note"],
        "assumptions": ["an assumption"], "not_counted": ["taxes"],
    }  # fmt: skip
    return document | changes


def some_rows() -> list[dict[str, Any]]:
    """Two hundred machines that can be drawn, on a curve of hours and USD, in both clouds, and two without a price."""
    drawn = []
    for number in range(200):
        hours, name = 0.3 * 1.03**number, f"ml.p{number}.xlarge" if number % 2 else f"a{number}-highgpu-1g"
        usd = 4 + 40 / (1 + number) + (number * 37 % 23) * (number % 3)
        gpu = "A100" if number % 3 else None
        drawn.append(a_row(name, f"{hours:.4f}", f"{usd:.6f}", gpu=gpu, gpu_count=8 if gpu else 0))
    drawn[0]["marks"], drawn[30]["marks"], drawn[198]["marks"] = ["fastest"], ["knee"], ["cheapest"]
    drawn[5] |= {"price_published": False, "usd_low": "1.5", "usd_high": "99.25"}
    return [*drawn, a_row("ml.dark.xlarge", "1", None), a_row("dark-2", None, None, price_usd_per_hour="3")]


class Read(HTMLParser):
    """What a page holds: its tags with their attributes, the text of each table row, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.words = ""
        self._in = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = "" if tag in ("script", "style", "table") else self._in

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.words += data
            if self.rows and self.rows[-1] and self._in:
                self.rows[-1][-1] += data

    def figure(self) -> dict[str, Any]:
        text = next(script for script in self.scripts if script.startswith("const FIGURE = "))
        found, _ = json.JSONDecoder().raw_decode(text.removeprefix("const FIGURE = "))
        return dict(found)


def test_the_page_asks_nobody_for_anything() -> None:
    read = Read(page(a_document(some_rows())))
    for tag, attributes in read.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img")
        assert "src" not in attributes
        assert str(attributes.get("href", "#")).startswith("#")
        assert not [name for name in attributes if name.startswith("on")]


def test_its_policy_allows_no_connection_and_no_script_but_its_own() -> None:
    read = Read(page(a_document(some_rows())))
    policy = next(found["content"] for tag, found in read.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy
    own = {
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'" for text in read.scripts
    }
    assert own == set(re.findall(r"'sha256-[^']+'", policy))
    assert len(own) == 3


def test_every_machine_is_in_the_table_and_what_is_not_known_is_called_unknown() -> None:
    rows = some_rows()
    read = Read(page(a_document(rows)))
    table = read.rows[1:]
    assert [words[0].split()[0] for words in table] == [row["machine"] for row in rows]
    named = dict(zip(read.rows[0], table[-1], strict=True))
    assert (named["time"], named["on demand"], named["on spot"]) == ("unknown", "unknown", "unknown")
    assert "$0" not in "".join(table[-1])


def test_a_derived_price_has_its_sign_and_a_range_its_ends() -> None:
    read = Read(page(a_document(some_rows())))
    named = dict(zip(read.rows[0], read.rows[6], strict=True))
    assert named["on demand"].startswith("~$")
    assert "~$1.50–$99.25" in named["on demand"]
    assert named["per hour"] == "~$12.5000"
    hover = next(text for trace in read.figure()["data"] for text in trace["hovertext"] if "ml.p5.xlarge" in text)
    assert "~$12.5000/h, price of 2026-08-17" in hover


def test_every_price_has_its_date_and_leads_to_its_source() -> None:
    rows = [a_row("ml.a", "1", "2"), a_row("ml.b", "2", "1", price_source="a bill", stale=True)]
    text = page(a_document(rows))
    assert "2026-08-17 <a href='#source-1'>[1]</a>" in text
    assert "2026-08-17 <small>old</small> <a href='#source-2'>[2]</a>" in text
    assert "<li id='source-2'>a bill</li>" in text


def test_assumptions_what_is_not_counted_and_the_date_are_in_words() -> None:
    words = Read(page(a_document([a_row("ml.a", "1", "2")]))).words
    for said in (
        "a note",
        "an assumption",
        "taxes",
        "Made 2026-11-22 22:04 UTC",
        "as typed (--hours)",
        "1 of 1 machines",
    ):
        assert said in words


def test_the_points_are_the_machines_with_hours_and_a_cost() -> None:
    figure = Read(page(a_document(some_rows()))).figure()
    assert sum(len(trace["x"]) for trace in figure["data"]) == 200
    assert [trace["name"] for trace in figure["data"]] == [
        "SageMaker, GPU", "SageMaker, CPU", "Vertex AI, GPU", "Vertex AI, CPU",
    ]  # fmt: skip
    assert (figure["layout"]["xaxis"]["type"], figure["layout"]["yaxis"]["type"]) == ("log", "log")
    assert len({json.dumps(trace["marker"]["color"]) for trace in figure["data"]}) == 2
    assert len({trace["marker"]["symbol"] for trace in figure["data"]}) == 2
    labels = [note["text"] for note in figure["layout"]["annotations"]]
    assert labels == [
        "<b>fastest</b><br>a0-highgpu-1g",
        "<b>knee</b><br>a30-highgpu-1g",
        "<b>cheapest</b><br>a198-highgpu-1g",
    ]


def test_machines_that_all_take_equally_long_are_bars_the_cheapest_thirty() -> None:
    rows = [a_row(f"ml.m{number}", "2", f"{100 - number}") for number in range(40)]
    read = Read(page(a_document(rows)))
    layout = read.figure()["layout"]
    (trace,) = read.figure()["data"]
    assert trace["type"] == "bar"
    assert trace["x"] == [float(usd) for usd in range(61, 91)]
    assert layout["yaxis"]["ticktext"] == [f"ml.m{number}" for number in range(39, 9, -1)]
    assert "the cheapest 30 of 40 machines. All are reckoned with the same time" in read.words
    assert len(read.rows) == 41


def test_one_machine_with_hours_of_its_own_makes_no_chart_against_time() -> None:
    rows = [a_row(f"ml.m{number}", "2", "5") for number in range(9)]
    read = Read(page(a_document([*rows, a_row("ml.own", "2.5", "6")])))
    assert [trace["type"] for trace in read.figure()["data"]] == ["bar"]
    assert "each machine. 9 of 10 are reckoned with the same time" in read.words
    read = Read(page(a_document([*rows[:3], a_row("ml.own", "2.5", "6")])))
    assert [trace["type"] for trace in read.figure()["data"]] == ["scatter"]


def test_an_estimate_for_spot_draws_the_price_of_spot() -> None:
    rows = [a_row("ml.a", "1", "9", usd_spot="3"), a_row("ml.b", "2", "7", usd_spot="2"), a_row("ml.c", "3", "5")]
    read = Read(page(a_document(rows, spot=True)))
    assert [trace["y"] for trace in read.figure()["data"]] == [[2.0, 3.0]]
    assert "1 more have no known price on spot" in read.words


def test_what_costs_nothing_has_no_place_on_a_logarithmic_axis_and_that_is_said() -> None:
    read = Read(page(a_document([a_row("ml.free", "1", "0"), a_row("ml.a", "1", "2"), a_row("ml.b", "2", "1")])))
    assert sum(len(trace["x"]) for trace in read.figure()["data"]) == 2
    assert "1 more cost nothing" in read.words


def test_a_page_without_a_known_cost_is_its_table_and_has_no_chart() -> None:
    text = page(a_document([a_row("ml.a", "1", None)]))
    assert len(text) < 50_000
    assert "nothing to draw" in text
    assert len(Read(text).rows) == 2
    assert "nothing to draw" in page(a_document([]))


def evil_document() -> dict[str, Any]:
    marked = [
        a_row(f"ml.{EVIL}", f"{hours}", f"{5 - hours}", region=EVIL, gpu=EVIL, price_source=EVIL, retired=EVIL, marks=marks,
              hours_from=EVIL, price_as_of=EVIL)
        for hours, marks in ((1, ["fastest"]), (2, []), (4, ["cheapest"]))
    ]  # fmt: skip
    return a_document(
        marked, script=EVIL, hours_from=f"as {EVIL}", notes=[EVIL], assumptions=[EVIL], not_counted=[EVIL]
    )


def test_names_that_are_markup_stay_names() -> None:
    read = Read(page(evil_document()))
    assert len(read.scripts) == 3
    assert not [tag for tag, _ in read.tags if tag == "img"]
    assert len(read.rows) == 4
    assert EVIL in read.words
    figure = read.figure()
    assert "<script" not in json.dumps(figure)
    assert "&lt;script&gt;" in figure["layout"]["annotations"][0]["text"]


def test_control_codes_and_halves_of_letters_can_be_written_as_utf_8() -> None:
    text = page(a_document([a_row("ml.a", "1", "2")], script="a\x1b[31m\udce9.py"))
    assert "What a\ufffd[31m\ufffd.py would cost" in text.encode().decode()


def test_without_plotly_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(BadInput, match="needs plotly") as caught:
        page(a_document(some_rows()))
    assert caught.value.hint == INSTALL


def test_plotly_is_imported_only_for_a_page() -> None:
    program = "import sys; from orchestrator import estimate_page; sys.exit('plotly' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# In a real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH")
    with Browser(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    equal = [a_row(f"ml.a{number}.24xlarge", "2", f"{100 - number}", gpu=None) for number in range(40)]
    made = {"scatter": a_document(some_rows()), "bars": a_document(equal), "evil": evil_document()}
    folder = tmp_path_factory.mktemp("pages")
    for name, document in made.items():
        (folder / f"{name}.html").write_text(page(document), "utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("name", "drawn"), [("scatter", 200), ("bars", 30), ("evil", 3)])
def test_the_page_is_whole_in_a_browser(
    browser: Browser, pages: dict[str, Path], name: str, drawn: int, width: int, dark: bool
) -> None:
    browser.show(pages[name], width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.querySelectorAll('#chart .point').length") == drawn
    assert browser.value("typeof pwned") == "undefined"
    assert browser.value("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)"
    )
    ink = browser.value("getComputedStyle(document.querySelector('#chart .xtick text')).fill")
    assert ink == browser.value("getComputedStyle(document.body).color")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["scatter", "bars"])
def test_no_words_of_the_chart_overlap_or_are_cut_off(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    browser.show(pages[name], width)
    boxes = browser.value(
        "[...document.querySelectorAll('#chart .xtick text, #chart .ytick text, #chart .annotation-text,"
        " #chart .legendtext, #chart .bartext')].map(one => { const box = one.getBoundingClientRect();"
        " return [one.textContent, box.left, box.top, box.right, box.bottom]; })"
    )
    assert len(boxes) > 10
    chart = browser.value("(box => [box.left, box.right])(document.getElementById('chart').getBoundingClientRect())")
    for at, (words, left, top, right, bottom) in enumerate(boxes):
        assert chart[0] <= left, words
        assert right <= chart[1], words
        for other, *(other_left, other_top, other_right, other_bottom) in boxes[:at]:
            apart = left >= other_right or right <= other_left or top >= other_bottom - 1 or bottom <= other_top + 1
            assert apart, (words, other)


@pytest.mark.slow
def test_hovering_tells_the_machine_its_hours_its_cost_and_the_date_of_its_price(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.show(pages["scatter"], 1280)
    where = browser.value(
        "(box => [box.left + box.width / 2, box.top + box.height / 2])"
        "(document.querySelector('#chart .trace:last-of-type .point').getBoundingClientRect())"
    )
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=where[0], y=where[1])
    words = wait_until(lambda: browser.value("document.querySelector('#chart .hovertext')?.textContent"))
    assert re.search(r"(highgpu-1g|xlarge).*(min|h|s), ~?\$\d.*/h, price of 2026-08-17", words)


@pytest.mark.slow
def test_a_drag_shows_a_part_with_ticks_of_its_own_and_a_double_click_the_whole(
    browser: Browser, pages: dict[str, Path]
) -> None:
    def ticks() -> list[str]:
        return list(browser.value("[...document.querySelectorAll('#chart .xtick text')].map(one => one.textContent)"))

    def mouse(kind: str, x: float, y: float, clicks: int = 1) -> None:
        browser.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=clicks)

    browser.show(pages["scatter"], 1280)
    whole = ticks()
    assert len(whole) >= 3
    mouse("mousePressed", 500, 250)
    for x in (520, 600, 640):
        mouse("mouseMoved", x, 400)
    mouse("mouseReleased", 640, 400)
    wait_until(lambda: ticks() != whole)
    assert len(ticks()) >= 3

    def whole_again() -> bool:
        for click in (1, 2):  # again, where this machine was too busy for two clicks to make a double one
            mouse("mousePressed", 700, 300, click)
            mouse("mouseReleased", 700, 300, click)
        return ticks() == whole

    wait_until(whole_again)
    assert browser.complaints() == []


@pytest.mark.slow
def test_a_click_on_a_columns_name_sorts_by_number_with_the_unknown_last_both_ways(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.show(pages["scatter"], 1280)
    column = browser.value("[...document.querySelectorAll('th')].findIndex(one => one.textContent === 'on demand')")
    read = f"[...document.querySelectorAll('#machines tbody tr')].map(row => row.cells[{column}].dataset.v ?? null)"
    for order in (False, True):
        browser.value(f"document.querySelectorAll('th button')[{column}].click()")
        found = browser.value(read)
        assert found[-2:] == [None, None]
        known = [float(usd) for usd in found[:-2]]
        assert len(known) == 200
        assert known == sorted(known, reverse=order)


@pytest.mark.slow
def test_the_table_can_be_read_without_javascript(browser: Browser, pages: dict[str, Path]) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.events.clear()
        browser.ask("Page.navigate", url=pages["bars"].as_uri())
        wait_until(lambda: any(event.get("method") == "Page.loadEventFired" for event in browser.heard()))
        shown = browser.ask("DOM.getDocument", depth=0)["root"]["nodeId"]
        table = browser.ask("DOM.querySelector", nodeId=shown, selector="#machines")["nodeId"]
        assert browser.ask("DOM.getBoxModel", nodeId=table)["model"]["height"] > 500
        said = browser.ask("DOM.querySelector", nodeId=shown, selector="#chart noscript")["nodeId"]
        assert "needs JavaScript" in browser.ask("DOM.getOuterHTML", nodeId=said)["outerHTML"]
        assert not browser.ask("DOM.querySelector", nodeId=shown, selector="th button")["nodeId"]
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
