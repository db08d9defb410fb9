"""JUnit, Markdown and HTML: what each must hold, whatever is in the report."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from attnkit.errors import ArgumentError
from attnkit_contracts import ExpectedFailure
from attnkit_contracts.reports import plot
from attnkit_contracts.reports.diagnosis import Diagnosis, Explaining
from attnkit_contracts.reports.records import Proof, Report

if TYPE_CHECKING:
    from pathlib import Path

VOID = {"meta", "br", "hr", "img", "link", "input"}
SHAPES = {"path", "circle", "rect", "line", "use"}

RED = "acme/fast/float32/cpu/A4.row_sums"
LOUD = "acme/fast/float16/cpu/M1.suffix_perturbation[p=3]"
ISSUE = "https://example.org/acme/issues/12"


@pytest.fixture(scope="module")
def report(made: Any) -> Report:
    """One record of every kind, in two variants, with something hostile in each text."""
    return made.report(
        made.record("acme/fast/float32/cpu/N1.forward", value=0.5, threshold=2.0, unit="units"),
        made.record("acme/fast/bfloat16/cpu/N1.forward", value=math.inf, threshold=2.0, unit="u",
                    status="failed"),
        made.record(RED, status="failed", value=5.0, threshold=2.0, unit="units",
                    reason="<script>alert(1)</script> & 5 > 2"),
        made.record(LOUD, status="error", reason="bell \x07 rings"),
        made.record("acme/fast/float32/cpu/S3.determinism", status="inconclusive"),
        made.record("acme/fast/float64/cpu/S3.determinism", status="xpass"),
        made.record("acme/fast/float16/cpu/S5.strides", status="unsupported", reason="no strides"),
        made.record("acme/fast/bfloat16/cpu/S5.strides", status="skipped_env", reason="no GPU"),
        made.record(
            "acme/fast/float16/cpu/N1.forward",
            status="xfail",
            expected=ExpectedFailure(id="x", reason="sums in float16", issue=ISSUE),
        ),
        made.record("acme/fast/float32/cpu/X1.acme", status="failed", advisory=True),
        made.record("other/auto/float32/cpu/A4.row_sums", value=0.0, threshold=2.0, unit="units"),
        missing=("acme/layer/float32/cpu",),
        proofs=(Proof(check="X1.acme", wrong="acme_bad", caught_by="acme_bad/a/float32/cpu/X1"),),
        unproven=("X2.acme",),
        sections=("## Acme\n\n<b>loud</b> ![x](http://e.org/x.png) [here](http://e.org)\n",),
    )  # fmt: skip


class Page(HTMLParser):
    """What a test asks of a page; fails on tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.tags.append((tag, given))
        if tag not in VOID:
            self.open.append((tag, given))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, text: str) -> None:
        self.texts.append((tuple(tag for tag, _ in self.open), text))

    def within(self, tag: str) -> str:
        return "".join(text for path, text in self.texts if tag in path)

    def values(self, attribute: str) -> list[str]:
        return [given[attribute] for _, given in self.tags if attribute in given]


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.to_html())


# JUnit


def cases(report: Report) -> dict[str, ElementTree.Element]:
    root = ElementTree.fromstring(report.to_junit())
    return {f"{each.get('classname')}/{each.get('name')}": each for each in root.iter("testcase")}


def test_junit_counts_what_its_cases_say(report: Report) -> None:
    root = ElementTree.fromstring(report.to_junit())

    counts = [int(root.get(name, "")) for name in ("tests", "failures", "errors", "skipped")]
    # three failures, xpass and inconclusive are red, and so is what is missing
    assert counts == [len(report.records) + 1, 5, 1, 4]


def test_junit_is_red_where_the_report_is_red_and_nowhere_else(report: Report) -> None:
    found = cases(report)
    red = [name for name, each in found.items() if each.find("failure") is not None]

    assert "acme.fast.float32.cpu/A4.row_sums" in red
    assert "acme.fast.float32.cpu/X1.acme" not in red
    assert "required/acme/layer/float32/cpu" in red
    assert found["acme.fast.float16.cpu/M1.suffix_perturbation[p=3]"].find("error") is not None


def test_junit_is_xml_whatever_a_message_holds(report: Report) -> None:
    assert "bell \ufffd rings" in report.to_junit()


def test_junit_fails_where_a_wrong_variant_survives(report: Report) -> None:
    survived = (Proof(check="X1.acme", wrong="acme_bad", caught_by=""),)
    told = cases(report.model_copy(update={"proofs": survived}))

    assert told["proofs/X1.acme on acme_bad"].find("failure") is not None


# Markdown


@pytest.mark.parametrize(
    "told",
    [
        "## Required, without a verdict\n\n- `acme/layer/float32/cpu`",
        f"### `{RED}`: failed",
        "## New checks that fail, not red yet",
        "## Known failures\n\n- `acme/fast/float16/cpu/N1.forward`",
        "- 1 unsupported: no strides",
        "- `X1.acme` on `acme_bad`: caught by",
        "- `X2.acme`: brings no wrong variant",
        "## Acme",
    ],
)
def test_markdown_says(told: str, report: Report) -> None:
    assert told in report.to_markdown()


# HTML


def test_the_page_loads_nothing(page: Page) -> None:
    loaded = [
        (tag, name, value)
        for tag, given in page.tags
        for name, value in given.items()
        if name in ("src", "srcset", "data", "action", "background")
        or (name == "href" and tag != "a" and not value.startswith("#"))
    ]
    assert loaded == []
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object"}
    assert "@import" not in page.within("style")
    assert "url(" not in page.within("style")


def test_the_page_forbids_itself_to_load_anything(page: Page) -> None:
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")


