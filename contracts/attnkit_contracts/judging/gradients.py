"""How gradients are compared: against the definition's, and with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import (
    Bound,
    agree,
    answered,
    estimated,
    exactly,
    is_exact,
    samples_alike,
    worst,
)
from attnkit_contracts.subjects.layers import LayerSubject
from attnkit_contracts.subjects.operations import SoftmaxOperation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from attnkit_contracts.catalogue import Measured
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject


def gradient_bounds(subject: Subject, call: Call, grad_out: Tensor) -> dict[str, Bound]:
    """Return the definition's gradient of every tensor of a call, and its unit."""
    return answered(
        subject,
        "gradients",
        call,
        grad_out,
        ask=lambda: _gradient_bounds(subject, call, grad_out),
    )


def _gradient_bounds(subject: Subject, call: Call, grad_out: Tensor) -> dict[str, Bound]:
    if isinstance(subject, SoftmaxOperation) and is_exact(subject):
        return analytic_bounds(subject, call, grad_out)[1]
    inputs = dict(call.tensors)
    if isinstance(subject, LayerSubject):
        inputs |= subject.parameters()
    definition = subject.definition(call)

    def estimate(probes: int) -> dict[str, tuple[Tensor, Tensor]]:
        found = units.gradient_noise(
            definition,
            inputs,
            grad_out,
            subject.dtype,
            probes=probes,
            together=samples_alike(subject),
        )
        return {name: found[name] for name in call.tensors}

    return estimated(estimate, units.backward_gate(subject.dtype), units.GRADIENT_PROBES)


def analytic_bounds(
    subject: SoftmaxOperation, call: Call, grad_out: Tensor | None
) -> tuple[Bound, dict[str, Bound]]:
    """Return the bound of exact softmax attention, and those of its gradients.

    Args:
        subject: Of relation ``exact``.
        call: What it is given.
        grad_out: The gradient of the output; None for no gradients.
    """
    doubled = call.map(lambda _, tensor: tensor.detach().double().requires_grad_())
    with torch.set_grad_enabled(grad_out is not None):
        exact = subject.exact(doubled)
    kept = type(exact)(*(tensor.detach() for tensor in exact))
    name, gate = "analytic units", units.ANALYTIC_GATE
    unit = units.analytic(kept, call.tensors["value"], subject.dtype)
    output = Bound(kept.out, unit, gate, name)
    if grad_out is None:
        return output, {}
    found = torch.autograd.grad(
        exact.out, list(doubled.tensors.values()), grad_out.double(), materialize_grads=True
    )
    limits = units.analytic_gradients(
        kept,
        call.tensors,
        grad_out,
        call.extras.get("scale", call.tensors["query"].shape[-1] ** -0.5),
        subject.dtype,
    )
    return output, {
        each: Bound(gradient, limits[each].detach(), gate, name)
        for each, gradient in zip(doubled.tensors, found, strict=True)
    }


def agree_gradients(
    subject: Subject,
    call: Call,
    grad_out: Tensor,
    one: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    where: str,
) -> Measured:
    """Measure how far the gradients of two calls are apart; the same bits need no unit.

    Args:
        subject: What computed both.
        call: Whose gradients they are.
        grad_out: Of both.
        one: By name; all that ``other`` has.
        other: By name, perhaps of some tensors only.
        where: Which case it is.
    """
    if all(torch.equal(one[name], gradient) for name, gradient in other.items()):
        return exactly(0, "different elements")
    limits = gradient_bounds(subject, call, grad_out)
    return worst(
        agree(limits[name], one[name], gradient, f"the gradient of {name}, {where}")
        for name, gradient in other.items()
    )
