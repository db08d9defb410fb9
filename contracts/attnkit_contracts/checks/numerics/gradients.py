"""N, continued: gradients of any inputs and weights, accumulated, recomputed, differentiated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from attnkit import precision
from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Sizes
from attnkit_contracts.catalogue import (
    BrokenError,
    Measured,
    call_check,
    layer_check,
    operation_check,
)
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

ONCE = "donated buffer"
"""What torch says of a graph that it compiled, by default, for one backward pass."""


STEPS = {torch.float64: 2.0**-20, torch.float32: 2.0**-8}
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
    for call in _calls(subject, plain):
        function = subject.function(call)
        grad_out = subject.normal("N3 grad", *judge.output_shape(call))
        found.append(_off_the_slope(subject, function, call.tensors, grad_out))
    return judge.worst(found)


def _calls(subject: Subject, plain: Call) -> Iterator[Call]:
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


def _off_the_slope(
    subject: Subject,
    function: Function,
    at: Tensors,
    grad_out: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Measured:
    """Measure how far the gradients of <g, F(x)> are from its slope along random directions.

    Args:
        subject: Which directions it draws.
        function: F.
        at: x, which may be of a wider dtype than F computes in.
        grad_out: g.
        dtype: What F computes in. float64 shows each tensor in the company of all others.
    """
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in at.items()}
    with torch.enable_grad():
        out = function(leaves)
    wanted = judge.received(out, leaves, grad_out)
    # an output is off by the gate, in roundoffs of the terms it is a sum of
    gate = precision.forward_gate(dtype) * precision.roundoff(dtype)
    blurred = gate * float((grad_out * out.detach()).abs().sum())

    @torch.no_grad()
    def contracted(tensors: Tensors) -> float:
        return float((grad_out * function(tensors)).sum())

    groups = [list(at)] if dtype == torch.float64 else [[name] for name in at]
    return judge.worst(
        _off(subject, contracted, at, {name: wanted[name] for name in group}, blurred, STEPS[dtype])
        for group in groups
    )


def _off(
    subject: Subject,
    function: Callable[[Tensors], float],
    at: Tensors,
    wanted: Tensors,
    blurred: float,
    step: float,
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

    coarse, fine = slope(step), slope(step / 2)
    allowed = abs(coarse - fine) + 2 * blurred / step
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
    calls = _calls(subject, subject.clear_call("N4", length=7))
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
        whole.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
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
        STEPS[subject.dtype],
    )


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
    for call in _calls(subject, plain):
        found += _of_subsets(subject, call, known)
        known |= set(call.tensors)
    return judge.worst(found)


def _of_subsets(subject: Subject, call: Call, known: set[str]) -> Iterator[Measured]:
    """Compare gradients of some inputs and weights with those of all; some are known alone."""
    names, grad_out = set(call.tensors), subject.normal("N4 grad", *judge.output_shape(call))
    weights = {name for name, weight in subject.weights().items() if weight.requires_grad}
    whole = _gradients_of(subject, call, names | weights, grad_out)
    chosen = [{name} for name in sorted((names | weights) - known)]
    for each in [*chosen, *(names - {name} for name in sorted(names)), weights]:
        if each:
            got = _gradients_of(subject, call, each, grad_out)
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


def _gradients_of(
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
        yield where, _gradients_of(subject, call, everything, grad_out)
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
    """Compare gradients of the layer in its widest dtype with the slope of its output."""
    company = subject.in_company()
    ways = [(subject, subject.clear_call("N4 short", length=9)),
            (company, company.clear_call("N4 company", length=17)),
            (subject, subject.clear_call("N4 long", length=LONG))]  # fmt: skip
    for made, call in ways if subject.widest in STEPS else ():
        x = call.tensors["x"]
        if made is company:
            sizes = Sizes(x.shape[0], 1, x.shape[1], x.shape[1])
            hidden = set(subject.promises.masks) - set(made.needs)
            for part in ("padding", "documents"):
                if part in hidden:
                    call = call.masked(call.mask & mask_part(part, sizes, subject.device))
        definition = made.definition(call)
        at = {name: t.detach().double() for name, t in {**call.tensors, **made.weights()}.items()}
        # the output of a padded token may be anything
        real = real_tokens(call.mask, x.shape[0], x.shape[1], x.device)[..., None]
        grad_out = normal(made.random("N4 slopes"), *x.shape).to(x.device) * real
        yield _off_the_slope(made, _out_of(definition), at, grad_out, made.widest)


def _out_of(definition: Definition) -> Function:
    return lambda tensors: definition(tensors)["out"]
