"""A report as Markdown: a matrix of variants by groups of checks, then every failure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from attnkit_contracts.catalogue import GROUPS

if TYPE_CHECKING:
    from attnkit_contracts.records import Record, Report


def to_markdown(report: Report) -> str:
    """Return the whole report; counts are always out of those expected, never percentages."""
    header = report.header
    verdict = "passed" if report.passed else "NOT passed"
    told = ", ".join(f"{count} {status}" for status, count in sorted(report.counts().items()))
    lines = [
        f"# Conformance: {verdict}",
        "",
        f"{header.executed_count} of {header.expected_count} expected checks executed: "
        f"{told or 'none'}.",
        "",
        f"attnkit {header.attnkit}, torch {header.torch}, Python {header.python}, "
        f"{header.platform}, device {header.device}, {header.threads} threads, "
        f"tier {header.tier}, seed {header.seed}.",
        "",
        *_matrix(report),
        *_missing(report),
        *_failures(report),
    ]
    return "\n".join(lines).rstrip() + "\n"


def matrix(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: implementations by groups of checks, ``41/41`` in each cell."""
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in report.records:
        row = f"{record.variant} / {record.implementation}"
        cells[row, record.check[0]].append(record)
    rows = list(dict.fromkeys(row for row, _ in cells))
    known = dict.fromkeys([*GROUPS, *(group for _, group in cells)])
    groups = [group for group in known if any((row, group) in cells for row in rows)]
    return (
        ["variant / implementation", *map(_title, groups)],
        [[row, *(_cell(cells.get((row, group), [])) for group in groups)] for row in rows],
    )


def _matrix(report: Report) -> list[str]:
    headings, rows = matrix(report)
    if not rows:
        return []
    lines = [headings, ["---"] * len(headings), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _title(group: str) -> str:
    return f"{group}: {GROUPS[group]}" if group in GROUPS else group


def _cell(records: list[Record]) -> str:
    """Say ``41/41``, and how many have which other status."""
    if not records:
        return "n/a"
    passed = sum(record.status == "passed" for record in records)
    others = [record.status for record in records if record.status != "passed"]
    told = [f"{status} {others.count(status)}" for status in sorted(set(others))]
    return " ".join([f"{passed}/{len(records)}", *told])


def _missing(report: Report) -> list[str]:
    missing = report.header.required_missing
    if not missing:
        return []
    return ["## Required, without a verdict", "", *(f"- `{name}`" for name in missing), ""]


def _failures(report: Report) -> list[str]:
    lines = []
    for record in report.failures():
        lines += [
            f"### `{record.id}`: {record.status}",
            "",
            record.reason,
            "",
            "```python",
            record.reproduction,
            "```",
            "",
        ]
    return ["## Failures", "", *lines] if lines else []
