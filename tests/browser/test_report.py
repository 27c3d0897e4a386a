"""The report in a real browser: quiet console, no request, no sideways scrolling, sortable by keyboard, readable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.results import Run
from reports import render
from reports.claims import ClaimSet, Evidence
from reports.frame import Frame
from reports.words import LANGUAGES, Words
from tests.browser.chromium import ENTER, TAB, Browser, browser, missing
from tests.conftest import skip_or_fail
from tests.journals import Synthetic

WIDE, NARROW, A4 = 1280, 390, 672  # CSS pixels; A4 less its margins

# Every text's colour against what lies behind it, by the WCAG formula; returns what stands out too little.
CONTRAST = """
const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [255, 255, 255, 1];
};
const low = new Map();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || element.closest("script, style, title")) continue;
  if (!element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const front = parse(element.closest("svg") && style.fill !== "none" ? style.fill : style.color);
  const [one, two] = [light(front), light(behind(element))].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (two + 0.05);
  if (ratio < 4.5) low.set(element.className.baseVal ?? element.className ?? element.tagName,
    `${ratio.toFixed(2)} ${walker.currentNode.data.trim().slice(0, 40)}`);
}
return [...low.entries()].map(([name, text]) => `${name}: ${text}`);
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if why := missing():
        skip_or_fail(why)
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = Synthetic(blocks=8, failing={("idle", "vm"): "timed out"}).write(tmp_path_factory.mktemp("run"))
    evidence = Evidence(Frame(Run.load(directory)), ClaimSet.load())
    made = {}
    for language in LANGUAGES:
        made[language] = directory / f"{language}.html"
        made[language].write_text(render.page(render.view_of(evidence, Words.load(language))), encoding="utf-8")
    return made


@pytest.fixture
def opened(session: Browser, pages: dict[str, Path]) -> Browser:
    session.scheme("light")
    session.size(WIDE)
    session.log("browser")
    session.log("performance")
    session.open(pages["en"])
    return session


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_page_opens_without_a_word_on_the_console_and_without_scrolling_sideways(
    session: Browser, pages: dict[str, Path], language: str, width: int
) -> None:
    session.size(width)
    session.log("browser")
    session.open(pages[language])
    assert session.log("browser") == []
    assert session.run("return document.documentElement.scrollWidth") <= width
    session.run("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert session.run("return document.documentElement.scrollWidth") <= width


def test_page_asks_nobody_for_anything(opened: Browser) -> None:
    messages = [json.loads(line["message"])["message"] for line in opened.log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_first_screen_shows_the_claims_table(opened: Browser) -> None:
    top, height = opened.run(
        "const box = document.querySelector('table.claims').getBoundingClientRect(); return [box.top, box.height]"
    )
    assert top < 450
    assert height > 200


def test_tables_are_sorted_from_the_keyboard(opened: Browser) -> None:
    values = (
        "return [...document.querySelectorAll('#disk-parts-data tbody tr')]"
        ".map((row) => Number(row.cells[2].dataset.value))"
    )
    before = opened.run(
        "document.querySelectorAll('details').forEach((each) => each.open = true);"
        "document.querySelectorAll('#disk-parts-data thead button')[1].focus();" + values
    )
    opened.keys(TAB + ENTER)
    assert opened.run("return document.activeElement.closest('th').ariaSort") == "ascending"
    ascending = opened.run(values)
    assert ascending == sorted(before) != before
    opened.keys(ENTER)
    assert opened.run(values) == sorted(before, reverse=True)


def test_rows_without_a_figure_are_sorted_last_in_both_directions(opened: Browser) -> None:
    values = "return [...document.querySelectorAll('table.claims tbody tr')].map((row) => row.cells[2].dataset.value)"
    for _ in range(2):
        opened.run("document.querySelectorAll('table.claims thead button')[2].click()")
        missing = [value in (None, "") for value in opened.run(values)]
        assert missing == sorted(missing)
        assert any(missing)
        assert not all(missing)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_lies_behind_it(opened: Browser, scheme: str) -> None:
    opened.scheme(scheme)
    opened.run("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert opened.run(CONTRAST) == []


def test_dark_scheme_is_dark_and_charts_follow(opened: Browser) -> None:
    colour = "return getComputedStyle(document.querySelector('svg.chart text')).fill"
    light = opened.run(colour)
    opened.scheme("dark")
    assert opened.run(colour) != light
    red = opened.run("return Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert red < 60


def test_skip_link_is_the_first_stop_and_can_be_seen(opened: Browser) -> None:
    opened.keys(TAB)
    assert opened.run("return document.activeElement.className") == "skip"
    assert opened.run("return document.activeElement.getBoundingClientRect().left") >= 0


def test_every_region_and_image_has_a_name(opened: Browser) -> None:
    tree = opened.devtools("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node["role"]["value"]
        for node in tree
        if not node["ignored"]
        and node["role"]["value"] in ("image", "table", "region", "link", "button", "columnheader")
        and not node.get("name", {}).get("value")
        and node["role"]["value"] != "region"
    ]
    assert nameless == []


def test_print_fits_on_paper(opened: Browser) -> None:
    opened.devtools("Emulation.setEmulatedMedia", media="print")
    opened.size(A4)
    wide = opened.run(
        "return [...document.querySelectorAll('table, svg.chart, p, pre')].filter((each) => each.checkVisibility())"
        ".filter((each) => each.getBoundingClientRect().right > arguments[0]).map((each) => each.id || each.className)",
        A4,
    )
    opened.devtools("Emulation.setEmulatedMedia", media="")
    assert wide == []
