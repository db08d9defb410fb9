"""N: errors against the float64 definition, forward and backward, in derived units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.catalogue import Measured, check, recurrence_check
from attnkit_contracts.checks.calls.refusal import either_way
from attnkit_contracts.inputs.calls import mask_part
from attnkit_contracts.judging.outputs import gradient_of, must_be_finite, near, worst

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attnkit.promises import MaskPart, Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.operations import Operation
    from attnkit_contracts.subjects.recurrence import RecurrenceOperation
    from attnkit_contracts.subjects.softmax import SoftmaxOperation

OPTIONS = ("cross", "gqa", "value_width", "bias", "scale", "softcap", "sinks")

SIZES: dict[str, dict[str, int]] = {
    "bidirectional": {"batch": 3, "length": 33},
    "cross": {"batch": 1, "length": 1, "keys": 140},
    "value_width": {"length": 20, "width": 132, "value_width": 76},
    "bias": {"batch": 1, "length": 150, "keys": 150},
    "scale": {"batch": 3, "length": 21, "width": 72},
    "softcap": {"batch": 1, "heads": 1},
    "sinks": {"batch": 3, "length": 133, "keys": 133},
}
"""Of the cases that bring one thing alone: beyond one and two blocks of 64, and around 1."""

COMPANY = {"batch": 3, "length": 70, "keys": 70, "heads": 4, "kv_heads": 2, "value_width": 24}
"""Of masks beside all options."""


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
    size = {"batch": 2, "length": 50, "heads": subject.heads} | SIZES.get(inputs, {})
    if len(names) > 1:
        size |= {"length": 23, "keys": 50} if "cross" in names else {}
        size |= {"value_width": 24} if "value_width" in names else {}
    if "gqa" in names:
        size |= {"heads": 4, "kv_heads": 2} if len(names) > 1 else {"heads": 6, "kv_heads": 3}
    batch, heads, queries = size["batch"], size["heads"], size["length"]
    sizes = Sizes(batch, heads, queries, size.get("keys", queries))
    causal = False if inputs == "bidirectional" else causal
    call = subject.draw(f"N {inputs}", mask=subject.mask(sizes, causal=causal), **size)
    if "large" in names:
        call = call.map(lambda _, tensor: tensor * 4)
    return subject.beside(call, names, f"N {inputs} options")


def _softmax_backward_cases(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield what a softmax is trained on: beside the usual, every part of a mask."""
    yield from softmax_cases(promises)
    for part in promises.masks:
        if part not in promises.needs:
            yield {"inputs": part}


def _masked_call(subject: SoftmaxOperation, part: MaskPart, causal: bool | None) -> Call:
    """Return a call under a mask of this kind, with heads and widths as promised."""
    promises = subject.promises
    size = COMPANY | ({} if promises.value_width else {"value_width": 16})
    if not promises.gqa:
        size |= dict.fromkeys(("heads", "kv_heads"), subject.heads)
    # a prefix shows nothing beside causal
    causal = False if part == "prefix" and promises.bidirectional else causal
    sizes = Sizes(size["batch"], size["heads"], size["length"], size["keys"])
    mask = subject.mask(sizes, causal=causal) & subject.part(part, sizes)
    return subject.draw(f"N {part}", mask=mask, **size)


