"""Pages as a reader meets them: nothing is loaded, all is readable, search, sort and choice work."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from opened_pages import Opened
from playwright.sync_api import Browser

KINDS = (
    *("merge", "look", "transform", "extract", "inject"),
    *("verify", "wrong", "manifest", "spectra", "compare", "strategy", "combine", "served"),
)

CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (colour) => numbers(colour).map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const style = getComputedStyle(document.documentElement);
  const resolve = (name) => {
    const element = document.createElement("i");
    document.body.append(element);
    element.style.color = `var(--${name})`;
    const found = getComputedStyle(element).color;
    element.remove();
    return found;
  };
  const ratio = (a, b) => {
    const found = [light(resolve(a)), light(resolve(b))];
    return (Math.max(...found) + 0.05) / (Math.min(...found) + 0.05);
  };
  const pairs = [["ink", "page"], ["muted", "page"], ["ink", "panel"], ["muted", "panel"], ["accent", "page"],
    ["fine", "fine-panel"], ["look", "look-panel"], ["ink", "look-panel"]];
  for (let n = 0; n < 9; n++) pairs.push([`heat-ink-${n}`, `heat-${n}`]);
  for (let n = 0; n < 8; n++) pairs.push(["ink", `tint-${n}`]);
  return pairs.map(([a, b]) => [a, b, ratio(a, b)]);
}"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_asks_nobody_for_anything_and_complains_of_nothing(
    browser: Browser, pages: dict[str, Path], kind: str
) -> None:
    opened = Opened(browser, pages[kind])
    assert opened.messages == []
    assert opened.requests == [pages[kind].as_uri()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_never_scrolls_sideways(browser: Browser, pages: dict[str, Path], kind: str, width: int) -> None:
    page = Opened(browser, pages[kind], width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_pair_of_colours_is_readable(browser: Browser, pages: dict[str, Path], scheme: str) -> None:
    page = Opened(browser, pages["merge"], scheme=scheme).page
    assert [pair for pair in page.evaluate(CONTRAST) if pair[2] < 4.5] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, pages: dict[str, Path], kind: str, scheme: str) -> None:
    page = Opened(browser, pages[kind], scheme=scheme, bypass_csp=True).page
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == []


def test_a_search_leaves_the_rows_that_have_all_words(browser: Browser, pages: dict[str, Path]) -> None:
    page = Opened(browser, pages["merge"]).page
    page.get_by_role("searchbox").first.fill("layers.3 wq")
    rows = page.locator("#weights-table tbody tr:visible")
    assert rows.count() == 1
    assert "model.layers.3.attention.wq.weight" in rows.first.inner_text()
    assert page.get_by_role("status").first.inner_text() == "1 of 32 rows"


def test_a_header_sorts_by_number_from_the_keyboard_and_says_so(browser: Browser, pages: dict[str, Path]) -> None:
    page = Opened(browser, pages["merge"]).page
    header = page.locator("#weights-table thead th").nth(5)
    numbers = "[...document.querySelectorAll('#weights-table tbody tr')].map(r => Number(r.cells[5].dataset.order))"
    header.get_by_role("button").focus()
    for key, order, reverse in (("Enter", "ascending", False), ("Space", "descending", True)):
        page.keyboard.press(key)
        assert header.get_attribute("aria-sort") == order
        found = page.evaluate(numbers)
        assert found == sorted(found, reverse=reverse)
        assert len(set(found)) > 10


def test_the_heatmaps_show_the_numbers_of_the_json(browser: Browser, pages: dict[str, Path]) -> None:
    page = Opened(browser, pages["merge"]).page
    report = json.loads(page.locator("#report").text_content() or "")
    for figure, field in (("delta-map", "relative_delta"), ("unchanged-map", "unchanged_share")):
        cells = page.evaluate(
            f"[...document.querySelectorAll('#{figure} [data-name]')].map(e => [e.dataset.name, +e.dataset.value])"
        )
        assert dict(cells) == {weight["name"]: weight[field] for weight in report["weights"]}


def test_one_layout_is_shown_at_a_time_and_chosen(browser: Browser, pages: dict[str, Path]) -> None:
    page = Opened(browser, pages["transform"]).page
    visible = page.locator("#layout .option:visible")
    assert visible.count() == 1
    before = visible.get_attribute("aria-label")
    page.locator("#layout-select").select_option(index=1)
    assert visible.count() == 1
    assert visible.get_attribute("aria-label") != before


def test_without_javascript_all_of_it_is_there(browser: Browser, pages: dict[str, Path]) -> None:
    page = Opened(browser, pages["transform"], java_script_enabled=False).page
    assert page.locator("#layout .option:visible").count() == 3
    assert page.locator("button, input, select").locator("visible=true").count() == 0


def test_headings_descend_one_level_at_a_time(browser: Browser, pages: dict[str, Path]) -> None:
    page = Opened(browser, pages["transform"]).page
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
