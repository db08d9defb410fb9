"""A diagnosis is found whatever the call was: under dropout, of an empty batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

import attnkit
import attnkit_contracts
from attnkit.interface import load
from attnkit.reference import recurrence
from attnkit_contracts.diagnosis.faults import fault_of, with_grad_out
from attnkit_contracts.inputs.calls import showing_weights
from attnkit_contracts.subjects.opener import subject_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit.interface import Variant
    from attnkit_contracts import Record

EAGER: Any = load(
    next(
        each.function
        for each in attnkit.get_variant("multi_head").implementations
        if each.name == "eager"
    )
)


def variant_of(base: str, function: Callable[..., Any], **update: Any) -> Variant:
    made = attnkit.get_variant(base)
    promises = made.promises.model_copy(update=update)
    one = replace(made.implementations[0], promises=promises)
    other = next((each for each in made.implementations if each.name == "eager"), one)
    own = replace(other, name="own", function=function)
    return replace(made, name="tried", promises=promises, implementations=(one, own))


def records_of(variant: Variant, *checks: str) -> list[Record]:
    with attnkit.register(variant):
        planned = attnkit_contracts.plan(variant, dtypes=["float32"], implementations=["own"])
        return [each.run() for each in planned if each.id.split("/")[-1] in checks]


class LessBackward(torch.autograd.Function):
    """A gradient that is too small by the share that is kept."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, share: float) -> torch.Tensor:
        ctx.share = share
        return query.view_as(query)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> Any:  # type: ignore[override]  # of one
        return grad_out * (1 - ctx.share), None


def less_of_the_query(query: torch.Tensor, *rest: torch.Tensor, **given: Any) -> torch.Tensor:
    query = LessBackward.apply(query, given["dropout_p"])
    out: torch.Tensor = EAGER(query, *rest, **given)
    return out


def test_a_wrong_gradient_under_dropout_is_named() -> None:
    found = records_of(
        variant_of("multi_head", less_of_the_query), "N6.gradients", "N6.company[option=bias]"
    )

    assert [each.status for each in found] == ["failed", "failed"]
    for each in found:
        assert "the output is right, the gradient of query is not" in str(each.diagnosis)


def test_a_right_gradient_under_dropout_is_no_fault() -> None:
    planned = attnkit_contracts.plan("multi_head", dtypes=["float32"], implementations=["eager"])
    subject = subject_of(planned[0].target)
    call = showing_weights(subject.draw("dropped", length=16)).saying(dropout_p=0.5)

    assert fault_of(subject, with_grad_out(subject, call)) is None


def fails_when_empty(query: Any, key: Any, value: Any, *, log_decay: Any, **given: Any) -> Any:
    if log_decay is not None:
        log_decay.reshape(*log_decay.shape[:3], -1)
    return recurrence(query, key, value, log_decay=log_decay, **given)


def test_a_call_of_no_samples_is_diagnosed() -> None:
    variant = variant_of(
        "gated_linear", fails_when_empty, compile=False, transforms=(), memory="L*S", time="L*S"
    )
    (found,) = records_of(variant, "S8.empty")

    assert found.status == "error"
    assert "a call raises RuntimeError: cannot reshape" in str(found.diagnosis)
