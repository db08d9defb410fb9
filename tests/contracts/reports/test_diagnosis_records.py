"""A diagnosis is a record; what is printed is rendered from it, and old reports are read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attnkit_contracts.reports.diagnosis import NOTHING, Diagnosis, Explaining
from attnkit_contracts.reports.records import Report

TWICE = Explaining(name="scale_twice", statement="the scale applied twice")
TILED = Explaining(name="heads_tiled", statement="heads tiled")

TOLD = {
    "": NOTHING,
    "equals the definition with the scale applied twice (scale_twice)": Diagnosis(
        mistakes=(TWICE,)
    ),
    "equals the definition with the scale applied twice (scale_twice), or with heads tiled "
    "(heads_tiled); no call tells these apart": Diagnosis(mistakes=(TWICE, TILED)),
    "equals the definition with heads tiled (heads_tiled), computed in float32 although inputs are "
    "float64": Diagnosis(mistakes=(TILED,), in_float32=True),
    "equals the definition computed in float32 although inputs are float64; key is written to, "
    "besides": Diagnosis(in_float32=True, written=("key",)),
    "the output is right, but query is written to": Diagnosis(
        seen="the output is right, but query is written to"
    ),
    "a call has the wrong shape: (2, 3); key and value is written to, besides": Diagnosis(
        seen="a call has the wrong shape: (2, 3)", written=("key", "value")
    ),
}


@pytest.mark.parametrize("told", TOLD)
def test_the_text_of_a_diagnosis_is_rendered_from_it(told: str) -> None:
    assert str(TOLD[told]) == told
    assert bool(TOLD[told]) is bool(told)


def test_what_has_a_name_is_told_from_what_was_only_seen() -> None:
    named = [each.named for each in TOLD.values() if each.is_named]

    assert named == [("scale_twice",), ("scale_twice", "heads_tiled"), ("heads_tiled",), ()]


def test_a_diagnosis_is_read_back_from_a_report(made: Any) -> None:
    diagnosis = Diagnosis(mistakes=(TWICE,), written=("key",))
    report = made.report(made.record("acme/eager/float32/cpu/A4", status="failed"))
    record = report.records[0].model_copy(update={"diagnosis": diagnosis})
    report = report.model_copy(update={"records": (record,)})

    assert Report.from_json(report.to_json()) == report


def test_the_text_in_a_report_of_old_is_read_as_what_was_seen(made: Any) -> None:
    written = json.loads(made.report(made.record("a/b/c/d/A4", status="failed")).to_json())
    written["records"][0]["diagnosis"] = "equals the definition with heads tiled (heads_tiled)"
    read = Report.from_json(json.dumps(written)).records[0]

    assert str(read.diagnosis) == "equals the definition with heads tiled (heads_tiled)"
    assert read.told.startswith("equals the definition with heads tiled (heads_tiled)\n")
