"""What is right is green: other ways to compute, masks that are needed, choices left open."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
import attnkit_contracts
from attnkit.layers.softmax import SoftmaxLayer
from attnkit.layers.softmax_config import SoftmaxConfig
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.checks.numerics.combinations import softmax_call
from attnkit_contracts.judging.outputs import near
from attnkit_contracts.subjects.opener import subject_of
from attnkit_plugins.feedforward.moe import VARIANT as MOE

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit.promises import MaskPart
    from attnkit_contracts import Record
    from attnkit_contracts.catalogue import Tier

right: Any = importlib.import_module("correct_softmax")
routing: Any = importlib.import_module("mutants_routing")

WAYS = [pytest.param(each, id=each.__name__) for each in right.WAYS]


def wrong_of(
    variant: Variant, *subjects: str, seed: int = 0, tier: Tier = "fast", dtype: str = "float32"
) -> list[str]:
    """Return what is not green of a variant, and what is missing."""
    report = attnkit_contracts.check(
        variant, tier=tier, dtypes=[dtype], implementations=subjects, seed=seed, explain=False
    )
    red = [f"{each.id}: {each.reason}" for each in report.records if each.is_red]
    return [*red, *report.header.required_missing]


@pytest.mark.parametrize("way", WAYS)
def test_every_right_way_to_compute_a_softmax_is_green(way: Any) -> None:
    assert wrong_of(right.variant_of(way), "own", seed=right.WAYS.index(way)) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_maths_is_green(dtype: str) -> None:
    assert wrong_of(right.variant_of(right.online, "different"), "own", dtype=dtype) == []


# as other maths each takes a quarter of a minute
THOROUGH = [
    pytest.param(
        way,
        relation,
        id=f"{way.__name__}-{relation}",
        marks=[] if relation == "exact" else pytest.mark.matrix,
    )
    for relation in ("exact", "different")
    for way in right.WAYS
]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "relation"), THOROUGH)
def test_every_right_way_is_green_in_every_precision_and_tier(way: Any, relation: Any) -> None:
    variant = right.variant_of(way, relation)
    for seed, dtype in enumerate(("float32", "bfloat16")):
        assert wrong_of(variant, "own", seed=seed, tier="standard", dtype=dtype) == []


def one_record(variant: Variant, check: str, subject: str = "own", seed: int = 0) -> Record:
    with attnkit.register(variant):
        return next(
            each
            for each in attnkit_contracts.plan(
                variant, tier="standard", dtypes=["float32"], implementations=[subject], seed=seed
            )
            if each.check.id == check
        ).run(explain=False)


SHARP = {
    "mask": "causal+padding", "widths": (24, 8), "lengths": (5, 5), "heads": (6, 3), "batch": 65,
    "bias": "full", "scale": 4, "softcap": None, "sinks": False,
}  # fmt: skip
"""Rows whose weight lies on one key: their gradients are 0 but for rounding."""


def slightly_wrong(query: torch.Tensor, *rest: torch.Tensor, **given: Any) -> torch.Tensor:
    """The output is right, the gradient of the query a hundredth too large."""
    out: torch.Tensor = right.by_the_largest(query, *rest, **given)
    other = right.by_the_largest(query, *(each.detach() for each in rest), **given)
    return out + 1e-2 * (other - other.detach())


JUDGED = [(right.by_the_largest, True), (right.online, True), (slightly_wrong, False)]


@pytest.mark.parametrize(("way", "is_right"), JUDGED)
@pytest.mark.parametrize("seed", range(4))
def test_what_cancels_is_judged_by_what_its_terms_round_to(
    way: Any, *, is_right: bool, seed: int
) -> None:
    variant = right.variant_of(way, "different")
    with attnkit.register(variant):
        planned = attnkit_contracts.plan(
            variant, dtypes=["float32"], implementations=["own"], seed=seed
        )
        subject: Any = subject_of(planned[0].target)
        call = softmax_call(subject, SHARP)
        grads = subject.grads(call)
        got, limits = subject.answers(call, grads), subject.bounds(call, grads)

    found = [near(limit, got[name]) for name, limit in limits.items()]
    assert all(each.value <= each.threshold for each in found) == is_right


def test_stopping_nan_is_possible() -> None:
    variant = right.variant_of(right.stopping_nan, stops_nan=True)

    assert one_record(variant, "M9.stops_nan").status == "passed"


ONCE = {
    "masks": (), "cross": False, "gqa": False, "value_width": False, "bias": False,
    "softcap": False, "sinks": False, "dtypes": ("float32",),
}  # fmt: skip


@pytest.mark.parametrize("check", ["S6.grad_out_strides", "M3.support", "N4.accumulation"])
def test_a_graph_for_one_backward_pass_is_green(check: str) -> None:
    record = one_record(right.variant_of(right.compiled_ahead, **ONCE), check)

    assert (record.status, record.reason) == ("passed", "")


@pytest.mark.parametrize("neighbour", ["no_such_package.kernels:attend", "attnkit.absent:attend"])
def test_an_implementation_that_does_not_import_here_is_no_fault_of_its_neighbours(
    neighbour: str,
) -> None:
    made = right.variant_of(right.online)
    own = made.implementations[1]
    other = replace(own, name="other", function=neighbour, packages=("no_such_package",))
    variant = replace(made, implementations=(*made.implementations, other))

    assert one_record(variant, "S4.poisoned_allocations").status == "passed"


# masks that are needed


@pytest.mark.parametrize("part", ALL_MASK_PARTS)
def test_needing_a_mask_is_no_fault(part: MaskPart) -> None:
    for masks in (ALL_MASK_PARTS, (part,)):
        variant = right.variant_of(right.by_the_largest, needs=(part,), masks=masks)
        assert wrong_of(variant, "own") == []


def test_needing_several_masks_is_no_fault() -> None:
    variant = right.variant_of(right.by_the_largest, needs=("documents", "dense", "padding"))

    assert wrong_of(variant, "own") == []


@pytest.mark.parametrize("part", ["documents", "padding"])
def test_a_layer_that_needs_a_mask_keeps_its_state(part: MaskPart) -> None:
    made = right.variant_of(right.by_the_largest, needs=(part,), state=True, reorder=True)
    variant = replace(made, layer=SoftmaxLayer, config=SoftmaxConfig)

    assert wrong_of(variant, "layer") == []


@pytest.mark.parametrize("part", ["documents", "padding"])
def test_a_recurrence_may_need_a_mask(part: MaskPart) -> None:
    made = attnkit.get_variant("gated_linear")

    def needing(promises: Any) -> Any:
        return promises.model_copy(update={"needs": (part,), "compile": False, "transforms": ()})

    ways = tuple(replace(i, promises=needing(i.promises)) for i in made.implementations)
    variant = replace(
        made, name="needing", promises=needing(made.promises), implementations=ways, placement=None
    )

    assert wrong_of(variant, "auto") == []


# choices left open


class LastFirst(routing.Rerouted):  # type: ignore[misc]  # of a module found by name
    """Of experts that are alike, takes the last ones, as ``torch.topk`` may."""

    def decide(self, logits: torch.Tensor, keep: torch.Tensor, **_: Any) -> Any:
        made, last = super().decide(logits.flip(-1), keep), logits.shape[-1] - 1
        return replace(
            made,
            experts=torch.where(made.experts >= 0, last - made.experts, -1),
            logits=made.logits.flip(-1),
            probabilities=made.probabilities.flip(-1),
        )


def test_which_of_equal_experts_are_taken_is_left_open() -> None:
    variant = replace(MOE, name="last_first", layer=LastFirst)

    for check in ("F9.ties", "F7.losses", "F8.options"):
        assert one_record(variant, check, "layer").status == "passed"
