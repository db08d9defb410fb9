"""N, continued: mixed precision and mixed dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit_contracts.catalogue import BrokenError, Measured, layer_check, operation_check
from attnkit_contracts.judging import outputs as judge
from attnkit_contracts.judging import units

if TYPE_CHECKING:
    from attnkit_contracts.subjects.layers import LayerSubject
    from attnkit_contracts.subjects.subject import Subject

LOW = torch.bfloat16
"""What autocast computes products in."""


@operation_check(
    "N5.autocast_operation",
    "Under autocast, an operation computes in the dtype of its inputs: same dtype, same bits, "
    "same gradients; a backward pass under autocast gives finite ones.",
    applies=lambda promises: promises.deterministic,
    dtypes=("float32",),
)
def autocast_operation(subject: Subject) -> Measured:
    """Compare with the same call without autocast."""
    call, device = subject.draw("N5", length=24), torch.device(subject.device).type
    plain = subject(call)
    with torch.autocast(device, LOW):
        judge.same_bits(plain, subject(call), "the output under autocast")
    if not subject.promises.gradients:
        return judge.exactly(0, "different elements")
    grad_out = subject.normal("N5 grad", *plain.shape)
    wanted, leaves = judge.gradients(subject, call, grad_out), call.leaves()
    with torch.enable_grad(), torch.autocast(device, LOW):
        out = subject(leaves)
        # torch's own products round to the dtype of autocast here, so these are not compared
        judge.must_be_finite(
            judge.gradients(subject, call, grad_out), "gradients of a pass under autocast"
        )
    for name, gradient in judge.received(out, leaves.tensors, grad_out).items():
        judge.same_bits(wanted[name], gradient, f"the gradient of {name}, forward under autocast")
    return judge.exactly(0, "different elements")


@layer_check(
    "N5.autocast_layer",
    "Under autocast, a layer of float32 weights gives what it gives without, but for rounding to "
    "bfloat16; so does its state; gradients are finite and float32.",
    dtypes=("float32",),
    applies=lambda promises: "bfloat16" in promises.dtypes,
    verdict="R",
)
def autocast_layer(subject: LayerSubject) -> Measured:
    """Compare whole calls, and pieces of them where there is a state."""
    call = subject.clear_call("N5", length=40)
    call = subject.whole(call) if subject.promises.state else call
    inputs = {**call.tensors, **subject.weights()}
    # a layer rounds between its products, as a mixture of experts does
    gate = units.layer_gate(LOW)
    limit, found = judge.probed(subject.definition(call), inputs, LOW, gate=gate)["out"], []
    with torch.autocast(torch.device(subject.device).type, LOW):
        out = subject(call)
        if out.dtype not in (LOW, torch.float32):
            raise BrokenError(f"under autocast to {LOW}, expected it or float32, got {out.dtype}")
        found.append(judge.near(limit, out, "autocast"))
        if subject.promises.state:
            stepped = subject.pieces(call, (20, 1, 19))
            found.append(judge.agree(limit, out, stepped, "autocast, in pieces"))
        if subject.promises.gradients:
            grad_out = subject.normal("N5 grad", *out.shape)
            got = judge.gradients(subject, call, grad_out)
            judge.must_be_finite(got, "gradients under autocast")
            if got["x"].dtype != torch.float32:
                raise BrokenError(f"the gradient of x is {got['x'].dtype} under autocast")
    return judge.worst(found)
