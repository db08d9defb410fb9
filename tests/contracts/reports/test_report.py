"""What a run writes down, and when it has passed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import attnkit
import attnkit_contracts
from attnkit.errors import ArgumentError, UnknownVariantError
from attnkit_contracts.catalogue import Measured
from attnkit_contracts.reports.records import CheckFailedError, Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attnkit.interface import Variant
    from attnkit_contracts.running.instance import Instance


def report_on(variant: Variant, implementation: str = "wrong") -> Report:
    return attnkit_contracts.check(variant, dtypes=["float32"], implementations=[implementation])


@pytest.fixture(scope="module")
def failed(wrong: dict[str, Variant]) -> Iterator[Report]:
    """Of a variant that keeps no row sum."""
    with attnkit.register(wrong["mutant_missing_renormalisation"]) as registration:
        yield report_on(registration.variant)


@pytest.fixture(scope="module")
def green() -> Report:
    return attnkit_contracts.check("self_attention", dtypes=["float32"])


def instance(check: str, function: object = None) -> Instance:
    """One planned instance, with another function if given."""
    planned = attnkit_contracts.plan(
        "self_attention", dtypes=["float32"], implementations=["plain"]
    )
    found = next(each for each in planned if each.check.id == check)
    if function is None:
        return found
    return replace(found, check=replace(found.check, function=function))


def test_a_report_survives_json(failed: Report) -> None:
    assert Report.from_json(failed.to_json()) == failed


def test_a_report_counts_what_was_expected_and_what_ran(green: Report) -> None:
    assert green.passed
    assert green.header.expected_count == green.header.executed_count == len(green.records)


def test_a_run_without_checks_has_not_passed(green: Report) -> None:
    nothing = green.model_copy(
        update={
            "records": (),
            "header": green.header.model_copy(update={"executed_count": 0, "required_missing": ()}),
        }
    )

    assert not nothing.passed


def test_a_variant_of_which_nothing_ran_is_missing(right: Variant) -> None:
    elsewhere = right.promises.model_copy(update={"devices": ("cuda",)})
    parts = tuple(replace(each, promises=elsewhere) for each in right.implementations)
    right = replace(right, promises=elsewhere, implementations=parts)
    with attnkit.register(right):
        report = attnkit_contracts.check(right)

    missing = report.header.required_missing
    assert missing
    assert all(each.partition("/")[0] == right.name for each in missing)
    assert not report.passed


def test_an_unknown_variant_is_an_error() -> None:
    with pytest.raises(UnknownVariantError, match="Did you mean 'flash'"):
        attnkit_contracts.check("flsh")


@pytest.mark.parametrize("asked", [{"dtypes": ["float8"]}, {"implementations": ["sdpq"]}])
def test_an_unknown_choice_is_an_error(asked: dict[str, list[str]]) -> None:
    with pytest.raises(ArgumentError, match="must be of"):
        attnkit_contracts.check("self_attention", **asked)  # type: ignore[arg-type]  # one of two keywords


def test_a_failure_says_how_much_and_how_much_was_allowed(failed: Report) -> None:
    (record,) = [record for record in failed.records if record.check == "A4.row_sums"]

    assert record.status == "failed"
    assert record.value is not None
    assert record.threshold is not None
    assert record.value > record.threshold
    assert f"at most {record.threshold:.4g} allowed" in record.reason


def test_the_reproduction_of_a_failure_fails_the_same_way(failed: Report) -> None:
    record = failed.failures()[0]

    with pytest.raises(CheckFailedError) as caught:
        exec(record.reproduction, {})

    assert record.reason in str(caught.value)


def test_a_report_in_markdown_has_counts_and_failures(failed: Report) -> None:
    text = failed.to_markdown()

    assert "# Conformance: NOT passed" in text
    assert "| mutant_missing_renormalisation / wrong |" in text
    assert f"### `{failed.failures()[0].id}`: failed" in text


def test_ids_are_unique_and_stable() -> None:
    ids = [each.id for each in attnkit_contracts.plan("flash", "gated_linear", "moe")]

    assert len(set(ids)) == len(ids)
    assert ids == [each.id for each in attnkit_contracts.plan("flash", "gated_linear", "moe")]


def test_an_instance_is_rerun_by_its_id() -> None:
    wanted = instance("A4.row_sums").id

    assert attnkit_contracts.rerun(wanted).status == "passed"


def test_progress_sees_every_record_in_order() -> None:
    seen: list[str] = []
    report = attnkit_contracts.check(
        "moe",
        dtypes=["float32"],
        implementations=["loop"],
        progress=lambda record: seen.append(record.id),
    )

    assert seen == [record.id for record in report.records]


def test_nan_never_passes() -> None:
    record = instance("A4.row_sums", lambda _: Measured(math.nan, 1.0, "units")).run()

    assert record.status == "failed"


def test_a_check_that_breaks_is_an_error_with_its_place() -> None:
    def broken(_: object) -> Measured:
        raise ZeroDivisionError("in a check")

    record = instance("A4.row_sums", broken).run()

    assert record.status == "error"
    assert "ZeroDivisionError: in a check (in broken, test_report.py:" in record.reason


def test_what_the_choice_refuses_although_it_is_promised_is_missing() -> None:
    right = attnkit.get_variant("self_attention")
    refusing = tuple(replace(one, refuses=lambda _: "not today") for one in right.implementations)
    with attnkit.register(replace(right, name="refusing", implementations=refusing)) as refused:
        report = attnkit_contracts.check(refused.variant, dtypes=["float32"])

    assert not report.passed
    assert report.header.required_missing


EXPECTED = "mutant_missing_renormalisation/wrong/float32/cpu/A4.row_sums"


def test_an_expected_failure_is_not_red(failed: Report, wrong: dict[str, Variant]) -> None:
    again = attnkit_contracts.check(
        wrong["mutant_missing_renormalisation"],
        dtypes=["float32"],
        implementations=["wrong"],
        expected_failures={EXPECTED: "issue 12"},
    )

    assert EXPECTED in {record.id for record in failed.failures()}
    assert EXPECTED not in {record.id for record in again.failures()}
    assert again.counts()["xfail"] == 1


def test_an_expected_failure_that_passes_is_red() -> None:
    good = instance("A4.row_sums").id
    report = attnkit_contracts.check(
        "self_attention", dtypes=["float32"], expected_failures={good: "issue 12"}
    )

    assert [(record.id, record.status) for record in report.failures()] == [(good, "xpass")]
    assert not report.passed


def test_an_expected_failure_of_an_unknown_id_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="there is no check instance 'A4'"):
        attnkit_contracts.check("self_attention", expected_failures={"A4": "issue 12"})
