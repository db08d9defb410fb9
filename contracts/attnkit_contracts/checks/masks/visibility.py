"""M: who may look at what. Structure is tested exactly, never with a tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.catalogue import (
    BrokenError,
    InconclusiveError,
    Measured,
    call_check,
    layer_check,
    softmax_check,
)
from attnkit_contracts.inputs import cuts
from attnkit_contracts.inputs.calls import PLACED, mask_part, showing_weights
from attnkit_contracts.judging.outputs import exactly, must_differ

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from attnkit.masks.constructors import Mask
    from attnkit.promises import MaskPart, Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.softmax import SoftmaxOperation
    from attnkit_contracts.subjects.subject import Subject

CUTS = range(3, 200, 7)
"""Where a suffix begins: 7 has no divisor in common with 8 or 16, so that a leak anywhere within
a block shows in some block; cuts at the edges of blocks alone would hide it."""


@call_check(
    "M1.suffix_perturbation",
    "For every p: other finite values at tokens >= p leave the outputs before p as they are, "
    "to the bit.",
    applies=lambda promises: promises.causal,
)
def suffix_perturbation(subject: Subject) -> Measured:
    """Disturb another suffix of every sample, and compare the outputs before it."""
    length = 200  # no multiple of 16 or 64, and more than three blocks of 64
    call = subject.draw("M1", batch=1, length=length)
    if call.mask.per_batch:
        call = subject.draw("M1", batch=len(CUTS), length=length)
    else:
        call = call.samples(torch.zeros(len(CUTS), dtype=torch.int64, device=subject.device))
    call = subject.causal(call)
    cuts = torch.tensor(CUTS, device=subject.device)[:, None]
    later = torch.arange(length, device=subject.device) >= cuts  # (B, L)
    what = "outputs before a token, disturbed from there on"
    disturbed = subject.disturbed(call, later, "M1 other")
    return _unmoved(subject, (call, disturbed), later, what)


def _unmoved(subject: Subject, calls: tuple[Call, Call], where: Tensor, what: str) -> Measured:
    """Compare two calls that differ at tokens, (B, L): outputs there move, no other does.

    Not in every sample: other maths may give the one token of a document no weight.
    """
    whole, moved = map(subject, calls)
    inside = beside(where, whole)
    must_differ(whole[inside], moved[inside], "disturbing tokens")
    subject.unmoved(calls[0], (~inside,), (whole, moved), what)
    return exactly(0, "moved elements")


def beside(tokens: Tensor, out: Tensor) -> Tensor:
    """Return flags of tokens, (B, L), as flags of outputs (B, L, D) or (B, H, L, Ev)."""
    return tokens if out.dim() == 3 else tokens[:, None].expand(out.shape[:3])


def shapes(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield the masks to try: plain ones, and each promised part on top."""
    for way in ways(promises):
        yield {"mask": way}
        for part in promises.masks:
            if part not in promises.needs:
                yield {"mask": f"{way}+{part}"}


def named_mask(subject: SoftmaxOperation, name: str, sizes: Sizes) -> Mask:
    """Return the mask that `shapes` names."""
    way, *parts = name.split("+")
    mask = subject.mask(sizes, causal=way == "causal")
    for part in ALL_MASK_PARTS:
        mask = mask & subject.part(part, sizes) if part in parts else mask
    return mask


def telling_call(subject: SoftmaxOperation, sizes: Sizes) -> Call:
    """Return a call whose output is its weights."""
    batch, heads, queries, keys = sizes
    call = subject.draw(
        "support", batch=batch, heads=heads, length=queries, keys=keys, width=keys, value_width=0
    )
    # logits within a few units: no visible weight underflows in float16
    return showing_weights(call.given(query=call.tensors["query"] / 2))


def visible(subject: SoftmaxOperation, call: Call, mask: Mask) -> Tensor:
    """Return which keys reach which outputs of a `telling_call`, (B, H, L, S)."""
    return subject(call.masked(mask)) != 0


def expect_visible(found: Tensor, wanted: Tensor, what: str) -> None:
    """Raise `BrokenError` at the first query that reads a key it must not, or misses one."""
    wanted = wanted.broadcast_to(found.shape)
    wrong = found != wanted
    if wrong.any():
        b, h, i, j = (int(index) for index in wrong.nonzero()[0])
        does, must = ("reads", "must not") if found[b, h, i, j] else ("does not read", "must")
        raise BrokenError(
            f"{what}: query {i} of head {h}, sample {b} {does} key {j}, but {must}; "
            f"{int(wrong.sum())} of {wrong.numel()} pairs are wrong",
            value=float(wrong.sum()),
        )


