"""A: identities that hold without any reference. They catch what a wrong oracle would hide."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.catalogue import (
    BrokenError,
    InconclusiveError,
    Measured,
    call_check,
    operation_check,
    softmax_check,
)
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.operations import Operation
    from attnkit_contracts.subjects.softmax import SoftmaxOperation
    from attnkit_contracts.subjects.subject import Subject


@call_check(
    "A1.batch_independence",
    "Other values in sample b' leave the output of sample b as it is, to the bit, and "
    "F(x_b alone) = F(x)_b.",
)
def batch_independence(subject: Subject) -> Measured:
    """Disturb three of five samples, one at a time, and call each alone.

    That needs no mask per sample.
    """
    count = 5
    call = subject.draw("A1", batch=count, length=33)
    whole = subject(call)
    limit = subject.bound(call)
    found = []
    for sample in (0, 2, 4):
        where = torch.zeros(count, 33, dtype=torch.bool, device=subject.device)
        where[sample] = True
        moved = subject(subject.disturbed(call, where, "A1 other"))
        judge.must_differ(whole[sample], moved[sample], f"disturbing sample {sample}")
        others = torch.tensor([b for b in range(count) if b != sample], device=subject.device)
        what = f"samples other than {sample}, disturbed"
        subject.unmoved(call, (others,), (whole, moved), what, limit=limit)
        if call.mask.per_batch:
            continue
        alone = subject(call.samples(torch.tensor([sample], device=subject.device)))
        at = judge.part(limit, (slice(sample, sample + 1),))
        found.append(judge.agree(at, whole[sample : sample + 1], alone, f"sample {sample} alone"))
    return judge.worst(found) if found else judge.exactly(0, "moved elements")


GROUPINGS = ((6, 6), (6, 3), (6, 2), (6, 1))
"""H and Hkv: one, two, three and all query heads per key/value head."""


@operation_check(
    "A2.head_map",
    "Output head h depends on key/value head h // (H // Hkv) and on no other, to the bit.",
    applies=lambda promises: promises.gqa,
)
def head_map(subject: Operation) -> Measured:
    """Disturb one key/value head (or group) at a time and see which output heads move."""
    for heads, shared in GROUPINGS:
        call = subject.draw_shared("A2", length=17, heads=heads, shared=shared)
        whole = subject(call)
        for name in subject.shared:
            for head in range(shared):
                moved = subject(_one_head(subject, call, name, head))
                moves = (whole != moved).flatten(2).any(-1)[0]  # (H,)
                wanted = torch.arange(heads, device=moves.device) // (heads // shared) == head
                if not torch.equal(moves, wanted):
                    raise BrokenError(
                        f"H={heads}, Hkv={shared}: {name} head {head} must move output heads "
                        f"{_listed(wanted)}, moves {_listed(moves)}"
                    )
    return judge.exactly(0, "wrong heads")


def _one_head(subject: Subject, call: Call, name: str, head: int) -> Call:
    tensor = call.tensors[name].clone()
    fresh = subject.numbers(name, tuple(tensor[:, head].shape), subject.random("A2 other"))
    tensor[:, head] = subject.cast(fresh)
    return call.given(**{name: tensor})


def _listed(flags: Tensor) -> str:
    return ", ".join(str(int(i)) for i in flags.nonzero()[:, 0]) or "none"


@softmax_check(
    "A3.temperature",
    "With S1 keys at logit ca and value 1, S2 keys at logit 0 and value 0: "
    "o = S1 e^(ca) / (S1 e^(ca) + S2), for the default scale c = E^-0.5 and every other.",
    verdict="R",
)
def temperature(subject: SoftmaxOperation) -> Measured:
    """Sweep the scale; the rows compared see all keys."""
    keys, first, width = 11, 4, 16
    found = []
    scales = (None, 0.5, 2.0, 0.125) if subject.promises.scale else (None,)
    for scale in scales:
        mask = subject.mask(Sizes(1, subject.heads, keys, keys), wide=ALL_MASK_PARTS)
        call = subject.draw("A3", batch=1, length=keys, width=width, mask=mask)
        query, key, value = (torch.zeros_like(call.tensors[n]) for n in ("query", "key", "value"))
        # q.k = a = 2, spread over two channels: half of the width would show, too
        query[..., 0], query[..., width - 1] = 1.0, 1.0
        key[..., :first, 0], key[..., :first, width - 1] = 1.0, 1.0
        value[..., :first, :] = 1.0
        call = call.given(query=query, key=key, value=value)
        call = call if scale is None else call.saying(scale=scale)
        c = width**-0.5 if scale is None else scale
        mass = first * math.exp(2 * c)
        got, wanted = subject(call)[:, :, -1], mass / (mass + keys - first)
        found.append(judge.relative_error(subject.dtype, got, wanted, 64, f"scale={scale}"))
    return judge.worst(found)


@softmax_check(
    "A4.row_sums",
    "With value = 1 everywhere, every row that sees a key is 1.",
    verdict="R",
)
def row_sums(subject: SoftmaxOperation) -> Measured:
    """Attend to ones, over tails of blocks."""
    found = []
    for length in (1, 17, 64, 130):
        call = subject.draw("A4", batch=1, length=length, width=8)
        call = call.given(value=torch.ones_like(call.tensors["value"]))
        sizes = Sizes(1, subject.heads, length, length)
        sees = call.mask.to_bool(sizes, torch.device(subject.device)).expand(*sizes).any(-1)
        if not sees.any():
            raise InconclusiveError("no row sees a key")
        rows = subject(call)[sees]
        found.append(judge.relative_error(subject.dtype, rows, 1.0, 8 + length, f"L=S={length}"))
    return judge.worst(found)


@operation_check(
    "A5.linear_in_value",
    "F(q, k, 2v - w/2) = 2 F(q, k, v) - F(q, k, w) / 2.",
    relations=("exact", "approximate"),
    verdict="R",
)
def linear_in_value(subject: Subject) -> Measured:
    """Compare with the sum of two calls; powers of two add no rounding of their own."""
    call = subject.draw("A5")
    if subject.dtype in (torch.bfloat16, torch.float16):
        # the sum of two inputs must be an input: keep few digits
        call = call.given(value=(call.tensors["value"] * 4).round() / 4)
    v = call.tensors["value"]
    w = v.flip(2)
    mixed = call.given(value=2 * v - w / 2)
    one, other = subject(call).double(), subject(call.given(value=w)).double()
    limit = subject.bound(call.given(value=2 * v.abs() + w.abs() / 2))
    return judge.agree(limit, subject(mixed), 2 * one - other / 2)