def recurrence_cases(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield every promised form of decay, with and without the options."""
    for decay in promises.decay or ("none",):
        yield {"inputs": decay}
    for name in RECURRENCE_OPTIONS:
        if getattr(promises, name):
            yield {"inputs": name}
    for part in ("padding", "documents"):
        if part in promises.masks:
            yield {"inputs": part}


def _backward_cases(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield what a recurrence is trained on: beside the usual, company and several chunks."""
    options = [name for name in RECURRENCE_OPTIONS if getattr(promises, name)]
    if options:
        yield {"inputs": "+".join(("long", *options))}
    decays = promises.decay or ("none",)
    yield from ({"inputs": "+".join((decay, *options))} for decay in decays[:-1])
    yield from (case for case in recurrence_cases(promises) if case["inputs"] not in COMPANIONS)
    # the delta rule has other kernels
    if promises.beta or not options:
        yield {"inputs": "long"}


RECURRENCE_OPTIONS = ("gqa", "value_width", "beta", "scale", "state")
COMPANIONS = ("scale", "state")
"""What backward passes are given beside other options only."""

RECURRENCE_SIZES: dict[str, dict[str, int]] = {
    "gqa": {"length": 12, "width": 72},
    "value_width": {"length": 12, "width": 8, "value_width": 136},
    "long": {"batch": 1, "length": 130},
}
"""Of the cases that are plain otherwise; the longest has more than two chunks of 64."""


def recurrence_call(subject: RecurrenceOperation, inputs: str) -> Call:
    """Return the call that a case of `recurrence_cases`, or of `_backward_cases`, names."""
    names = inputs.split("+")
    heads = 4 if "gqa" in names else 2
    size: dict[str, Any] = {"batch": 2, "length": 24, "heads": heads, "groups": 2}
    size |= RECURRENCE_SIZES.get(inputs, {})
    if len(names) > 1:
        size |= {"length": 130, "width": 8} if "long" in names else {"batch": 5, "length": 21}
        size |= {"value_width": 24} if "value_width" in names else {}
    decay = next((name for name in names if name in ("none", "head", "channel")), None)
    call = subject.draw(
        f"N {inputs}",
        decay=decay,  # type: ignore[arg-type]  # one of the three, as tested above
        beta="beta" in names,
        state="state" in names,
        **size,
    )
    if inputs in ("padding", "documents"):
        part: MaskPart = inputs  # type: ignore[assignment]  # one of the two, as tested above
        sizes = Sizes(2, 2, 24, 24)
        plain = subject.mask(sizes, wide=ALL_MASK_PARTS)
        call = call.masked(plain & mask_part(part, sizes, subject.device))
    return call.saying(scale=0.7) if "scale" in names else call


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
    "r_grad <= gate for the gradient of every differentiable input, with a normal grad_out: with "
    "each option alone, and under every part of a mask with all of them.",
    families=("softmax",),
    applies=lambda promises: promises.gradients,
    cases=_softmax_backward_cases,
    verdict="R",
    required=True,
)
def backward(subject: SoftmaxOperation, inputs: str) -> Measured:
    """Compare with the gradients of the definition."""
    if inputs not in ALL_MASK_PARTS:
        return either_way(
            subject,
            lambda causal: _gradient_error(subject, softmax_call(subject, inputs, causal)),
        )

    def under_mask(causal: bool | None) -> Measured:
        part: MaskPart = inputs
        call = _masked_call(subject, part, causal)
        try:
            return _gradient_error(subject, subject.with_options(call, f"N {part} options"))
        except UnsupportedError:
            # not every option goes with every other
            return _gradient_error(subject, call)

    return either_way(subject, under_mask)


@recurrence_check(
    "N2.recurrence_backward",
    "r_grad <= gate for the gradient of every differentiable input, the initial state included, "
    "from the output and the final state: with each option alone and all together.",
    applies=lambda promises: promises.gradients,
    cases=_backward_cases,
    verdict="R",
    required=True,
)
def recurrence_backward(subject: RecurrenceOperation, inputs: str) -> Measured:
    """Compare with the gradients of the definition."""
    return _gradient_error(subject, recurrence_call(subject, inputs))


def _gradient_error(subject: Operation, call: Call) -> Measured:
    grads = subject.grads(call)
    answers = subject.answers(call, grads)
    got = {name: answers[gradient_of(name)] for name in call.tensors}
    must_be_finite(got, "gradients")
    return worst(
        near(limit, got[name], f"the gradient of {name}")
        for name, limit in subject.gradient_bounds(call, grads).items()
    )
