"""N, continued: mixed precision and mixed dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit_contracts.catalogue import BrokenError, Measured, check
from attnkit_contracts.checks.state.pieces import pieces
from attnkit_contracts.inputs.calls import normal
from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import (
    agree,
    estimated,
    exactly,
    gradients,
    must_be_finite,
    named_gradients,
    near,
    same_bits,
    worst,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.judging.outputs import Bound
    from attnkit_contracts.subjects.layers import LayerSubject
    from attnkit_contracts.subjects.subject import Subject

LOW = torch.bfloat16
"""What autocast computes products in."""


@check(
    "N5.autocast_operation",
    "Under autocast, an operation computes in the dtype of its inputs: same dtype, same bits, "
    "same gradients; a backward pass under autocast gives finite ones.",
    families=("softmax", "recurrence"),
    applies=lambda promises: promises.deterministic,
    dtypes=("float32",),
)
def autocast_operation(subject: Subject) -> Measured:
    """Compare with the same call without autocast."""
    call, device = subject.draw("N5", length=24), torch.device(subject.device).type
    plain = subject(call)
    with torch.autocast(device, LOW):
        same_bits(plain, subject(call), "the output under autocast")
    if not subject.promises.gradients:
        return exactly(0, "different elements")
    grad_out = normal(subject.random("N5 grad"), *plain.shape).to(plain)
    wanted, leaves = gradients(subject, call, grad_out), call.leaves()
    with torch.enable_grad(), torch.autocast(device, LOW):
        out = subject(leaves)
        # torch's own products round to the dtype of autocast here, so these are not compared
        must_be_finite(gradients(subject, call, grad_out), "gradients of a pass under autocast")
    found = torch.autograd.grad(out, list(leaves.tensors.values()), grad_out, allow_unused=True)
    for name, gradient in named_gradients(leaves.tensors, found).items():
        same_bits(wanted[name], gradient, f"the gradient of {name}, forward under autocast")
    return exactly(0, "different elements")


@check(
    "N5.autocast_layer",
    "Under autocast, a layer of float32 weights gives what it gives without, but for rounding to "
    "bfloat16; so does its state; gradients are finite and float32.",
    levels=("layer",),
    dtypes=("float32",),
    applies=lambda promises: "bfloat16" in promises.dtypes,
    verdict="R",
)
def autocast_layer(subject: LayerSubject) -> Measured:
    """Compare whole calls, and pieces of them where there is a state."""
    call = _tokens(subject)
    limit, found = _low_bound(subject, call), []
    with torch.autocast(torch.device(subject.device).type, LOW):
        out = subject(call)
        if out.dtype not in (LOW, torch.float32):
            raise BrokenError(f"under autocast to {LOW}, expected it or float32, got {out.dtype}")
        found.append(near(limit, out, "autocast"))
        bare = not {"documents", "padding"} & set(subject.promises.needs)
        if subject.promises.state and bare:
            stepped = pieces(subject, call, (20, 1, 19))
            found.append(agree(limit, out, stepped, "autocast, in pieces"))
        if subject.promises.gradients:
            grad_out = normal(subject.random("N5 grad"), *out.shape)
            received = gradients(subject, call, grad_out)
            must_be_finite(received, "gradients under autocast")
            if received["x"].dtype != torch.float32:
                raise BrokenError(f"the gradient of x is {received['x'].dtype} under autocast")
    return worst(found)


def _tokens(subject: LayerSubject) -> Call:
    if subject.family == "feedforward":
        from attnkit_contracts.checks.experts.router import clear_call

        return clear_call(subject, "N5", length=40)
    return subject.draw("N5", length=40)


def _low_bound(subject: LayerSubject, call: Call) -> Bound:
    """Return the definition's answer, and the unit of an error that rounding to LOW makes."""
    definition = subject.definition(call)

    def function(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"out": definition(given)}

    inputs = {**call.tensors, **subject.parameters()}

    @torch.no_grad()
    def estimate(probes: int) -> dict[str, tuple[Tensor, Tensor]]:
        return units.noise(function, inputs, LOW, probes=probes)

    # a layer rounds between its products, as a mixture of experts does
    return estimated(estimate, units.mixture_gate(LOW), units.PROBES)["out"]
