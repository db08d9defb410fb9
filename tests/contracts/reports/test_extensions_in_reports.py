"""Checks and sections of strangers in a report, from distributions with real metadata.

One process has the distributions on its path, runs a report and shows it to all tests.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from warm_process import run

from attnkit_contracts import Report
from attnkit_contracts.reports.comparison import compare

if TYPE_CHECKING:
    from pathlib import Path

    from attnkit_contracts.reports.records import Proof

CHECKS = """
import dataclasses
import attnkit

def doubled(query, key, value, **given):
    from attnkit.reference import softmax
    return 2 * softmax(query, key, value, **given)

def _wrong(name, function):
    right = attnkit.get_variant("self_attention")
    one = dataclasses.replace(right.implementations[0], name=name, function=function)
    return dataclasses.replace(right, name=name, implementations=(one,))

def wrong():
    yield _wrong("acme_doubled", doubled)

def not_wrong():
    yield _wrong("acme_right", "attnkit.reference:softmax")

@attnkit.hookimpl
def attnkit_contracts():
    from attnkit_contracts.catalogue import Measured, check

    def rule(id, **given):
        @check(id, "Rows of ones give ones.", families=("softmax",), **given)
        def ones(subject):
            call = subject.draw(id)
            call = call.given(value=call.tensors["value"] * 0 + 1)
            off = (subject(call).double() - 1).abs().max()
            return Measured(float(off), 0.1, "ones")
        return ones

    return (
        rule("X1.ones", catches=wrong),
        rule("X2.ones", catches=not_wrong),
        rule("X3.ones"),
    )

@attnkit.hookimpl
def attnkit_report_section(report):
    mine = sum(record.check.startswith("X") for record in report.records)
    return f"## Acme says\\n\\n{mine} of its own checks."
"""

BROKEN = """
import attnkit

@attnkit.hookimpl
def attnkit_contracts():
    raise RuntimeError("no rules today")

@attnkit.hookimpl
def attnkit_report_section(report):
    return None
"""

MAIN = """
import attnkit_contracts
report = attnkit_contracts.check("self_attention", dtypes=["float32"], implementations=["plain"])
print(report.to_json())
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("strangers")
    for name, module in (("acme", CHECKS), ("broken", BROKEN)):
        install(folder, f"{name}-rules", f"{name}_rules", module)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("-c", MAIN, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return Report.from_json(done.stdout)


def install(folder: Path, distribution: str, module: str, text: str) -> None:
    """Write a module and its metadata as an installer does."""
    (folder / f"{module}.py").write_text(text)
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    named = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
    (metadata / "METADATA").write_text(named)
    (metadata / "entry_points.txt").write_text(f"[attnkit.extensions]\n{module} = {module}\n")


def test_checks_of_an_extension_are_records_like_ours(report: Report) -> None:
    found = [record for record in report.records if record.check.startswith("X")]

    assert [record.id for record in found] == [
        f"self_attention/plain/float32/cpu/X{i}.ones" for i in (1, 2, 3)
    ]
    assert {record.status for record in found} == {"passed"}


def test_a_check_of_an_extension_is_tried_on_its_wrong_variant(report: Report) -> None:
    proof = next(each for each in report.proofs if each.check == "X1.ones")

    assert proof.wrong == "acme_doubled"
    assert proof.caught_by == "acme_doubled/acme_doubled/float32/cpu/X1.ones"


def test_a_check_that_catches_nothing_makes_the_report_red(report: Report) -> None:
    assert [each.check for each in report.proofs if not each.caught_by] == ["X2.ones"]
    assert not report.passed
    assert report.model_copy(update={"proofs": report.proofs[:1]}).passed


def test_a_check_without_a_wrong_variant_is_named(report: Report) -> None:
    assert report.unproven == ("X3.ones",)


def test_the_section_of_an_extension_is_in_the_report(report: Report) -> None:
    assert report.sections == ("## Acme says\n\n3 of its own checks.",)


def test_an_extension_whose_checks_are_missing_is_named(report: Report) -> None:
    (told,) = report.header.broken_extensions

    assert "broken_rules" in told
    assert "no rules today" in told


@pytest.mark.parametrize("told", ["X1.ones", "acme_doubled", "Acme says", "no rules today"])
@pytest.mark.parametrize("form", ["to_markdown", "to_html"])
def test_all_of_it_is_shown(form: str, told: str, report: Report) -> None:
    assert told in getattr(report, form)()


def test_checks_that_went_away_with_their_extension_are_told(report: Report) -> None:
    rest = tuple(each for each in report.records if not each.check.startswith("X"))
    found = compare(report, report.model_copy(update={"records": rest}))

    assert [each.kind for each in found.changes] == ["gone"] * 3


def test_the_last_line_says_that_a_wrong_variant_was_not_caught(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    from attnkit_contracts.cli.outcome import _print

    caught = [proof for proof in report.proofs if proof.caught_by]
    for proofs, told in ((caught, " executed"), ((_missed(caught[0]),), "; 1 wrong variants of")):
        _print(report.model_copy(update={"proofs": tuple(proofs)}))
        assert told in capsys.readouterr().out.splitlines()[-1]


def _missed(proof: Proof) -> Proof:
    return proof.model_copy(update={"caught_by": ""})
