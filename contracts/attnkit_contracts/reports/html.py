"""A report as one HTML page that needs no other file, no script and no network.

The layout is ``templates/report.html.j2``; here is what it shows. `attnkit_contracts.reports.plot`
places the marks of its plot.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from attnkit.promises import ALL_DTYPES
from attnkit.versions import missing
from attnkit_contracts.reports import plot
from attnkit_contracts.reports.distinct import distinct, rules
from attnkit_contracts.reports.markdown import cells, tally, title, undecided

if TYPE_CHECKING:
    from collections.abc import Iterable

    import jinja2

    from attnkit_contracts.reports.records import Record, Report


class Cell(NamedTuple):
    """One cell of the matrix: counts, the worst that is in it, and where its failures are."""

    group: str
    counts: str
    others: tuple[str, ...]
    tone: str
    link: str


def to_html(report: Report) -> str:
    """Return the page."""
    groups, rows = _matrix(report)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            groups=groups,
            rows=rows,
            faults=distinct(report.failures()),
            anchors=_anchors(report),
            statements=rules((*report.failures(), *report.advice())),
            refusals=undecided(report),
            known=[each for each in report.records if each.status == "xfail"],
            explained_by=_explained_by,
            counts=sorted(report.counts().items()),
            strips=plot.strips(report),
            ticks=plot.ticks(),
            limit=plot.position(1.0),
            height=plot.height(),
            dtypes=[each for each in ALL_DTYPES if any(r.dtype == each for r in report.records)],
            facts=_facts(report),
            sections=[_rendered(section) for section in report.sections],
            evidence=_evidence(report),
        )
    )


@functools.cache
def environment() -> jinja2.Environment:
    """Return the templates of this package; what is put into them is escaped.

    Raises:
        MissingPackageError: What makes pages is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise missing(error, "check", "a page or a badge") from error

    return jinja2.Environment(
        loader=jinja2.PackageLoader("attnkit_contracts.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _matrix(report: Report) -> tuple[list[str], dict[str, list[Cell]]]:
    """Return the groups, and each implementation's cells."""
    (groups, found), anchors = cells(report), _anchors(report)
    rows = {
        name: [_cell(group, by_group.get(group, []), anchors) for group in groups]
        for name, by_group in found.items()
    }
    return [title(group) for group in groups], rows


def _cell(group: str, records: list[Record], anchors: dict[str, str]) -> Cell:
    if not records:
        return Cell(title(group), "n/a", (), "none", "")
    passed, others = tally(records)
    told = tuple(f"{count} {status}" for status, count in others.items())
    red = [record for record in records if record.is_red]
    tone = "red" if red else "mixed" if others else "green"
    link = anchors[red[0].id] if red else ""
    return Cell(title(group), passed, told, tone, link)


def _anchors(report: Report) -> dict[str, str]:
    """Return the name of each red record within the page, in the order of the page."""
    told = [each for fault in distinct(report.failures()) for each in (fault.record, *fault.more)]
    return {record.id: f"failure-{i}" for i, record in enumerate(told, 1)}


def _explained_by(record: Record) -> list[tuple[str, str]]:
    """Return what a record says about its failure, by heading; the script last."""
    told = {
        "Seen": record.reason,
        "Smallest call": record.smallest,
        "Expected and got": record.elements,
        "Script": record.reproduction,
    }
    return [(heading, text) for heading, text in told.items() if text]


def _facts(report: Report) -> Iterable[tuple[str, str]]:
    """Return the environment, by name."""
    header = report.header
    names = ("attnkit", "torch", "python", "platform", "device", "threads", "tier", "seed")
    owners = {f"{r.owner} {r.version}".strip() for r in report.records}
    return [
        *((name, str(getattr(header, name))) for name in names),
        ("variants", ", ".join(header.variants)),
        ("offered by", ", ".join(sorted(owners))),
    ]


def _evidence(report: Report) -> dict[str, list[Record]]:
    """Return every record, by implementation."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in report.records:
        found[record.subject].append(record)
    return dict(found)


def _rendered(section: str) -> str:
    """Return an extension's Markdown as HTML that is safe to put into the page.

    The parser escapes tags, and without images nothing is loaded from elsewhere.
    """
    try:
        from markdown_it import MarkdownIt
    except ModuleNotFoundError as error:
        raise missing(error, "check", "a page with what extensions say") from error

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    return str(parser.render(section))
