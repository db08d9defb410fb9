"""A report as Markdown: a matrix of variants by groups of checks, then every failure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from attnkit_contracts.catalogue import GROUPS
from attnkit_contracts.reports.distinct import distinct, rules
from attnkit_contracts.reports.records import UNCOMPARED, UNJUDGED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attnkit_contracts.reports.records import Record, Report


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
        *_listed("Required, without a verdict", header.required_missing),
        *_listed(f"Implementations not compared: {UNCOMPARED}", header.uncompared),
        *_listed(f"Layers: {UNJUDGED}", header.unjudged),
        *_listed("Extensions that failed: their checks are missing", header.broken_extensions),
        *_explained("Faults", report.failures()),
        *_explained("New checks that fail, not red yet", report.advice()),
        *_known(report),
        *_undecided(report),
        *_proofs(report),
        *(line for section in report.sections for line in (section.strip(), "")),
    ]
    return "\n".join(lines).rstrip() + "\n"


def matrix(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: implementations by groups of checks, ``41/41`` in each cell."""
    groups, found = cells(report)
    layers = {f"{name} / layer" for name in report.header.unjudged}
    return (
        ["variant / implementation", *map(title, groups)],
        [
            [
                f"{row} (mathematics not judged)" if row in layers else row,
                *(_cell(by_group.get(group, [])) for group in groups),
            ]
            for row, by_group in found.items()
        ],
    )


def cells(report: Report) -> tuple[list[str], dict[str, dict[str, list[Record]]]]:
    """Return the groups of checks that occur, and the records by implementation and group."""
    found: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in report.records:
        found[record.subject][record.check[0]].append(record)
    occur = dict.fromkeys(group for by_group in found.values() for group in by_group)
    known = dict.fromkeys([*GROUPS, *occur])
    return [group for group in known if group in occur], found


def title(group: str) -> str:
    """Return what a group's letter stands for; of an extension's group, the letter."""
    return f"{group}: {GROUPS[group]}" if group in GROUPS else group


def _matrix(report: Report) -> list[str]:
    headings, rows = matrix(report)
    if not rows:
        return []
    lines = [headings, ["---"] * len(headings), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _cell(records: list[Record]) -> str:
    """Say ``41/41``, and how many have which other status."""
    if not records:
        return "n/a"
    passed, others = tally(records)
    return " ".join([passed, *(f"{status} {count}" for status, count in others.items())])


def tally(records: list[Record]) -> tuple[str, Counter[str]]:
    """Return ``41/42``, and how many have which other status."""
    counts = Counter(sorted(str(record.status) for record in records))
    return f"{counts.pop('passed', 0)}/{len(records)}", counts


def _listed(heading: str, names: Iterable[str]) -> list[str]:
    lines = [f"- `{name}`" for name in names]
    return [f"## {heading}", "", *lines, ""] if lines else []


def _explained(heading: str, records: tuple[Record, ...]) -> list[str]:
    """Tell each fault once, and of its repeats what was seen."""
    lines, statements = [], rules(records)
    for fault in distinct(records):
        record = fault.record
        rule = statements.get(record.check)
        lines += [
            f"### `{record.id}`: {record.status}",
            "",
            *([f"The rule: {rule}", ""] if rule else []),
            *_fenced("text", record.told),
            *_fenced("python", record.reproduction),
            *([f"{fault.folded}:", ""] if fault.more else []),
            *(f"- `{each.id}`: {_line(each.reason) or each.status}" for each in fault.more),
            *([""] if fault.more else []),
        ]
    return [f"## {heading}", "", *lines] if lines else []


def _fenced(language: str, text: str) -> list[str]:
    """Return a fenced block; its fence is longer than any within it."""
    if not text:
        return []
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}{language}", text, fence, ""]


def _known(report: Report) -> list[str]:
    records = [record for record in report.records if record.status == "xfail"]
    lines = [f"- `{record.id}`: {_line(record.reason)}" for record in records]
    return ["## Known failures", "", *lines, ""] if lines else []


def undecided(report: Report) -> dict[tuple[str, str], list[str]]:
    """Return the ids of what has no verdict, by status and reason."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in report.records:
        if record.status in ("unsupported", "skipped_env"):
            found[record.status, record.reason].append(record.id)
    return dict(found)


def _undecided(report: Report) -> list[str]:
    found = undecided(report).items()
    lines = [f"- {len(ids)} {status}: {_line(reason)}" for (status, reason), ids in found]
    return ["## Without a verdict", "", *lines, ""] if lines else []


def _proofs(report: Report) -> list[str]:
    """Say of every check of an extension whether it catches what it must."""
    lines = [
        f"- `{proof.check}` on `{proof.wrong}`: "
        + (f"caught by `{proof.caught_by}`" if proof.caught_by else "NOT caught")
        for proof in report.proofs
    ]
    lines += [f"- `{name}`: brings no wrong variant" for name in report.unproven]
    return ["## Checks of extensions", "", *lines, ""] if lines else []


def _line(text: str) -> str:
    return " ".join(text.split())
