"""A call as a problem: what it needs and is not promised is a reason, nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attnkit.problem import (
    FeedforwardProblem,
    Problem,
    Reason,
    RecurrenceProblem,
    SoftmaxProblem,
    unmet,
)
from attnkit.promises import ALL_DTYPES, ALL_MASK_PARTS, Promises

SIZES: dict[str, Any] = dict(batch=2, heads=4, query_length=8, head_dim=16, value_head_dim=16)
CALL = SoftmaxProblem(device="cpu", dtype="float32", kv_heads=4, key_length=8, **SIZES)
STEP = RecurrenceProblem(device="cpu", dtype="float32", groups=4, **SIZES)
TOKENS = FeedforwardProblem(device="cpu", dtype="float32", query_length=8, experts=4, width=16)
LEAST = Promises(dtypes=("float32",), devices=("cpu",), bidirectional=True)

CARRYING = LEAST.model_copy(update={"causal": True, "state": True})

YES_NO = [
    ("causal", {"causal": True}),
    ("bidirectional", {}),
    ("cross", {"key_length": 9}),
    ("gqa", {"kv_heads": 2}),
    ("value_width", {"value_head_dim": 8}),
    ("bias", {"bias": True}),
    ("scale", {"scale": True}),
    ("softcap", {"softcap": True}),
    ("sinks", {"sinks": True}),
    ("dropout", {"dropout": True}),
    ("gradients", {"gradients": True}),
    ("compile", {"compiling": True}),
]


def without(promise: str) -> Promises:
    """Promise everything but one thing."""
    everything: dict[str, Any] = dict.fromkeys([*dict(YES_NO), "beta", "state"], True)
    everything |= {"dtypes": ALL_DTYPES, "devices": ("cpu",), "masks": ALL_MASK_PARTS}
    return Promises.model_validate(everything | {promise: False})


def test_what_is_promised_and_not_more_than_needed_has_no_reason_against_it() -> None:
    assert unmet(CALL, LEAST) == ()


@pytest.mark.parametrize(("promise", "fields"), YES_NO, ids=[name for name, _ in YES_NO])
def test_a_yes_no_promise_is_missed_by_the_call_that_needs_it(
    promise: str, fields: dict[str, Any]
) -> None:
    reasons = unmet(replace(CALL, **fields), without(promise))
    assert [reason.argument for reason in reasons] == [promise]
    assert str(reasons[0]) == f"{promise}: asked for, not promised"


@pytest.mark.parametrize("promise", [name for name, _ in YES_NO if name != "bidirectional"])
def test_a_yes_no_promise_is_not_missed_by_a_call_without_need_of_it(promise: str) -> None:
    assert unmet(CALL, without(promise)) == ()


def test_a_single_query_needs_no_later_key() -> None:
    assert unmet(replace(CALL, query_length=1, key_length=1), without("bidirectional")) == ()


@pytest.mark.parametrize(("promise", "fields"), [("beta", {"beta": True}), ("state", {})])
def test_a_promise_of_a_recurrence_is_missed_by_the_call_that_needs_it(
    promise: str, fields: dict[str, Any]
) -> None:
    reasons = unmet(replace(STEP, **fields), without(promise))
    assert [reason.argument for reason in reasons] == [promise]


def test_a_recurrence_is_neither_bidirectional_nor_cross() -> None:
    least = Promises(dtypes=("float32",), devices=("cpu",), causal=True, state=True)
    assert unmet(STEP, least) == ()


def test_tokens_for_experts_need_neither_heads_nor_a_mask() -> None:
    assert unmet(TOKENS, Promises(dtypes=("float32",), devices=("cpu",), heads="one")) == ()


def test_a_description_that_says_more_makes_the_problem_of_its_family() -> None:
    told = {**{name: getattr(CALL, name) for name in CALL.__dataclass_fields__}, "experts": 4}
    assert SoftmaxProblem.of(told) == CALL
    told |= {"family": "feedforward", "width": 16}
    assert FeedforwardProblem.of(told) == replace(TOKENS, batch=2)


@pytest.mark.parametrize(
    ("problem", "promises", "texts"),
    [
        (
            replace(CALL, device="cuda"),
            LEAST,
            ["device: needs cuda, offers cpu"],
        ),
        (
            replace(CALL, dtype="int8"),
            LEAST.model_copy(update={"dtypes": ("float64", "float32")}),
            ["dtype: needs int8, offers float64, float32"],
        ),
        (CALL, LEAST.model_copy(update={"devices": ()}), ["device: needs cpu, offers none"]),
        (
            CALL,
            LEAST.model_copy(update={"heads": "one"}),
            ["num_heads: needs 4, offers 1"],
        ),
        (
            replace(CALL, mask_parts=frozenset({"window", "padding", "dense"})),
            LEAST.model_copy(update={"masks": ("padding",)}),
            ["mask: needs dense, offers padding", "mask: needs window, offers padding"],
        ),
        (
            CALL,
            LEAST.model_copy(update={"masks": ("blocks",), "needs": ("blocks",)}),
            ["mask: needs no blocks, offers only masks with blocks"],
        ),
        (
            replace(STEP, decay="channel"),
            CARRYING.model_copy(update={"decay": ("none", "head")}),
            ["log_decay: needs (B, H, L, E), offers no decay or (B, H, L)"],
        ),
        (replace(STEP, decay="head"), CARRYING, ["log_decay: needs (B, H, L), offers no decay"]),
        (
            STEP,
            CARRYING.model_copy(update={"decay": ("head",)}),
            ["log_decay: needs no decay, offers (B, H, L)"],
        ),
    ],
    ids=["device", "dtype", "nowhere", "heads", "masks", "needs", "channel", "head", "no-decay"],
)
def test_a_reason_says_what_is_needed_and_what_is_offered(
    problem: Problem, promises: Promises, texts: list[str]
) -> None:
    assert [str(reason) for reason in unmet(problem, promises)] == texts


def test_a_needed_mask_part_that_is_there_is_no_reason() -> None:
    promises = LEAST.model_copy(update={"masks": ("blocks",), "needs": ("blocks",)})
    assert unmet(replace(CALL, mask_parts=frozenset({"blocks"})), promises) == ()


def test_every_reason_is_given_not_the_first_alone() -> None:
    problem = replace(CALL, device="cuda", dtype="float16", bias=True, kv_heads=1)
    arguments = [reason.argument for reason in unmet(problem, LEAST)]
    assert arguments == ["device", "dtype", "gqa", "bias"]


def test_equal_problems_are_one_key() -> None:
    assert len({CALL, replace(CALL), replace(CALL, batch=3)}) == 2


def test_a_reason_survives_json() -> None:
    (reason,) = unmet(replace(CALL, bias=True), LEAST)
    assert Reason.model_validate_json(reason.model_dump_json()) == reason
