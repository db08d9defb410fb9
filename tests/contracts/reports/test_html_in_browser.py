"""The page in a real browser: phone and desktop, light and dark.

Needs Debian's package chromium and playwright (dependency group ``browser``); run with
``pytest -m browser``. Without Chromium these tests fail, they do not skip.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
VIEWS = [(width, scheme) for width in (380, 1400) for scheme in ("light", "dark")]

CONTRAST = 4.5
"""The ratio that WCAG 2.1 asks for of ordinary text (level AA, 1.4.3)."""

LOW_CONTRAST = """
(limit) => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const drawn = parse(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(drawn), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < limit) low.push([walk.currentNode.data.trim(), ratio]);
  }
  return low;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "there is no chromium on the path: apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(made: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a page with every kind of record, long names and long lines."""
    long = "acme_attention_with_a_name_that_is_longer_than_a_phone_is_wide"
    dtypes = ("float64", "float32", "bfloat16", "float16")
    kinds = ("passed", "failed", "error", "inconclusive", "unsupported", "xfail")
    records = [
        made.record(
            f"{variant}/{implementation}/{dtype}/cpu/{check}[i={i}]",
            status=kinds[(i * 7 + len(check)) % 6] if variant == long else "passed",
            value=10.0 ** (i - 5),
            threshold=1.0,
            unit="analytic units",
        )
        for variant in (long, "flash")
        for implementation in ("reference", "tiled", "auto", "layer")
        for dtype in dtypes
        for i, check in enumerate(("S1.output", "M3.support", "A4.row_sums", "T2.steps", "X9.acme"))
    ]
    unbroken = "torch.equal(" + "x" * 300 + ")"
    records.append(
        made.record(
            f"{long}/tiled/float32/cpu/N1.forward",
            status="failed",
            reason=unbroken,
            reproduction=unbroken,
        )
    )
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    wide = "| " + " | ".join(f"column {i}" for i in range(20)) + " |"
    table = f"## Acme\n\n{wide}\n{'| --- ' * 20}|\n{wide}\n"
    made.report(*records, sections=(table,)).write(path)
    return path.as_uri()


@pytest.fixture(params=VIEWS, ids=[f"{width}-{scheme}" for width, scheme in VIEWS])
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    width, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=True
    )
    opened = context.new_page()
    opened.requested = []
    opened.on("request", lambda request: opened.requested.append(request.url))
    opened.goto(address)
    yield opened
    context.close()


def open_all(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")


def test_nothing_is_wider_than_the_window(page: Any) -> None:
    open_all(page)

    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_failure_opens_when_it_is_clicked(page: Any) -> None:
    page.locator("details.check > summary").nth(1).click()
    inner = page.locator("details.check").nth(1).locator("details").first
    script = inner.locator("pre.script")
    before = script.is_visible()
    inner.locator("summary").click()

    assert (before, script.is_visible()) == (False, True)


def test_a_link_of_the_matrix_leads_to_an_open_place(page: Any) -> None:
    link = page.locator("table.matrix a").nth(2)
    link.click()

    assert page.locator(link.get_attribute("href")).locator("summary").is_visible()


def test_every_text_can_be_read_in_its_scheme(page: Any) -> None:
    open_all(page)

    assert page.evaluate(LOW_CONTRAST, CONTRAST) == []


def test_the_scheme_of_the_system_is_followed(page: Any) -> None:
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    red = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")

    assert (red < 128) == dark


def test_the_marks_lie_within_their_strips(page: Any) -> None:
    outside = page.evaluate(
        """() => [...document.querySelectorAll('.mark')].filter((mark) => {
          const [m, s] = [mark, mark.closest('.plot')].map((each) => each.getBoundingClientRect());
          return m.left < s.left || m.right > s.right || m.width === 0;
        }).length"""
    )
    assert outside == 0


def test_nothing_else_is_asked_for(page: Any, address: str) -> None:
    assert page.requested == [address]