@softmax_check(
    "M3.support",
    "{j : the output of query i depends on value j} = A(i), both ways, forward and backward.",
    cases=shapes,
)
def support(subject: SoftmaxOperation, mask: str) -> Measured:
    """Compare what outputs and gradients reach with the declared mask."""
    sizes = Sizes(2, subject.heads, 70, 70)
    shown = named_mask(subject, mask, sizes)
    declared = shown.to_bool(sizes, torch.device(subject.device))
    if declared.all():
        ways = "mask hides nothing"
        if "+" in mask:
            raise InconclusiveError(f"the {ways}, so the check proves nothing")
    told = telling_call(subject, sizes)
    expect_visible(visible(subject, told, shown), declared, "forward")
    if subject.promises.gradients:
        _expect_gradients(subject, sizes, mask)
    return exactly(0, "wrong pairs")


def _expect_gradients(subject: SoftmaxOperation, sizes: Sizes, name: str) -> None:
    """Send a gradient into one query of each sample; keys it does not see must get exactly none."""
    _, heads, queries, keys = sizes
    rows = torch.tensor([0, queries // 2 + 1, queries - 1], device=subject.device)
    sizes = Sizes(len(rows), heads, queries, keys)
    mask = named_mask(subject, name, sizes)
    declared = mask.to_bool(sizes, rows.device).expand(*sizes)
    samples = torch.arange(len(rows), device=rows.device)
    call = subject.draw("M3 grad", batch=len(rows), length=queries, keys=keys, mask=mask).leaves()
    with torch.enable_grad():
        out = subject(call)
    one = torch.zeros_like(out)
    one[samples, :, rows] = 1.0
    leaves = [call.tensors[name] for name in ("value", "key")]
    in_value, in_key = torch.autograd.grad(out, leaves, one)
    seen = declared[samples, :, rows]  # (B, H, S)
    what = f"gradient of queries {', '.join(map(str, rows.tolist()))}, one of each sample"
    expect_visible((in_value != 0).any(-1)[:, :, None], seen[:, :, None], what)
    if (in_key != 0).any(-1)[~seen].any():
        raise BrokenError(f"backward: {what} reaches a key that the query does not see")


@softmax_check(
    "M4.window",
    "With window W, query i reads exactly {j : p - W < j <= p} (also p < j < p + W where later "
    "keys are visible), p = i + S - L.",
    applies=lambda promises: "window" in promises.masks,
)
def window(subject: SoftmaxOperation) -> Measured:
    """Compare with the formula for windows around block edges, at L = S and L < S."""
    keys = 70
    for queries in (keys, 9) if subject.promises.cross else (keys,):
        sizes = Sizes(1, subject.heads, queries, keys)
        told = telling_call(subject, sizes)
        for size in (1, 2, 63, 64, 65, keys, keys + 5):
            for causal in (way == "causal" for way in ways(subject.promises)):
                others = subject.mask(sizes, causal=causal, wide=ALL_MASK_PARTS)
                mask = others & attnkit.sliding_window(size)
                p = torch.arange(queries, device=subject.device)[:, None] + keys - queries
                j = torch.arange(keys, device=subject.device)
                wanted = (p - j < size) & ((j <= p) if causal else (j - p < size))
                what = f"window_size={size}, L={queries}, S={keys}, causal={causal}"
                expect_visible(visible(subject, told, mask), wanted, what)
    return exactly(0, "wrong pairs")


def ways(promises: Promises) -> list[str]:
    """Return what is promised of later keys."""
    return [way for way in ("causal", "bidirectional") if getattr(promises, way)]


def unequal(promises: Promises) -> Iterator[Mapping[str, int]]:
    """Yield L and S; for more queries than keys, some parts of masks have no meaning."""
    pairs = [(1, 40), (5, 40), (39, 70)] + ([] if promises.needs else [(40, 33)])
    yield from ({"queries": queries, "keys": keys} for queries, keys in pairs)


@softmax_check(
    "M5.alignment",
    "Causal with L != S: query i reads exactly {j : j <= i + S - L}; a single query reads all.",
    applies=lambda promises: promises.causal and promises.cross,
    cases=unequal,
)
def alignment(subject: SoftmaxOperation, queries: int, keys: int) -> Measured:
    """Compare with the formula for fewer and for more queries than keys."""
    sizes = Sizes(1, subject.heads, queries, keys)
    mask = subject.mask(sizes, causal=True, wide=ALL_MASK_PARTS)
    i = torch.arange(queries, device=subject.device)[:, None]
    wanted = torch.arange(keys, device=subject.device) <= i + keys - queries
    told = telling_call(subject, sizes)
    expect_visible(visible(subject, told, mask), wanted, f"L={queries}, S={keys}")
    return exactly(0, "wrong pairs")


@call_check(
    "M11.documents",
    "Other values in one document leave the outputs of every other document as they are, to the "
    "bit.",
    applies=lambda promises: "documents" in promises.masks,
)
def documents(subject: Subject) -> Measured:
    """Disturb one document of every sample; lengths 1, 64, 65 and 10, and the reverse."""
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 64, 65, 10]))
    ids = torch.stack((ids, ids.flip(0).neg())).repeat_interleave(3, 0)  # (B, L)
    chosen = torch.tensor([0, 1, 2, 0, -1, -2])  # the document of each sample
    where = (ids == chosen[:, None]).to(subject.device)  # (B, L)
    call = subject.draw("M11", batch=len(ids), length=ids.shape[1])
    plain = subject.mask(cuts.sizes_of(call), wide=PLACED)
    call = call.masked(plain & attnkit.documents(ids.to(subject.device)))
    what = "outputs outside of the one document of a sample that is disturbed"
    disturbed = subject.disturbed(call, where, "M11 other")
    return _unmoved(subject, (call, disturbed), where, what)


