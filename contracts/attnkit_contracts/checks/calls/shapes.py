"""S: what every call keeps, whatever it computes. Shapes, inputs, bits, strides, lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attnkit.errors import UnsupportedError
from attnkit_contracts.catalogue import BrokenError, Measured, call_check, operation_check
from attnkit_contracts.inputs import layouts
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.operations import Operation
    from attnkit_contracts.subjects.subject import Subject


@call_check(
    "S1.output",
    "The output is a tensor of the declared shape, in the dtype and on the device of the input, "
    "for every length from 1 on.",
    required=True,
)
def output(subject: Subject) -> Measured:
    """Compare shape, dtype and device at several lengths."""
    for length in (1, 2, 17):
        call = subject.draw("S1", length=length)
        out = subject(call)
        if not isinstance(out, torch.Tensor):
            raise BrokenError(f"expected a tensor for L={length}, got {type(out).__name__}")
        wanted = (judge.output_shape(call), subject.dtype, next(iter(call.tensors.values())).device)
        got = (tuple(out.shape), out.dtype, out.device)
        if got != wanted:
            raise BrokenError(f"expected {wanted} for L={length}, got {got}")
    return judge.exactly(0, "wrong outputs")


@call_check(
    "S2.inputs_unchanged",
    "No input tensor is written to, forward or backward: same bits, same version counter.",
)
def inputs_unchanged(subject: Subject) -> Measured:
    """Compare every input with a copy made before the call."""
    call = subject.draw("S2")
    if subject.promises.gradients:
        call = call.leaves()
    before = {name: tensor.detach().clone() for name, tensor in call.tensors.items()}
    versions = {name: tensor._version for name, tensor in call.tensors.items()}
    out = subject(call)
    if out.requires_grad:
        out.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    for name, tensor in call.tensors.items():
        judge.same_bits(before[name], tensor.detach(), f"{name} was written to")
        if tensor._version != versions[name]:
            raise BrokenError(f"{name} was written to, and then restored")
    return judge.exactly(0, "tensors written to")


@call_check(
    "S3.determinism",
    "The same call gives the same bits, forward and backward, with other work in between.",
    applies=lambda promises: promises.deterministic,
)
def determinism(subject: Subject) -> Measured:
    """Call three times, with calls of another length in between."""
    call, other = subject.draw("S3", length=65), subject.draw("S3 other", length=20)
    first = subject(call)
    grad_out = subject.normal("S3 grad", *first.shape)
    backward = subject.promises.gradients
    before = judge.gradients(subject, call, grad_out) if backward else {}
    for _ in range(2):
        subject(other)
        judge.same_bits(first, subject(call), "the output of the same call")
    if backward:
        after = judge.gradients(subject, call, grad_out)
        for name, gradient in before.items():
            judge.same_bits(gradient, after[name], f"the gradient of {name} of the same call")
    return judge.exactly(0, "different elements")


@call_check(
    "S5.strides",
    "F(a strided view of x) = F(x.contiguous()), whatever the strides and the storage offset, and "
    "so are its gradients, as real layers send it: heads inside tokens, packed, expanded.",
    verdict="R",
)
def strides(subject: Subject) -> Measured:
    """Compare views with contiguous copies of equal values, those of options too."""
    plain = subject.draw("S5", length=17)
    call = if_taken(subject, subject.with_options(plain, "S5 options"), plain)
    limit, wanted, found = subject.bound(call), subject(call), []
    for layout in (layouts.TRANSPOSED, layouts.COLUMNS, layouts.EVERY_SECOND, layouts.OFFSET):
        found.append(judge.agree(limit, wanted, subject(call.laid(layout)), layout.name))
    alike = call.map(lambda _, t: t[:1].expand_as(t).contiguous() if t.dim() >= 3 else t)
    limit, wanted = subject.bound(alike), subject(alike)
    expanded = subject(alike.laid(layouts.ONE_SAMPLE))
    found.append(judge.agree(limit, wanted, expanded, layouts.ONE_SAMPLE.name))
    if subject.promises.gradients:
        found += _laid_gradients(subject, subject.draw("S5", length=9))
    return judge.worst(found)


def _laid_gradients(subject: Subject, call: Call) -> Iterator[Measured]:
    """Compare gradients of views with those of contiguous leaves."""
    grad_out = subject.normal("S5 grad", *judge.output_shape(call))
    whole = judge.gradients(subject, call, grad_out)
    is_layer = subject.layer is not None
    for layout in (layouts.TRANSPOSED,) if is_layer else (layouts.PACKED, layouts.TOKENS_FIRST):
        got = judge.gradients(subject, call.laid(layout), grad_out)
        yield subject.agree_gradients(call, grad_out, whole, got, layout.name)
    if not is_layer:
        alike = call.map(lambda _, t: t[:, :1].expand_as(t) if t.dim() >= 3 else t)
        whole = judge.gradients(subject, alike, grad_out)
        # a leaf itself lies so: the gradient of a view would be summed over what it repeats
        leaves = alike.map(lambda _, t: t.detach().requires_grad_())
        with torch.enable_grad():
            got = judge.received(subject(leaves), leaves.tensors, grad_out)
        yield subject.agree_gradients(alike, grad_out, whole, got, layouts.ONE_HEAD.name)


def if_taken(subject: Subject, rich: Call, plain: Call) -> Call:
    """Return a call with options, or a plain one where they do not go together."""
    try:
        subject(rich)
    except UnsupportedError:
        return plain
    return rich


def _lengths(promises: Promises) -> Iterator[Mapping[str, int]]:
    """Yield one, and what lies around edges of blocks."""
    yield from ({"queries": n, "keys": n} for n in (1, 2, 15, 16, 17, 63, 64, 65, 129))
    if promises.cross:
        for queries, keys in ((1, 64), (3, 65), (17, 130)):
            yield {"queries": queries, "keys": keys}


@operation_check(
    "S8.lengths",
    "r <= gate for L and S of 1, 2 and around multiples of 16, 64 and 128.",
    cases=_lengths,
    verdict="R",
)
def lengths(subject: Operation, queries: int, keys: int) -> Measured:
    """Compare with the definition."""
    # what has no promise of other keys draws none
    other: dict[str, Any] = {} if keys == queries else {"keys": keys}
    call = subject.draw("S8", batch=1, length=queries, width=8, **other)
    return judge.near(subject.bound(call, probes=4), subject(call))


@call_check(
    "S8.empty",
    "Empty batches and, where the family has them, empty sequences give empty outputs.",
)
def empty(subject: Subject) -> Measured:
    """Call with B = 0, and with L = 0."""
    calls: list[tuple[str, Call]] = [("B=0", subject.draw("S8", batch=0, length=5))]
    calls.append(("L=0", subject.draw("S8", batch=2, length=0)))
    for what, call in calls:
        out = subject(call)
        if tuple(out.shape) != judge.output_shape(call) or out.dtype != subject.dtype:
            raise BrokenError(
                f"expected {judge.output_shape(call)} {subject.dtype} for {what}, "
                f"got {tuple(out.shape)} {out.dtype}"
            )
    return judge.exactly(0, "wrong outputs")


@operation_check(
    "S8.widths",
    "r <= gate for head widths that are no multiple of 8 or 16, and for 1.",
    verdict="R",
)
def widths(subject: Operation) -> Measured:
    """Compare with the definition at every width."""
    found = []
    for width in (1, 5, 20, 80):
        call = subject.draw("S8 widths", batch=1, length=11, width=width)
        found.append(judge.near(subject.bound(call, probes=4), subject(call), f"E={width}"))
    return judge.worst(found)
