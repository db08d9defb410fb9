"""M, continued: padding and packing are ways to call, and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import attnkit
from attnkit.masks.constructors import Sizes
from attnkit_contracts.catalogue import Measured, mixing_check
from attnkit_contracts.inputs.calls import TIME_AXIS, Call
from attnkit_contracts.judging.outputs import agree, part, worst

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from attnkit.masks.constructors import Mask
    from attnkit_contracts.subjects.subject import Subject

REAL = 20
"""Real tokens of every sample."""


def _on_blocks(subject: Subject) -> bool:
    """Return whether a plain mask has blocks, so that tokens may only move by whole patterns."""
    return subject.layer is not None and "blocks" in subject.needs


def _paddings(subject: Subject) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield how many tokens of padding each of three samples has before and behind its own."""
    yield (0, 0, 0), (1, 1, 1)
    yield (0, 0, 0), (31, 31, 31)
    if _on_blocks(subject):
        yield (16, 16, 16), (0, 0, 0)
        yield (0, 32, 16), (32, 0, 16)
        return
    yield (1, 1, 1), (0, 0, 0)
    yield (32, 32, 32), (0, 0, 0)
    yield (0, 33, 2), (33, 0, 31)


@mixing_check(
    "M10.padded",
    "Real tokens give what they give without padding, however much of it there is before them or "
    "behind them.",
    applies=lambda promises: "padding" in promises.masks,
    verdict="R",
)
def padded(subject: Subject) -> Measured:
    """Pad three samples alike and otherwise; the padding is three times as large as the rest."""
    alone = subject.draw("M10", batch=3, length=REAL)
    sizes, found = Sizes(3, 2, REAL, REAL), []
    for way, mask in subject.plain_masks(sizes).items():
        plain = alone.masked(mask)
        limit, wanted = subject.bound(plain, probes=4), subject(plain)
        for before, behind in _paddings(subject):
            total = before[0] + REAL + behind[0]
            wide = subject.plain_masks(Sizes(3, 2, total, total))[way]
            call = _pad(subject, plain, before, total)
            hidden = _padding(subject, before, behind, total)
            out = subject(call.masked(wide & hidden))
            rows = [out[b, ..., at : at + REAL, :] for b, at in enumerate(before)]
            where = f"{way} padding of {before} before and {behind} behind".strip()
            found.append(agree(limit, wanted, torch.stack(rows), where))
    return worst(found)


def _padding(
    subject: Subject, before: tuple[int, ...], behind: tuple[int, ...], total: int
) -> Mask:
    mask = attnkit.full()
    if any(before):
        mask &= attnkit.left_padding(torch.tensor(before, device=subject.device))
    if any(behind):
        ends = [total - count for count in behind]
        mask &= attnkit.padding(torch.tensor(ends, device=subject.device))
    return mask


def _pad(subject: Subject, call: Call, before: tuple[int, ...], total: int) -> Call:
    """Return the call with each sample's tokens put behind ``before`` tokens of padding."""

    def widen(name: str, tensor: Tensor) -> Tensor:
        if name not in TIME_AXIS:
            return tensor
        axis = TIME_AXIS[name]
        shape = (*tensor.shape[:axis], total, *tensor.shape[axis + 1 :])
        filled = subject.numbers(name, shape, subject.random(f"M10 {name}"))
        filled = subject.cast(filled * (3 if name in ("x", "query", "value") else 1))
        for sample, start in enumerate(before):
            filled[sample].narrow(axis - 1, start, REAL).copy_(tensor[sample])
        return filled

    return call.map(widen)


@mixing_check(
    "M11.packed",
    "A document gives what it gives alone, wherever it lies among others.",
    applies=lambda promises: "documents" in promises.masks,
    verdict="R",
)
def packed(subject: Subject) -> Measured:
    """Pack documents of 1, 17 and 30 tokens, in another order in the second sample."""
    lengths = (16, 32, 1) if _on_blocks(subject) else (1, 17, 30)
    orders = (lengths, lengths if _on_blocks(subject) else lengths[::-1])
    total, found = sum(lengths), []
    ids = [torch.arange(3).repeat_interleave(torch.tensor(order)) for order in orders]
    documents = attnkit.documents(torch.stack(ids).to(subject.device))
    call = subject.draw("M11", length=total)
    for way, mask in subject.plain_masks(Sizes(2, 2, total, total)).items():
        joined = call.masked(mask & documents)
        limit, out = subject.bound(joined, probes=4), subject(joined)
        for sample, order in enumerate(orders):
            start = 0
            for length in order:
                at = (slice(sample, sample + 1), ..., slice(start, start + length), slice(None))
                single = call.samples(torch.tensor([sample], device=subject.device))
                own = subject.plain_masks(Sizes(1, 2, length, length))[way]
                alone = subject(single.tokens(start, start + length).masked(own))
                where = f"{way} {length} tokens from {start}, sample {sample}".strip()
                found.append(agree(part(limit, at), out[at], alone, where))
                start += length
    return worst(found)
