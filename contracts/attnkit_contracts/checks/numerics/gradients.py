"""N, continued: gradients of part of the inputs, accumulated, recomputed, and differentiated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from attnkit import precision
from attnkit_contracts.catalogue import BrokenError, Measured, call_check, layer_check, mixing_check
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject
    from attnkit_contracts.subjects.subject import Subject

ONCE = "donated buffer"
"""What torch says of a graph that it compiled, by default, for one backward pass."""


@mixing_check(
    "N3.central_differences",
    "The gradient along any direction is the slope of the output: "
    "<dF^T g, d> = (<g, F(x + hd)> - <g, F(x - hd)>) / 2h, within what that formula is off by.",
    applies=lambda promises: promises.gradients,
    dtypes=("float64",),
    verdict="R",
)
def central_differences(subject: Subject) -> Measured:
    """Halve h once: the difference shows the error of the formula, rounding aside."""
    call = subject.draw("N3", length=9)
    with torch.no_grad():
        out = subject(call)
    grad_out = subject.normal("N3 grad", *out.shape)
    wanted = judge.gradients(subject, call, grad_out)
    # an output of float64 is off by the gate, in roundoffs of the terms it is a sum of
    gate = precision.forward_gate(subject.dtype) * precision.roundoff(subject.dtype)
    blurred = gate * float((grad_out * out).abs().sum())
    # so small that hardly a number passes a kink of its function on the way
    found, step = [], 2.0**-20
    for name, tensor in call.tensors.items():
        direction = subject.normal(f"N3 {name}", *tensor.shape)

        def slope(
            h: float, name: str = name, tensor: Tensor = tensor, direction: Tensor = direction
        ) -> float:
            with torch.no_grad():
                ahead = subject(call.given(**{name: tensor + h * direction}))
                back = subject(call.given(**{name: tensor - h * direction}))
            return float((grad_out * (ahead - back)).sum()) / (2 * h)

        coarse, fine = slope(step), slope(step / 2)
        allowed = abs(coarse - fine) + 2 * blurred / step
        off = abs(fine - float((wanted[name] * direction).sum()))
        found.append(Measured(off / allowed, 1.0, "errors of the central difference", name))
    return judge.worst(found)


@call_check(
    "N4.subsets",
    "A gradient is the same whichever other inputs require one.",
    applies=lambda promises: promises.gradients,
    verdict="R",
)
def subsets(subject: Subject) -> Measured:
    """Ask for one gradient alone, and for all but one; of a layer, without its weights'."""
    call = subject.draw("N4", length=17)
    grad_out = subject.normal("N4 grad", *judge.output_shape(call))
    whole, found = judge.gradients(subject, call, grad_out), []
    if subject.layer is not None:
        subject.layer.requires_grad_(False)
    names = set(call.tensors)
    for name in call.tensors:
        for chosen in ({name}, names - {name}):
            if chosen:
                got = _gradients_of(subject, call, chosen, grad_out)
                where = f"where {', '.join(sorted(chosen))} alone require one"
                found.append(subject.agree_gradients(call, grad_out, whole, got, where))
    return judge.worst(found)


def _gradients_of(
    subject: Subject, call: Call, chosen: set[str], grad_out: Tensor
) -> dict[str, Tensor]:
    leaves = {n: call.tensors[n].detach().clone().requires_grad_() for n in sorted(chosen)}
    with torch.enable_grad():
        out = subject(call.given(**leaves))
        if not out.requires_grad:
            raise BrokenError(f"no gradient where {', '.join(leaves)} alone require one")
    return judge.received(out, leaves, grad_out)


@call_check(
    "N4.accumulation",
    "A second backward through the same graph, or one like it where torch compiled it to be used "
    "once, adds the same gradient again, to the bit.",
    applies=lambda promises: promises.gradients and promises.deterministic,
)
def accumulation(subject: Subject) -> Measured:
    """Compare with twice the first gradient; weights of a layer too."""
    call = subject.draw("N4", length=17).leaves()
    with torch.enable_grad():
        out = subject(call)
    grad_out = subject.normal("N4 grad", *out.shape)
    trained = {n: p for n, p in subject.weights().items() if p.requires_grad}
    leaves = {**call.tensors, **trained}
    out = _passed_back(subject, call, grad_out, out)
    first = {n: t.grad.clone() for n, t in leaves.items() if t.grad is not None}
    out.backward(grad_out)  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    for name, gradient in first.items():
        again = leaves[name].grad
        assert again is not None
        judge.same_bits(2 * gradient, again, f"the gradient of {name}, accumulated twice")
    return judge.exactly(0, "different elements")


def _passed_back(subject: Subject, call: Call, grad_out: Tensor, out: Tensor) -> Tensor:
    """Pass a gradient back, and return an output that another can be passed back through."""
    try:
        out.backward(grad_out, retain_graph=True)  # type: ignore[no-untyped-call]  # torch's own
    except RuntimeError as error:
        if ONCE not in str(error):
            raise
    else:
        return out
    with torch.enable_grad():
        first, second = subject(call), subject(call)
    first.backward(grad_out)  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    return second


@call_check(
    "N4.checkpoint",
    "Under torch.utils.checkpoint, outputs and gradients are what they are without, to the bit.",
    applies=lambda promises: promises.gradients and promises.deterministic,
)
def recomputed(subject: Subject) -> Measured:
    """Compute the output for a second time in the backward pass."""
    call = subject.draw("N4", length=17)
    leaves = call.leaves()
    tensors = list(leaves.tensors.values())

    def run(*tensors: Tensor) -> Tensor:
        return subject(call.given(**dict(zip(leaves.tensors, tensors, strict=True))))

    with torch.enable_grad():
        plain = run(*tensors)
        out = checkpoint(run, *tensors, use_reentrant=False)
    judge.same_bits(plain.detach(), out.detach(), "the output under checkpoint")
    grad_out = subject.normal("N4 grad", *plain.shape)
    wanted = judge.received(plain, leaves.tensors, grad_out)
    for name, gradient in judge.received(out, leaves.tensors, grad_out).items():
        judge.same_bits(wanted[name], gradient, f"the gradient of {name} under checkpoint")
    return judge.exactly(0, "different elements")


@layer_check(
    "N4.parameters",
    "Every weight of a layer gets a finite gradient; that of a matrix is not zero.",
    applies=lambda promises: promises.gradients,
)
def parameters(subject: LayerSubject) -> Measured:
    """Send a normal gradient into the output of a layer in training."""
    subject.layer.train()
    call = subject.draw("N4", length=40)
    weights = {n: p for n, p in subject.weights().items() if p.requires_grad}
    with torch.enable_grad():
        out = subject(call)
    grad_out = subject.normal("N4 grad", *out.shape)
    got = judge.received(out, weights, grad_out)
    judge.must_be_finite(got, "gradients of weights")
    for name, gradient in got.items():
        if gradient.dim() > 1 and not (gradient != 0).any():
            raise BrokenError(f"{name} gets a gradient of zero: it would never learn")
    return judge.exactly(0, "weights without a gradient")
