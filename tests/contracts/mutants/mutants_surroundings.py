"""Deliberately wrong operations: what they do depends on what is around a call, or changes it.

`MUTANTS` says which check must catch it, on which subject, and in which dtype where not float32.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_recurrence import RIGHT as RECURRENCE
from mutants_recurrence import recur
from mutants_softmax import Passing, attend, variant_of

if TYPE_CHECKING:
    from attnkit.interface import Variant

Tensor = torch.Tensor


def draws_a_number(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    torch.rand(())
    return attend(query, key, value, **given)


class Drawing(Passing):
    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        torch.rand(())
        return grad


def backward_draws_a_number(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    return Drawing.apply(attend(query, key, value, **given))


def silences_warnings(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    warnings.simplefilter("ignore", category=UserWarning)
    return attend(query, key, value, **given)


def half_without_gradients(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    if not torch.is_grad_enabled():
        value = value.bfloat16().to(value.dtype)
    return attend(query, key, value, **given)


def inference_ignores_the_cap(
    query: Tensor, key: Tensor, value: Tensor, *, softcap: float | None, **given: Any
) -> Tensor:
    """Takes a fused path in inference, which knows no cap."""
    softcap = None if torch.is_inference_mode_enabled() else softcap
    return attend(query, key, value, softcap=softcap, **given)


def other_with_gradients(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    out = attend(query, key, value, **given)
    return out + 1e-3 if out.requires_grad else out


def state_forgotten_in_inference(*tensors: Tensor, **given: Any) -> Any:
    out, state = recur(*tensors, **given)
    return out, state * 0.99 if torch.is_inference_mode_enabled() else state


def contiguous(tensor: Tensor) -> tuple[int, ...]:
    return torch.empty(tensor.shape).stride()


def strides_of_query(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """One set of strides for all three."""
    if query.shape == key.shape == value.shape:
        key = key.as_strided(key.shape, query.stride())
        value = value.as_strided(value.shape, query.stride())
    return attend(query, key, value, **given)


def last_axis_looked_at(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Takes what is contiguous along its last axis for contiguous."""
    if query.stride(-1) == 1 and query.stride(0):
        query = query.as_strided(query.shape, contiguous(query))
    return attend(query, key, value, **given)


class InItsStrides(torch.autograd.Function):
    """The gradient lies in memory as a contiguous key's does, and is read as the key lies."""

    @staticmethod
    def forward(ctx: Any, key: Tensor) -> Tensor:
        ctx.strides = key.stride()
        return key.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous().as_strided(grad.shape, ctx.strides)


def key_gradient_in_its_strides(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    return attend(query, InItsStrides.apply(key), value, **given)


def recurrence_of(name: str, function: Any) -> Variant:
    right, _ = RECURRENCE.implementations
    wrong = replace(right, name="wrong", function=function)
    return replace(RECURRENCE, name=f"mutant_{name}", implementations=(right, wrong))


def _is(function: Any, kills: str) -> tuple[Any, ...]:
    return variant_of(function.__name__, function), kills, "wrong"


MUTANTS = (
    _is(draws_a_number, "S2.process_state"),
    _is(backward_draws_a_number, "S2.process_state"),
    _is(silences_warnings, "S2.process_state"),
    _is(half_without_gradients, "S11.grad_modes"),
    _is(inference_ignores_the_cap, "S11.grad_modes"),
    _is(other_with_gradients, "S11.grad_modes"),
    (
        recurrence_of("state_forgotten_in_inference", state_forgotten_in_inference),
        "S11.grad_modes",
        "wrong",
    ),
    _is(strides_of_query, "S5.layouts"),
    _is(last_axis_looked_at, "S5.layouts"),
    _is(key_gradient_in_its_strides, "S5.layouts"),
)
