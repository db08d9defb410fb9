"""A green record must mean something: one group of tests for each rule of the suite about itself.

The rules: what is expected is counted, every check catches something, disturbances take effect,
nothing is compared with itself, inputs are not trivial, NaN never passes, no fraction of errors is
accepted, a skip is no pass, known failures are strict, ids are stable. Here are those that
`test_report`, `test_kill_matrix` and `test_expected_failures` do not hold.
"""

from __future__ import annotations

import re
import unittest
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
import attnkit_contracts
from attnkit.errors import UnsupportedError
from attnkit.reference import softmax
from attnkit_contracts.catalogue import Measured, release
from attnkit_contracts.reports.records import CheckFailedError
from attnkit_contracts.subjects.opener import subject_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit.interface import Variant
    from attnkit_contracts import Record, Report

IDS = Path(__file__).with_name("check_ids.txt")


def reference(query: torch.Tensor, *rest: torch.Tensor, **given: Any) -> torch.Tensor:
    out: torch.Tensor = softmax(query, *rest, **given)
    return out


def variant_of(function: Callable[..., torch.Tensor]) -> Variant:
    """Return a variant that promises what multi-head attention does, computed so."""
    right = attnkit.get_variant("multi_head")
    one = replace(right.implementations[0], name="tried", function=function)
    return replace(right, name="vacuous", implementations=(right.implementations[0], one))


def report_on(function: Callable[..., torch.Tensor]) -> Report:
    variant = variant_of(function)
    return attnkit_contracts.check(
        variant, dtypes=["float32"], implementations=["tried"], explain=False
    )


def passed(report: Report) -> set[str]:
    """Return the checks of which every instance passed."""
    others = {record.check for record in report.records if record.status != "passed"}
    return {record.check for record in report.records} - others


# an implementation that does not compute


