"""N, continued: gradients of any inputs and weights, accumulated, recomputed, differentiated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from attnkit.errors import UnsupportedError
from attnkit_contracts.catalogue import (
    BrokenError,
    Measured,
    call_check,
)
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

    Tensors = Mapping[str, Tensor]

ONCE = "donated buffer"
"""What torch says of a graph that it compiled, by default, for one backward pass."""


@call_check(
    "N4.subsets",
    "A gradient is the same whichever other inputs and weights require one, and whichever outputs "
    "it is of.",
    applies=lambda promises: promises.gradients,
    verdict="R",
)
def subsets(subject: Subject) -> Measured:
    """Ask for one gradient alone, and for all but one; of a layer, for those of its weights."""
    plain = subject.draw("N4", length=17 if subject.layer is None else 9)
    found, known = list(_of_outputs(subject, plain)), set[str]()
    for call in calls_of(subject, plain):
        found += _of_subsets(subject, call, known)
        known |= set(call.tensors)
    return judge.worst(found)


def calls_of(subject: Subject, plain: Call) -> Iterator[Call]:
    """Yield a plain call, and one with all options that are promised, if they go together."""
    yield plain
    rich = subject.with_options(plain, "N4 options")
    if rich.tensors.keys() == plain.tensors.keys():
        return
    try:
        subject(rich)
    except UnsupportedError:
        return
    yield rich


def _of_subsets(subject: Subject, call: Call, known: set[str]) -> Iterator[Measured]:
    """Compare gradients of some inputs and weights with those of all; some are known alone."""
    names, grad_out = set(call.tensors), subject.normal("N4 grad", *judge.output_shape(call))
    weights = {name for name, weight in subject.weights().items() if weight.requires_grad}
    whole = gradients_of(subject, call, names | weights, grad_out)
    chosen = [{name} for name in sorted((names | weights) - known)]
    for each in [*chosen, *(names - {name} for name in sorted(names)), weights]:
        if each:
            got = gradients_of(subject, call, each, grad_out)
            where = f"where {', '.join(sorted(each))} alone require one"
            yield subject.agree_gradients(call, grad_out, whole, got, where)


def _of_outputs(subject: Subject, call: Call) -> Iterator[Measured]:
    """Compare gradients from all outputs with the sum of those from each of them."""
    grads = subject.grads(call)
    if len(grads) < 2:
        return
    limits = subject.gradient_bounds(call, grads)
    whole = _from_outputs(subject, call, grads)
    parts = [_from_outputs(subject, call, {name: grad}) for name, grad in grads.items()]
    for name, limit in limits.items():
        total = torch.stack([part[name] for part in parts]).sum(0)
        where = f"the gradient of {name}, from {' and '.join(grads)}"
        yield judge.agree(limit, whole[name], total, where)


def _from_outputs(subject: Subject, call: Call, grads: Tensors) -> Tensors:
    """Return the gradients of a call from some of its outputs; 0 where there are none."""
    leaves = call.leaves()
    with torch.enable_grad():
        outs = subject.outputs(leaves)
    found = torch.autograd.grad(
        [outs[name] for name in grads],
        list(leaves.tensors.values()),
        list(grads.values()),
        materialize_grads=True,
    )
    return dict(zip(leaves.tensors, found, strict=True))


def gradients_of(
    subject: Subject, call: Call, chosen: set[str], grad_out: Tensor
) -> dict[str, Tensor]:
    """Return the gradients of some inputs and weights; the others require none."""
    weights = subject.weights()
    trained = {name for name, weight in weights.items() if weight.requires_grad}
    leaves = {
        n: t.detach().clone().requires_grad_() for n, t in call.tensors.items() if n in chosen
    }
    try:
        for name in trained - chosen:
            weights[name].requires_grad_(False)
        with torch.enable_grad():
            out = subject(call.given(**leaves))
        if not out.requires_grad:
            raise BrokenError(f"no gradient where {', '.join(sorted(chosen))} alone require one")
        asked = {**leaves, **{name: weights[name] for name in sorted(trained & chosen)}}
        return judge.received(out, asked, grad_out)
    finally:
        for name in trained:
            weights[name].requires_grad_(True)


@call_check(
    "N4.accumulation",
    "A second backward through the same graph, or one like it where torch compiled it to be used "
    "once, adds the same gradient again, to the bit; other calls before the first change nothing.",
    applies=lambda promises: promises.gradients and promises.deterministic,
)
def accumulation(subject: Subject) -> Measured:
    """Compare with a call by itself, and with twice its gradient; weights of a layer too."""
    call, other = (subject.draw(label, length=9).leaves() for label in ("N4", "N4 other"))
    trained = {n: p for n, p in subject.weights().items() if p.requires_grad}
    leaves = {**call.tensors, **trained}
    grad_out = subject.normal("N4 grad", *judge.output_shape(call))
    with torch.enable_grad():
        alone = judge.received(subject(call), leaves, grad_out)
        kept = {name: gradient.clone() for name, gradient in alone.items()}
        out, between = subject(call), subject(other)
    out = _passed_back(subject, call, grad_out, out)
    first = {n: t.grad.clone() for n, t in leaves.items() if t.grad is not None}
    for name, gradient in first.items():
        judge.same_bits(kept[name], gradient, f"the gradient of {name}, beside another call")
    out.backward(grad_out)  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    for name, gradient in first.items():
        again = leaves[name].grad
        assert again is not None
        judge.same_bits(2 * gradient, again, f"the gradient of {name}, accumulated twice")
    judge.received(between, {**other.tensors, **trained}, -grad_out)
    for name, gradient in kept.items():
        judge.same_bits(gradient, alone[name], f"the gradient of {name}, after further calls")
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
    call = subject.draw("N4", length=9)
    leaves = call.leaves()
    tensors = list(leaves.tensors.values())

    def run(*tensors: Tensor) -> Tensor:
        return subject(call.given(**dict(zip(leaves.tensors, tensors, strict=True))))

    with torch.enable_grad():
        plain = run(*tensors)
        out = checkpoint(run, *tensors, use_reentrant=False)
    judge.same_bits(plain.detach(), out.detach(), "the output under checkpoint")
    grad_out = subject.normal("N4 grad", *plain.shape)
    asked = {**leaves.tensors, **{n: p for n, p in subject.weights().items() if p.requires_grad}}
    wanted = judge.received(plain, asked, grad_out)
    for name, gradient in judge.received(out, asked, grad_out).items():
        judge.same_bits(wanted[name], gradient, f"the gradient of {name} under checkpoint")
    return judge.exactly(0, "different elements")