def _hiding(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield the promised parts of masks that say which token sees which."""
    for part in promises.masks:
        if part != "padding" and part not in promises.needs:
            yield {"part": part}


@layer_check(
    "M13.hidden_tokens",
    "A mixer under a mask: the gradient of output i to every token that the mask hides from i, its "
    "own aside, is exactly 0.",
    families=("mixer",),
    applies=lambda promises: promises.gradients and bool(set(promises.masks) - {"padding"}),
    cases=_hiding,
)
def hidden_tokens(subject: Subject, part: MaskPart) -> Measured:
    """Send a random gradient into one token at a time."""
    length = 40
    call = subject.draw("M13", length=length).leaves()
    sizes = Sizes(2, 1, length, length)
    mask = call.mask & mask_part(part, sizes, subject.device)
    seen = mask if subject.promises.bidirectional else mask & attnkit.causal()
    shown = seen.to_bool(sizes, torch.device(subject.device)).expand(2, 1, -1, -1)[:, 0]
    if shown.all():
        raise InconclusiveError(f"mask {part} hides nothing, so the check proves nothing")
    for i in (0, 13, 26, 39):
        with torch.enable_grad():
            out = subject(call.masked(mask))
        grad_out = torch.zeros_like(out)
        grad_out[:, i] = subject.normal(f"M13 {i}", 2, out.shape[2])
        (found,) = torch.autograd.grad(out, [call.tensors["x"]], grad_out)
        wrong = (found != 0).any(-1) & ~shown[:, i]  # (B, L)
        wrong[:, i] = False
        if wrong.any():
            sample, j = (int(index) for index in wrong.nonzero()[0])
            raise BrokenError(
                f"output {i} of sample {sample} sends a gradient to token {j}, which mask {part} "
                f"hides from it; so do {int(wrong.sum())} pairs"
            )
    return exactly(0, "gradients to hidden tokens")


def masked_calls(subject: SoftmaxOperation) -> Iterator[tuple[str, Call, Tensor]]:
    """Yield calls with rows that see nothing: what, the call, and those rows (B, H, L)."""
    queries = keys = 20
    sizes = Sizes(2, subject.heads, queries, keys)
    promises = subject.promises
    base = subject.mask(sizes)
    if "dense" in promises.masks:
        rows = torch.ones(queries, keys, dtype=torch.bool, device=subject.device)
        rows[[0, 7, 19]] = False
        yield "dense", *_call_with(subject, sizes, base & attnkit.dense(rows))
    if "padding" in promises.masks:
        lengths = torch.tensor([0, keys], device=subject.device)
        yield "padding of length 0", *_call_with(subject, sizes, base & attnkit.padding(lengths))
        counts = torch.tensor([6, 0], device=subject.device)
        yield "left padding", *_call_with(subject, sizes, base & attnkit.left_padding(counts))
    if promises.causal and promises.cross and not promises.needs:
        sizes = Sizes(2, subject.heads, 25, keys)
        yield "causal with L > S", *_call_with(subject, sizes, subject.mask(sizes, causal=True))


def _call_with(subject: SoftmaxOperation, sizes: Sizes, mask: Mask) -> tuple[Call, Tensor]:
    call = subject.draw("masked rows", length=sizes.queries, keys=sizes.keys, mask=mask)
    seen = mask.to_bool(sizes, torch.device(subject.device)).expand(*sizes)
    return call, ~seen.any(-1)
