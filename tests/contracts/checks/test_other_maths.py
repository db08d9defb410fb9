"""Attention that is no softmax: what is right is green, and a mistake has its name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

import attnkit
import attnkit_contracts
from attnkit_contracts.diagnosis.explain import suspected
from attnkit_contracts.diagnosis.faults import fault_of
from attnkit_contracts.subjects.opener import subject_of
from attnkit_contracts.subjects.target import Target

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit_contracts.catalogue import Dtype
    from attnkit_contracts.subjects.subject import Subject

right: Any = importlib.import_module("correct_maths")
wrong: Any = importlib.import_module("mutants_maths")

OTHER = [name for name in right.RIGHT if name.endswith("_other")]

ASKED = (
    "M2.gradient_causality",
    "M15.hidden_keys[mask=rows that see nothing]",
    "N2.backward[inputs=causal]",
    "S10.promised[feature=causal]",
)
"""One check of each kind: of bits, of masks, of gradients, of effects."""


@pytest.mark.parametrize("name", OTHER)
def test_other_maths_computed_otherwise_is_green(name: str) -> None:
    with attnkit.register(right.RIGHT[name]):
        planned = attnkit_contracts.plan(
            right.RIGHT[name], dtypes=["float32"], implementations=["own"], seed=OTHER.index(name)
        )
        records = [each.run(explain=False) for each in planned if each.id.endswith(ASKED)]

    assert [(r.id, r.reason) for r in records if r.status != "passed"] == []


@pytest.mark.parametrize("name", ["rectified_other", "squared_other"])
def test_a_document_of_one_token_without_weight_is_green(name: str) -> None:
    with attnkit.register(right.RIGHT[name]):
        planned = attnkit_contracts.plan(
            right.RIGHT[name], dtypes=["float32"], implementations=["own"], seed=13
        )
        (record,) = [
            each.run(explain=False) for each in planned if each.check.id == "M11.documents"
        ]

    assert (record.status, record.reason) == ("passed", "")


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize(("dtype", "seeds"), [("float32", 20), ("bfloat16", 5)])
@pytest.mark.parametrize("name", right.RIGHT)
def test_every_way_to_compute_other_maths_is_green(name: str, dtype: Dtype, seeds: int) -> None:
    for seed in range(seeds):
        report = attnkit_contracts.check(
            right.RIGHT[name], dtypes=[dtype], implementations=["own"], seed=seed, explain=False
        )
        assert [(r.id, r.reason) for r in report.records if r.is_red] == []
        assert report.header.required_missing == ()


NAMED = {
    "window_one_long": ("sigmoid", "window_one_long"),
    "causal_upper_left": ("stick_breaking", "upper_left_causal"),
    "mask_unknown_to_odd_heads": ("gaussian", "mask_ignored_odd_heads"),
    "mask_unknown_to_last_row": ("cosine", "mask_ignored_last_query"),
    "heads_of_neighbour": ("differential", "heads_neighbour"),
    "scale_twice": ("signed", "scale_twice"),
    "cap_unknown": ("decaying", "softcap_ignored"),
    "inputs_rounded": ("of_unit_length", "inputs_rounded"),
}
"""What is wrong, with which maths, and the name of the mistake."""


def opened(variant: Variant) -> Subject:
    target = Target(
        variant=variant,
        implementation="own",
        promises=variant.promises,
        dtype="float32",
        device="cpu",
        level="operation",
    )
    return subject_of(target)


@pytest.mark.parametrize("change", NAMED)
def test_a_mistake_of_other_maths_is_recognised(change: str) -> None:
    maths, name = NAMED[change]
    subject = opened(wrong.variant_with(maths, getattr(wrong, change)))
    found = (
        suspected(subject, call)
        for call in subject.telling_calls()
        if fault_of(subject, call) is not None
    )

    assert [each.name for each in next(found).mistakes] == [name]


@pytest.mark.parametrize("attend", ["differential_not_lambda", "off_by_none", "signed_by_softmax"])
def test_what_is_wrong_with_a_maths_of_its_own_has_no_name(attend: str) -> None:
    subject = opened(wrong.NAMED_WRONG[attend])
    call = next(iter(subject.telling_calls()))

    assert fault_of(subject, call) is not None
    assert suspected(subject, call).mistakes == ()
