"""S, continued: memory that nobody wrote, strides of gradients, caches, far addresses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

import attnkit
from attnkit.masks.constructors import Sizes
from attnkit_contracts.catalogue import Measured, SkippedEnvError, call_check, mixing_check
from attnkit_contracts.inputs import layouts
from attnkit_contracts.inputs.calls import mask_part
from attnkit_contracts.instruments.poison_and_meters import Poisoned
from attnkit_contracts.judging import outputs as judge
from attnkit_contracts.subjects.opener import subject_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

BEYOND_INT32 = 2**31
"""An offset, in elements, that 32 bits with a sign do not hold."""


@call_check(
    "S4.poisoned_allocations",
    "Outputs, gradients and states are the same bits whether memory that is allocated without a "
    "value holds 0 or NaN.",
    applies=lambda promises: promises.deterministic,
)
def poisoned_allocations(subject: Subject) -> Measured:
    """Fill what the plugin's own code allocates with ``torch.empty`` and its like."""
    call = subject.draw("S4", length=37)
    packages, results = subject.packages(), []
    for value in (0.0, math.nan):
        with Poisoned(packages, value):
            results.append(_everything(subject, call))
    for name, clean in results[0].items():
        judge.same_bits(
            clean, results[1][name], f"{name}, with NaN in memory that was never written"
        )
    return judge.exactly(0, "different elements")


def _everything(subject: Subject, call: Call) -> dict[str, Tensor]:
    """Return all that a call gives: the output, gradients, and the output of its pieces."""
    out = subject(call)
    found = {"the output": out.detach()}
    if subject.promises.gradients:
        grad_out = subject.normal("S4 grad", *out.shape)
        for name, gradient in judge.gradients(subject, call, grad_out).items():
            found[f"the gradient of {name}"] = gradient
    if subject.layer is not None and subject.promises.state:
        found["the output in pieces"] = subject.pieces(call, (20, 1, 16)).detach()
    return found


def _grad_outs(grad_out: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield gradients as other operations send them: what, a contiguous copy, and the view."""
    for layout in (layouts.TRANSPOSED, layouts.EVERY_SECOND, layouts.OFFSET, layouts.TOKENS_FIRST):
        if grad_out.dim() > 3 or layout is not layouts.TOKENS_FIRST:
            yield layout.name, grad_out, layout.view(grad_out)
    row, number = grad_out[:1, :1], grad_out.flatten()[0]
    for what, each in (("as of a mean", row), ("one number everywhere, as of a sum", number)):
        view = each.expand_as(grad_out)
        yield f"expanded, {what}", view.contiguous(), view


@call_check(
    "S6.grad_out_strides",
    "The gradients are those of a contiguous grad_out, whatever its strides.",
    applies=lambda promises: promises.gradients,
    verdict="R",
)
def grad_out_strides(subject: Subject) -> Measured:
    """Send gradients as a sum, a mean, a transpose and a slice send them."""
    call = subject.draw("S6", length=9)
    drawn = subject.normal("S6 grad", *judge.output_shape(call))
    found, plain = [], judge.gradients(subject, call, drawn)
    for what, compact, view in _grad_outs(drawn):
        # each of a call of its own: what torch compiles takes one backward pass by default
        one = plain if compact is drawn else judge.gradients(subject, call, compact)
        other = judge.gradients(subject, call, view)
        found.append(subject.agree_gradients(call, compact, one, other, f"grad_out {what}"))
    return judge.worst(found)


def _configurations(subject: Subject) -> Iterator[tuple[str, Call]]:
    """Yield calls that a cache with too weak a key takes for one another; the first comes twice."""
    first = subject.draw("S7", length=33)
    yield "L=33", first
    yield "L=17 after 33", subject.draw("S7 short", length=17)
    yield "L=65 after 17", subject.draw("S7 long", length=65)
    yield "other values", subject.draw("S7 other", length=33)
    yield "three samples", subject.draw("S7 batch", batch=3, length=33)
    moved = first.map(
        lambda _, t: t.transpose(1, -1).contiguous().transpose(1, -1) if t.dim() > 2 else t
    )
    yield "other strides", moved
    sizes = Sizes(2, 2, 33, 33)
    for part in ("documents", "dense"):
        if part in subject.promises.masks and part not in subject.promises.needs:
            hidden = mask_part(part, sizes, subject.device)
            yield f"with {part}", first.masked(first.mask & hidden)
    if "window" in subject.promises.masks:
        for size in (5, 3):
            narrow = attnkit.sliding_window(size)
            yield f"window {size}", first.masked(first.mask & narrow)
    yield "L=33 again", first


@mixing_check(
    "S7.call_order",
    "Calls of several lengths, strides, batches and masks, one after the other, each give what "
    "they give alone.",
    tier="standard",
    verdict="R",
)
def call_order(subject: Subject) -> Measured:
    """Compare with the definition, or with a layer that was made for one call."""
    found, outs = [], []
    for what, call in _configurations(subject):
        out = subject(call).detach()
        limit = subject.bound(call, probes=4)
        if subject.is_defined:
            found.append(judge.near(limit, out, what))
        else:
            found.append(judge.agree(limit, subject_of(subject.target)(call).detach(), out, what))
        outs.append(out)
    if subject.promises.deterministic:
        judge.same_bits(outs[0], outs[-1], "the first call, made again after all others")
    return judge.worst(found)


@call_check(
    "S9.index_width",
    "Views whose elements lie further apart than 2**31 give what compact copies of them give.",
    tier="full",
    verdict="R",
)
def index_width(subject: Subject) -> Measured:
    """Put the second sample of every input 2**31 elements behind the first."""
    call = subject.draw("S9", length=17)
    names = [name for name, tensor in call.tensors.items() if tensor.dim() >= 3]
    room = sum(call.tensors[name][0].numel() for name in names)
    try:
        # most of it is never touched, so it takes addresses, not memory
        far = torch.empty(BEYOND_INT32 + room, dtype=subject.dtype, device=subject.device)
    except RuntimeError as error:
        bytes_ = (BEYOND_INT32 + room) * subject.dtype.itemsize
        raise SkippedEnvError(f"no room for {bytes_ / 2**30:.0f} GiB of addresses") from error
    views, offset = {}, 0
    for name in names:
        tensor = call.tensors[name]
        strides = (BEYOND_INT32, *tensor[0].contiguous().stride())
        view = far.as_strided(tensor.shape, strides, offset)
        views[name] = view.copy_(tensor)
        offset += tensor[0].numel()
    out = subject(call.given(**views))
    return judge.agree(subject.bound(call), subject(call), out, "samples 2**31 elements apart")
