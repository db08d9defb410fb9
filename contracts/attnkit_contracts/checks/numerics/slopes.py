"""N, continued: gradients and their own gradients are slopes; those of a layer's weights too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit import precision
from attnkit.masks.constructors import Sizes
from attnkit_contracts.catalogue import (
    BrokenError,
    Measured,
    call_check,
    layer_check,
    operation_check,
)
from attnkit_contracts.checks.numerics.gradients import calls_of, gradients_of
from attnkit_contracts.definitions.oracle import real_tokens
from attnkit_contracts.foreign.layers import is_foreign
from attnkit_contracts.inputs.calls import mask_part, normal
from attnkit_contracts.judging import outputs as judge
from attnkit_contracts.judging import units
from attnkit_contracts.subjects.target import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject
    from attnkit_contracts.subjects.subject import Definition, Function, Subject

    Tensors = Mapping[str, Tensor]

STEP = 2.0**-20
"""So small that hardly a number passes a kink of its function on the way."""

LONG = 130
"""Tokens, more than two chunks of 64."""


@operation_check(
    "N3.central_differences",
    "The gradient along any direction is the slope of the output: "
    "<dF^T g, d> = (<g, F(x + hd)> - <g, F(x - hd)>) / 2h, within what that formula is off by.",
    applies=lambda promises: promises.gradients,
    dtypes=("float64",),
    verdict="R",
)
def central_differences(subject: Subject) -> Measured:
    """Go along a random direction of all inputs, of plain ones and of all that are promised."""
    plain, found = subject.draw("N3", length=9), []
    for call in calls_of(subject, plain):
        function = subject.function(call)
        grad_out = subject.normal("N3 grad", *judge.output_shape(call))
        found.append(_off_the_slope(subject, function, call.tensors, grad_out))
    return judge.worst(found)


def _off_the_slope(subject: Subject, function: Function, at: Tensors, grad_out: Tensor) -> Measured:
    """Measure how far gradients are from the slope of <g, F(x)> along one direction of all x.

    Args:
        subject: Which directions it draws.
        function: F, in float64: each tensor shows in the company of all others.
        at: x.
        grad_out: g.
    """
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in at.items()}
    with torch.enable_grad():
        out = function(leaves)
    wanted = judge.received(out, leaves, grad_out)
    # an output is off by the gate, in roundoffs of the terms it is a sum of
    gate = precision.forward_gate(torch.float64) * precision.roundoff(torch.float64)
    blurred = gate * float((grad_out * out.detach()).abs().sum())

    @torch.no_grad()
    def contracted(tensors: Tensors) -> float:
        return float((grad_out * function(tensors)).sum())

    return _off(subject, contracted, at, wanted, blurred)


def _off(
    subject: Subject,
    function: Callable[[Tensors], float],
    at: Tensors,
    wanted: Tensors,
    blurred: float,
) -> Measured:
    """Measure how far gradients are from the slope of a number along one random direction.

    Halve the step once: the difference shows the error of the formula, rounding aside.
    """
    shapes = {name: (subject.random(f"slope {name}"), *at[name].shape) for name in wanted}
    ways = {name: normal(*shape).to(at[name]) for name, shape in shapes.items()}

    def slope(h: float) -> float:
        ahead, back = (
            function({**at, **{n: at[n].detach() + sign * h * ways[n] for n in wanted}})
            for sign in (1, -1)
        )
        return (ahead - back) / (2 * h)

    coarse, fine = slope(STEP), slope(STEP / 2)
    allowed = abs(coarse - fine) + 2 * blurred / STEP
    off = abs(fine - sum(float((wanted[name] * ways[name]).sum()) for name in wanted))
    unit = "errors of the central difference"
    return Measured(off / allowed, 1.0, unit, f"the gradients of {', '.join(wanted)}")


@call_check(
    "N4.second_order",
    "The derivative of a gradient along any direction is the slope of that gradient, or torch "
    "refuses to take it; it is never another number, nor missing.",
    applies=lambda promises: promises.gradients,
    dtypes=("float64",),
    verdict="R",
)
def second_order(subject: Subject) -> Measured:
    """Differentiate <dF^T g, d> by the inputs, the weights and g."""
    calls = calls_of(subject, subject.clear_call("N4", length=7))
    return judge.worst(_second_order(subject, call) for call in calls)


def _second_order(subject: Subject, call: Call) -> Measured:
    grad_out = subject.normal("N4 grad", *judge.output_shape(call))
    at = {**call.tensors, **subject.weights(), "grad_out": grad_out}
    along = {name: subject.normal(f"N4 {name}", *tensor.shape) for name, tensor in at.items()}
    function = subject.function(call)

    def terms(tensors: Tensors, *, again: bool = False) -> Tensor:
        given = {n: t if again else t.detach().requires_grad_() for n, t in tensors.items()}
        g = given.pop("grad_out")
        with torch.enable_grad():
            found = torch.autograd.grad(
                function(given), list(given.values()), g, create_graph=again
            )
            if again and not any(each.requires_grad for each in found):
                raise BrokenError("gradients cannot be differentiated, and nothing says so")
            return torch.cat(
                [(along[name] * each).flatten() for name, each in zip(given, found, strict=True)]
            )

    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in at.items()}
    try:
        whole = terms(leaves, again=True)
        # torch.autograd.grad would not come by what refuses
        torch.autograd.backward(whole.sum())
    except RuntimeError:
        return judge.exactly(0, "wrong second derivatives, as they are refused")
    found = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in leaves.items()}
    gate = units.backward_gate(subject.dtype) * precision.roundoff(subject.dtype)
    return _off(
        subject,
        lambda tensors: float(terms(tensors).sum()),
        at,
        found,
        gate * float(whole.detach().abs().sum()),
    )


@layer_check(
    "N4.parameters",
    "Every weight of a layer gets a finite gradient, that of a matrix is not zero, and all are "
    "within the gate of those in the widest promised dtype: in training, in evaluation and in "
    "pieces, through states that carry gradients. Those are the slope of the output: without "
    "options and with all of them, padded, and over several chunks.",
    applies=lambda promises: promises.gradients,
    verdict="R",
)
def parameters(subject: LayerSubject) -> Measured:
    """Send a normal gradient into the output; move inputs and weights in random directions."""
    fields = type(subject.config).model_fields
    plain = subject.remade(**({"dropout_p": 0.0} if "dropout_p" in fields else {}))
    call = plain.whole(plain.clear_call("N4", length=9))
    grad_out = plain.normal("N4 grad", *judge.output_shape(call))
    found = []
    for measured in _slopes(plain):
        found.append(measured)
        if not measured.value <= measured.threshold:
            return measured
    limits = plain.bounds(call, {"out": grad_out}, Reading(probes=3))
    for way, got in _ways(plain, call, grad_out):
        judge.must_be_finite(got, f"gradients {way}")
        for name, gradient in got.items():
            if gradient.dim() > 1 and not (gradient != 0).any():
                raise BrokenError(f"{name} gets a gradient of zero: it would never learn")
            what = judge.gradient_of(name)
            found.append(plain.error(limits[what], gradient, f"the {what}, {way}"))
    return judge.worst(found)


def _ways(subject: LayerSubject, call: Call, grad_out: Tensor) -> Iterator[tuple[str, Tensors]]:
    """Yield gradients of inputs and weights by what they were computed in."""
    everything = {*call.tensors, *subject.weights()}
    # others may drop without saying so
    for training in (False,) if is_foreign(subject.target.variant) else (True, False):
        subject.layer.train(training)
        where = "in training" if training else "in evaluation"
        yield where, gradients_of(subject, call, everything, grad_out)
    if subject.promises.state:
        leaves = call.leaves()
        inputs = {**leaves.tensors, **subject.weights()}
        with torch.enable_grad():
            # each of a call of its own: what torch compiles takes one backward pass by default
            late, out = (subject.pieces(leaves, (4, 1, 4)) for _ in range(2))
        early = judge.received(late[:, 4:], leaves.tensors, grad_out[:, 4:])["x"][:, :4]
        # a state that is cut off on purpose carries none
        if early.any():
            yield "in pieces", judge.received(out, inputs, grad_out)


def _slopes(subject: LayerSubject) -> Iterator[Measured]:
    """Compare gradients of the layer in float64, if it promises that, with its output's slope."""
    if subject.widest != torch.float64:
        return
    for made, call in _sloped(subject):
        definition = made.definition(call)
        at = {name: t.detach().double() for name, t in {**call.tensors, **made.weights()}.items()}
        x = call.tensors["x"]
        # the output of a padded token may be anything
        real = real_tokens(call.mask, x.shape[0], x.shape[1], x.device)[..., None]
        grad_out = normal(made.random("N4 slopes"), *x.shape).to(x.device) * real
        yield _off_the_slope(made, _out_of(definition), at, grad_out)


def _sloped(subject: LayerSubject) -> Iterator[tuple[LayerSubject, Call]]:
    """Yield a short call, long ones, and those of a layer with all options, under masks."""
    yield subject, subject.clear_call("N4 short", length=9, batch=5)
    yield subject, subject.clear_call("N4 long", length=LONG)
    company = subject.in_company()
    call = company.clear_call("N4 company", length=17)
    sizes = Sizes(len(call.tensors["x"]), 1, 17, 17)
    yield company, call
    hidden = set(subject.promises.masks) - set(company.needs)
    # one at a time: together they may leave a padded token nothing to look at
    for part in ("padding", "documents"):
        if part in hidden:
            yield company, call.masked(call.mask & mask_part(part, sizes, subject.device))


def _out_of(definition: Definition) -> Function:
    return lambda tensors: definition(tensors)["out"]