def zeros(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
    # connected to every input, so that gradients exist
    nothing = 0 * (query.sum() + key.sum() + value.sum())
    return query.new_zeros(*query.shape[:3], value.shape[3]) + nothing


def not_a_number(query: torch.Tensor, *rest: torch.Tensor, **given: Any) -> torch.Tensor:
    return reference(query, *rest, **given) * float("nan")


VALUES = {"A3.temperature", "A4.row_sums", "N1.forward", "N2.backward", "S8.lengths", "S8.widths"}
NO_VERDICT = {"error", "unsupported"}
DISTURBED = {"M1.suffix_perturbation", "M11.documents", "A1.batch_independence", "A2.head_map"}


@pytest.fixture(scope="module")
def of_zeros() -> Report:
    return report_on(zeros)


def test_zeros_pass_no_check_of_values(of_zeros: Report) -> None:
    assert passed(of_zeros) & VALUES == set()


def test_a_disturbance_that_changes_nothing_is_no_pass(of_zeros: Report) -> None:
    ran = {record.check for record in of_zeros.records}

    assert ran >= DISTURBED
    assert passed(of_zeros) & DISTURBED == set()


def test_a_promised_option_that_changes_nothing_is_no_pass(of_zeros: Report) -> None:
    assert "S10.promised" not in passed(of_zeros)


def test_nan_passes_no_check_of_values() -> None:
    assert passed(report_on(not_a_number)) & VALUES == set()


def test_one_wrong_element_is_enough() -> None:
    def nearly(query: torch.Tensor, *rest: torch.Tensor, **given: Any) -> torch.Tensor:
        out = reference(query, *rest, **given)
        spoilt = torch.zeros_like(out)
        if out.numel():
            spoilt.view(-1)[out.numel() // 2] = 0.01
        return out + spoilt

    record = record_of(nearly, "N1.forward")

    assert record.status == "failed"


# what is run, and on what


def record_of(function: Callable[..., torch.Tensor], check: str) -> Record:
    planned = attnkit_contracts.plan(
        variant_of(function), dtypes=["float32"], implementations=["tried"]
    )
    return next(each for each in planned if each.check.id == check).run(explain=False)


def test_the_implementation_that_a_record_names_is_the_one_that_ran() -> None:
    calls = []

    def counted(*tensors: torch.Tensor, **given: Any) -> torch.Tensor:
        calls.append(1)
        return reference(*tensors, **given)

    variant = variant_of(counted)
    for instance in attnkit_contracts.plan(variant, dtypes=["float32"], implementations=["tried"]):
        calls.clear()
        status = instance.run().status
        # what must be refused, or is empty, does not get as far as the implementation
        spared = re.search("raise|refuse|[Ee]mpty", instance.check.statement)
        assert spared or calls or status != "passed", instance.id


def test_an_output_that_the_next_call_writes_over_is_not_compared_with_itself() -> None:
    buffers: dict[object, torch.Tensor] = {}

    def thrifty(*tensors: torch.Tensor, **given: Any) -> torch.Tensor:
        out = reference(*tensors, **given)
        if out.requires_grad:
            return out
        return buffers.setdefault(out.shape, torch.empty_like(out)).copy_(out)

    assert passed(report_on(thrifty)) & DISTURBED == set()


@pytest.mark.parametrize("name", ["multi_head", "gated_linear", "linear", "state_space", "moe"])
def test_inputs_are_not_trivial(name: str) -> None:
    (target,) = {
        each.target.implementation: each.target
        for each in attnkit_contracts.plan(name, dtypes=["float32"], implementations=["reference"])
    }.values()
    subject = subject_of(target)
    call = subject.draw("an ordinary call")
    out = subject(call)

    for tensor in call.tensors.values():
        assert tensor.double().std() > 0.1 * tensor.double().mean().abs()
    # every row of the output is another one, and none is constant
    assert (out.flatten(0, -2).var(-1) > 0).all()
    assert torch.unique(out.flatten(0, -2), dim=0).shape[0] == out.flatten(0, -2).shape[0]


# what is no verdict


@pytest.mark.parametrize(
    "leave",
    [
        lambda: pytest.skip("not today"),
        lambda: unittest.TestCase().skipTest("not today"),
        lambda: exec("raise SystemExit(0)"),
        lambda: pytest.xfail("known"),
    ],
    ids=["pytest.skip", "unittest.skip", "exit", "pytest.xfail"],
)
def test_a_skip_within_an_implementation_is_no_pass(leave: Callable[[], None]) -> None:
    def leaving(*tensors: torch.Tensor, **given: Any) -> torch.Tensor:
        leave()
        return reference(*tensors, **given)

    found = report_on(leaving)

    # what fails on a small call already is refused, and then missing
    assert {record.status for record in found.records if record.check in VALUES} <= NO_VERDICT
    assert not found.passed


def test_the_skip_of_a_test_is_an_error_and_skips_no_test() -> None:
    with pytest.raises(CheckFailedError, match="error: Skipped: not today"):
        record_of(lambda *_, **__: pytest.skip("not today"), "N1.forward").raise_for_status()


def test_an_implementation_that_refuses_every_call_is_missing() -> None:
    def refusing(*_: torch.Tensor, **__: Any) -> torch.Tensor:
        raise UnsupportedError("not today")

    found = report_on(refusing)

    # it does refuse all that it must refuse
    assert "S10.refused" in passed(found)
    assert "vacuous/tried/float32/cpu" in found.header.required_missing


def test_ctrl_c_ends_the_run() -> None:
    def interrupted(*_: torch.Tensor, **__: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_of(interrupted, "N1.forward")


# new checks


def advisory_instance(release_named: str) -> Any:
    """An instance that fails, of a check that is new in some release."""
    planned = attnkit_contracts.plan("self_attention", dtypes=["float32"])
    found = next(each for each in planned if each.check.id == "A4.row_sums")
    failing = replace(
        found.check,
        function=lambda _: Measured(2.0, 1.0, "units"),
        advisory=release_named,
        required=True,
    )
    return replace(found, check=failing)


def now() -> str:
    return ".".join(map(str, release(metadata.version("attnkit"))))


def test_a_new_check_that_fails_is_not_red() -> None:
    record = advisory_instance(now()).run()

    assert (record.status, record.advisory, record.is_red) == ("failed", True, False)
    record.raise_for_status()


def test_a_new_check_is_red_from_the_next_minor_release_on() -> None:
    record = advisory_instance("0.0").run()

    assert (record.status, record.advisory, record.is_red) == ("failed", False, True)


def test_advice_is_told_and_leaves_the_report_green(made: Any) -> None:
    report = made.report(
        made.record("acme/fast/float32/cpu/S1.output"),
        made.record("acme/fast/float32/cpu/S9.new", status="failed", advisory=True),
    )

    assert report.passed
    assert [record.check for record in report.advice()] == ["S9.new"]


def test_no_check_of_ours_is_advisory_for_longer_than_one_minor_release() -> None:
    stale = [
        each.id for each in attnkit_contracts.all_checks() if each.advisory and not each.is_advisory
    ]
    assert stale == []


# ids


def test_ids_are_words_without_addresses_of_objects() -> None:
    shape = re.compile(r"\w+/\w+/\w+/[\w:]+/[A-Z]\w*\.\w+(\[[^\[\]]+\])?")
    ids = [each.id for each in attnkit_contracts.plan(tier="full")]

    assert len(ids) == len(set(ids))
    assert [each for each in ids if not shape.fullmatch(each) or " at 0x" in each] == []


def test_no_check_is_renamed_or_taken_away() -> None:
    """A line is only ever added to ``check_ids.txt``: others list these ids as known failures."""
    known = IDS.read_text().split()

    assert known == sorted(set(known))
    assert set(known) - {each.id for each in attnkit_contracts.all_checks()} == set()


def test_a_check_that_is_new_is_on_the_list() -> None:
    own = {
        each.id
        for each in attnkit_contracts.all_checks()
        if each.function.__module__.startswith("attnkit_contracts.")
    }
    assert own - set(IDS.read_text().split()) == set()
