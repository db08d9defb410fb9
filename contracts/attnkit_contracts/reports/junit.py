"""A report as JUnit XML, which CI systems read: a suite per subject, a case per check."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attnkit_contracts.reports.records import Record, Report

_ILLEGAL = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
"""What XML 1.0 has no place for; a stranger's message may hold it."""


def to_junit(report: Report) -> str:
    """Return the whole report; what is required and missing is a failure of its own."""
    root = ElementTree.Element("testsuites", name="attnkit")
    subjects: dict[str, list[Record]] = {}
    for record in report.records:
        subjects.setdefault(record.id.rpartition(f"/{record.check}")[0], []).append(record)
    for subject, records in subjects.items():
        suite = _suite(root, subject)
        _properties(suite, report)
        for record in records:
            case = _case(suite, subject.replace("/", "."), record.id.removeprefix(f"{subject}/"))
            case.set("time", f"{record.duration_ms / 1e3:.6f}")
            _outcome(case, record)
    _further(root, "required", report.header.required_missing, "required, and without a verdict")
    survivors = [f"{each.check} on {each.wrong}" for each in report.proofs if not each.caught_by]
    _further(root, "proofs", survivors, "the check passes a variant that it must catch")
    for suite in (*root, root):
        _count(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _further(root: ElementTree.Element, name: str, cases: Sequence[str], why: str) -> None:
    """Add a suite whose cases have all failed for one reason; none where there are no cases."""
    if not cases:
        return
    suite = _suite(root, name)
    for each in cases:
        _say(_case(suite, name, each), "failure", why, kind="missing")


def _suite(root: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(root, "testsuite", name=_legal(name))


def _case(suite: ElementTree.Element, owner: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_legal(owner), name=_legal(name))


def _properties(suite: ElementTree.Element, report: Report) -> None:
    parent = ElementTree.SubElement(suite, "properties")
    for name, value in report.header.model_dump(mode="json").items():
        if isinstance(value, str | int):
            ElementTree.SubElement(parent, "property", name=name, value=_legal(str(value)))


def _outcome(case: ElementTree.Element, record: Record) -> None:
    """Add what a case without it would not say: that it has not passed."""
    if record.status == "passed":
        return
    if not record.is_red:
        advisory = "advisory: " if record.advisory else ""
        _say(case, "skipped", f"{advisory}{record.status}: {record.reason}")
        return
    tag = "error" if record.status == "error" else "failure"
    _say(case, tag, record.told, kind=record.status, text=record.reproduction)


def _say(
    case: ElementTree.Element, tag: str, message: str, *, kind: str = "", text: str = ""
) -> None:
    said = ElementTree.SubElement(case, tag, message=_legal(message))
    if kind:
        said.set("type", kind)
    if text:
        said.text = _legal(f"{message}\n\n{text}")


def _count(suite: ElementTree.Element) -> None:
    suite.set("tests", str(len(list(suite.iter("testcase")))))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(list(suite.iter(tag)))))
    seconds = sum(float(case.get("time", "0")) for case in suite.iter("testcase"))
    suite.set("time", f"{seconds:.6f}")


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