def test_every_link_within_the_page_leads_somewhere(page: Page) -> None:
    ids = page.values("id")

    assert len(ids) == len(set(ids))
    assert {each[1:] for each in page.values("href") if each.startswith("#")} <= set(ids)


def test_every_failure_can_be_opened_and_has_reason_and_script(page: Page, report: Report) -> None:
    ids = [given.get("id") for tag, given in page.tags if tag == "details"]

    assert [each for each in ids if each] == [f"failure-{i}" for i in range(1, 6)]
    for record in report.failures():
        assert record.id in page.within("summary")
        assert record.reason.replace("\x07", "") in page.within("details").replace("\x07", "")
        assert record.reproduction in page.within("pre")


def test_what_explains_a_failure_is_shown(made: Any) -> None:
    told = dict(smallest="L = 2", elements="expected 1, got 2")
    record = made.record(RED, status="failed", diagnosis="scale twice", **told)
    page = Page(made.report(record).to_html())

    assert "scale twice" in page.within("summary")
    assert {*told.values()} <= {text for path, text in page.texts if "pre" in path}


def test_a_failure_says_which_rule_it_is_about(page: Page) -> None:
    assert "The rule: With value = 1 everywhere" in page.within("section")


def test_the_page_starts_with_the_faults_and_says_each_once(made: Any) -> None:
    named = Diagnosis(mistakes=(Explaining(name="scale_twice", statement="the scale twice"),))
    script = "assert False"
    same = [
        made.record(f"{RED}[i={i}]", status="failed", diagnosis=named, reason=f"{i} of 2 allowed")
        for i in range(1, 16)
    ]
    shows = same[7].model_copy(update={"elements": "expected 1, got 2", "reproduction": script})
    records = [made.record(LOUD, status="failed"), *same[:7], shows, *same[8:]]
    text = made.report(*records).to_html()
    page = Page(text)
    markdown = made.report(*records).to_markdown()

    assert text.index('id="failures"') < text.index('id="matrix"')
    assert "2 faults" in page.within("h2")
    assert page.within("summary").count("equals the definition with the scale twice") == 1
    assert page.within("p").count("and 14 more instances of the same fault") == 1
    assert [page.within("pre").count(each) for each in ("8 of 2", script)] == [1, 1]
    # what has a name comes first
    assert markdown.index("scale_twice") < markdown.index(LOUD)
    assert markdown.count("and 14 more instances of the same fault:") == 1


def test_the_matrix_counts_out_of_what_was_expected(page: Page) -> None:
    cells = [text for path, text in page.texts if "td" in path and "table" in path and "/" in text]
    # of acme: strides and determinism, the suffix, row sums, numerics, the extension's own
    assert cells[:5] == ["0/4", "0/1", "0/1", "1/3", "0/1"]


def test_a_cell_with_a_failure_links_to_it(page: Page) -> None:
    links = [given["href"] for tag, given in page.tags if tag == "a" and given.get("class")]

    assert "#failure-2" in links


def test_the_plot_has_a_mark_per_subject_within_the_axis(page: Page) -> None:
    marks = [given for tag, given in page.tags if "mark" in given.get("class", "").split()]

    assert len(marks) == 4
    # shares 1/4, infinity, 5/2 and 0, on an axis from 1e-4 to 10
    assert [each["x"] for each in marks] == ["67.96%", "100.0%", "87.96%", "0.0%"]


def test_only_marks_beyond_the_limit_are_drawn_so(page: Page) -> None:
    over = [given for tag, given in page.tags if "over" in given.get("class", "").split()]

    assert len(over) == 2


def test_an_extensions_markdown_becomes_text_and_tables_only(page: Page) -> None:
    assert "<b>loud</b>" in page.within("section")
    assert "http://e.org/x.png" not in page.values("src")


def test_the_address_of_a_known_failure_is_a_link(page: Page) -> None:
    assert ISSUE in page.values("href")


# where marks stand


def test_the_limit_stands_in_one_place_for_all() -> None:
    assert plot.position(1.0) == 80.0


@pytest.mark.parametrize(("share", "place"), [(0.0, 0.0), (1e-9, 0.0), (math.inf, 100.0)])
def test_what_is_beyond_the_axis_stands_at_its_end(share: float, place: float) -> None:
    assert plot.position(share) == place


def test_nan_is_drawn_as_the_worst(made: Any) -> None:
    record = made.record(value=math.nan, threshold=1.0, status="failed")
    (strip,) = plot.strips(made.report(record))

    assert strip.marks[0].x == 100.0
    assert strip.marks[0].is_over


def test_a_strip_shows_the_worst_of_each_subject(made: Any) -> None:
    ids = [f"{RED}[i={i}]" for i in range(3)]
    values = (1.0, 3.0, 2.0)
    records = [made.record(i, value=v, threshold=4.0) for i, v in zip(ids, values, strict=True)]
    (strip,) = plot.strips(made.report(*records))

    assert len(strip.marks) == 1
    assert strip.share == 0.75


# files


@pytest.mark.parametrize("suffix", [".json", ".md", ".xml", ".html"])
def test_a_report_is_written_in_the_format_of_its_suffix(
    suffix: str, report: Report, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / f"report{suffix}"
    report.write(path)

    start = {".json": "{", ".md": "# Conf", ".xml": "<?xml", ".html": "<!doctype html>"}
    assert path.read_text(encoding="utf-8").startswith(start[suffix])


def test_a_report_of_an_unknown_suffix_is_an_error(report: Report, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"must end in \.json, \.md, \.xml, \.html"):
        report.write(tmp_path / "report.pdf")


def test_infinity_survives_json(report: Report) -> None:
    assert Report.from_json(report.to_json()) == report
