"""N: errors against the float64 definition, forward and backward, in derived units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.catalogue import Measured, check, recurrence_check
from attnkit_contracts.checks.calls.refusal import either_way
from attnkit_contracts.inputs.calls import mask_part
from attnkit_contracts.judging.outputs import gradients, must_be_finite, near, worst

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attnkit.promises import MaskPart, Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.operations import Operation
    from attnkit_contracts.subjects.recurrence import RecurrenceOperation
    from attnkit_contracts.subjects.softmax import SoftmaxOperation

OPTIONS = ("cross", "gqa", "value_width", "bias", "scale", "softcap", "sinks")
LONG = 130
"""Tokens, more than two chunks of 64, the largest that is common."""


def softmax_cases(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield plain calls, each promised option alone, and all of them together."""
    yield {"inputs": "causal" if promises.causal else "bidirectional"}
    if promises.causal and promises.bidirectional:
        yield {"inputs": "bidirectional"}
    yield {"inputs": "large"}
    promised = [name for name in OPTIONS if getattr(promises, name)]
    for name in promised:
        yield {"inputs": name}
    if len(promised) > 1:
        yield {"inputs": "+".join(promised)}


def softmax_call(subject: SoftmaxOperation, inputs: str, causal: bool | None = None) -> Call:
    """Return the call that a case of `softmax_cases` names, causal or not."""
    names = inputs.split("+")
    queries, keys = (23, 50) if "cross" in names else (50, 50)
    heads = 4 if "gqa" in names else subject.heads
    kv_heads = 2 if "gqa" in names else heads
    sizes = Sizes(2, heads, queries, keys)
    causal = False if inputs == "bidirectional" else causal
    call = subject.draw(
        f"N {inputs}",
        length=queries,
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        value_width=24 if "value_width" in names else None,
        mask=subject.mask(sizes, causal=causal),
    )
    if "large" in names:
        call = call.map(lambda _, tensor: tensor * 4)
    return subject.beside(call, names, f"N {inputs} options")


def recurrence_cases(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield every promised form of decay, with and without the options."""
    for decay in promises.decay or ("none",):
        yield {"inputs": decay}
    for name in ("gqa", "value_width", "beta", "scale"):
        if getattr(promises, name):
            yield {"inputs": name}
    if promises.state:
        yield {"inputs": "state"}
    for part in ("padding", "documents"):
        if part in promises.masks:
            yield {"inputs": part}


def _backward_cases(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield what a recurrence is trained on: beside the usual, what is longer than its chunks."""
    yield from recurrence_cases(promises)
    yield {"inputs": "long"}


def recurrence_call(subject: RecurrenceOperation, inputs: str) -> Call:
    """Return the call that a case of `recurrence_cases`, or of `_backward_cases`, names."""
    decay = inputs if inputs in ("none", "head", "channel") else None
    is_long = inputs == "long"
    call = subject.draw(
        f"N {inputs}",
        batch=1 if is_long else 2,
        length=LONG if is_long else 24,
        heads=4 if inputs == "gqa" else 2,
        groups=2,
        value_width=24 if inputs == "value_width" else None,
        decay=decay,  # type: ignore[arg-type]  # one of the three, as tested above
        beta=inputs == "beta",
        state=inputs == "state",
    )
    if inputs in ("padding", "documents"):
        part: MaskPart = inputs  # type: ignore[assignment]  # one of the two, as tested above
        sizes = Sizes(2, 2, 24, 24)
        plain = subject.mask(sizes, wide=ALL_MASK_PARTS)
        call = call.masked(plain & mask_part(part, sizes, subject.device))
    return call.saying(scale=0.7) if inputs == "scale" else call


@check(
    "N1.forward",
    "r = |o - o*| / unit <= gate against the float64 definition of the same rounded inputs.",
    families=("softmax",),
    cases=softmax_cases,
    verdict="R",
    required=True,
)
def forward(subject: SoftmaxOperation, inputs: str) -> Measured:
    """Compare with the definition; see `attnkit_contracts.judging.units`."""

    def error(causal: bool | None) -> Measured:
        call = softmax_call(subject, inputs, causal)
        return near(subject.bound(call), subject(call))

    return either_way(subject, error)


@recurrence_check(
    "N1.recurrence",
    "r = |o - o*| / unit <= gate against the recurrence run token by token in float64.",
    cases=recurrence_cases,
    verdict="R",
    required=True,
)
def recurrence(subject: RecurrenceOperation, inputs: str) -> Measured:
    """Compare real tokens with the definition."""
    call = recurrence_call(subject, inputs)
    out = subject(call)
    must_be_finite({"output": out}, inputs)
    return near(subject.bound(call), out)


@check(
    "N2.backward",
    "r_grad <= gate for the gradient of every differentiable input, with a normal grad_out.",
    families=("softmax",),
    applies=lambda promises: promises.gradients,
    cases=softmax_cases,
    verdict="R",
    required=True,
)
def backward(subject: SoftmaxOperation, inputs: str) -> Measured:
    """Compare with the gradients of the definition."""
    return either_way(
        subject,
        lambda causal: _gradient_error(subject, softmax_call(subject, inputs, causal)),
    )


@recurrence_check(
    "N2.recurrence_backward",
    "r_grad <= gate for the gradient of every differentiable input, the initial state included.",
    applies=lambda promises: promises.gradients,
    cases=_backward_cases,
    verdict="R",
    required=True,
)
def recurrence_backward(subject: RecurrenceOperation, inputs: str) -> Measured:
    """Compare with the gradients of the definition."""
    return _gradient_error(subject, recurrence_call(subject, inputs))


def _gradient_error(subject: Operation, call: Call) -> Measured:
    grad_out = subject.grads(call)["out"]
    got = gradients(subject, call, grad_out)
    must_be_finite(got, "gradients")
    return worst(
        near(limit, got[name], f"the gradient of {name}")
        for name, limit in subject.gradient_bounds(call, grad_out).items()
    )
