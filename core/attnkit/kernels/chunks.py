"""A recurrence chunk by chunk: matrix products within a chunk, a recurrence between chunks.

With c_i the sum of g from the start of the chunk to token i, itself included,

    o_i = sum_{j <= i} exp(c_i - c_j) (q_i . k_j) v_j + exp(c_i) S^T q_i
    S'  = exp(c_last) S + sum_j exp(c_last - c_j) k_j v_j^T

for the tokens of a chunk that begins with state S. Every exponent is <= 0, so nothing overflows.

`scan` cuts the tokens into chunks and hands a few of them at a time to a function that knows the
decays, the span. `by_head` is the one for one decay per head; an implementation is then

    scan = functools.partial(attnkit.kernels.chunks.scan, span=by_head)

For a span of your own there are `pair_decays` and `carry`. Further letters: R heads per group,
N chunks, C tokens per chunk.

Source: Dao & Gu 2024, https://arxiv.org/abs/2405.21060, section 6; Yang et al. 2023,
https://arxiv.org/abs/2312.06635, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from attnkit.kernels.onednn import fast

if TYPE_CHECKING:
    from attnkit.interface import RecurrenceRules

    Span = Callable[..., tuple[Tensor, Tensor]]

# chunks that are computed together; more of them fall out of the cache of a CPU
CHUNKS = 8


def scan(
    query: Tensor, key: Tensor, value: Tensor, *, span: Span, **rules: Unpack[RecurrenceRules]
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; with a span given, an `attnkit.interface.RecurrenceFunction`.

    Args:
        query: As all others, see there.
        key: Likewise.
        value: Likewise.
        rules: Likewise; ``beta`` is None, and the options have a ``chunk_size``.
        span: Runs N chunks, all in the dtype of the state: takes query (B, G, N, C, E), scaled,
            key (B, G, N, C, E), value (B, G, R, N, C, Ev), the state before the first chunk
            (B, G, R, E, Ev), and if there is one log_decay, (B, G, R, N, C) or
            (B, G, R, N, C, E); returns the outputs, shaped as value, and the state after the
            last chunk.

    Note:
        O(L) time and memory. Sums run in the state's dtype.
    """
    assert rules["beta"] is None
    log_decay, initial_state = rules["log_decay"], rules["initial_state"]
    wide, groups = initial_state.dtype, query.shape[1]
    state = torch.unflatten(initial_state, 1, (groups, -1))  # (B, G, R, E, Ev)
    spans, chunk = _cut(value.shape[2], rules["options"].chunk_size)
    # split, not slices: the gradient of each slice would be as long as the whole
    by_head = [
        torch.unflatten(each, 1, (groups, -1)).split_with_sizes(spans, 3)
        for each in (value, log_decay)
        if each is not None
    ]
    parts = zip(
        query.split_with_sizes(spans, 2), key.split_with_sizes(spans, 2), *by_head, strict=True
    )
    outs = []
    for q, k, *by_head_too in parts:
        size = (-1, min(chunk, q.shape[2]))
        # (B, G, R, N, C, Ev), and (B, G, R, N, C) or (B, G, R, N, C, E) if there is a decay
        v, *g = (torch.unflatten(each.to(wide), 3, size) for each in by_head_too)
        out, state = fast(
            span,
            torch.unflatten(q.to(wide) * rules["scale"], 2, size),  # (B, G, N, C, E)
            torch.unflatten(k.to(wide), 2, size),
            v,
            state,
            *g,
        )
        outs.append(out.flatten(3, 4).to(value.dtype))
    return torch.cat(outs, 3).flatten(1, 2), state.flatten(1, 2)


def by_head(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """Run N chunks with one decay per head; a span of `scan`.

    Decays are a factor of each score q . k. The scores and the products with the state are done
    once for all heads of a group.
    """
    decays = pair_decays(log_decay)  # (B, G, R, N, C, C)
    upto = log_decay.cumsum(-1).exp()  # (B, G, R, N, C)
    scores = query @ key.mT  # (B, G, N, C, C)
    inside = (decays * scores[:, :, None]) @ value  # (B, G, R, N, C, Ev)

    # the last row holds what each token keeps until the end of the chunk
    added = key.mT @ side_by_side(value * decays[..., -1, :, None])  # (B, G, N, E, R Ev)
    added = torch.unflatten(added, -1, (value.shape[2], -1))
    factors = upto[:, :, None, :, :, -1:].unbind(4)  # (B, G, 1, R, 1) each
    before, state = carry(state.movedim(2, 3), added.unbind(2), factors)
    memory = torch.stack(before, 2).flatten(-2)  # (B, G, N, E, R Ev)
    outside = apart(query @ memory, value.shape[2])  # (B, G, R, N, C, Ev)
    return inside + outside * upto[..., None], state.movedim(3, 2)


def carry(
    state: Tensor, added: Sequence[Tensor], factors: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], Tensor]:
    """Carry a state, of any shape, from chunk to chunk.

    Args:
        state: Before the first chunk.
        added: What each chunk adds, shaped as ``state``.
        factors: What each chunk leaves of the state before it, broadcastable; None for all of it.

    Returns:
        The states before each chunk, and the one after all.
    """
    before = []
    for number, new in enumerate(added):
        before.append(state)
        state = state + new if factors is None else torch.addcmul(new, state, factors[number])
    return before, state


def side_by_side(value: Tensor) -> Tensor:
    """Lay the heads of a group side by side: (B, G, R, ..., Ev) to (B, G, ..., R Ev)."""
    return value.movedim(2, -2).flatten(-2)


def apart(value: Tensor, heads: int) -> Tensor:
    """Undo `side_by_side` of R heads."""
    return torch.unflatten(value, -1, (heads, -1)).movedim(-2, 2)


def pair_decays(log_decay: Tensor) -> Tensor:
    """Return exp of the sum of g over tokens j + 1 to i where j <= i, else 0.

    Args:
        log_decay: (..., C).

    Returns:
        (..., C, C), row i, column j.
    """
    # torch leaves apply untyped
    decays: Tensor = _PairDecays.apply(log_decay)  # type: ignore[no-untyped-call]
    return decays


class _PairDecays(torch.autograd.Function):
    """A function of its own so that autograd keeps one such matrix, not three."""

    @staticmethod
    def forward(ctx: Any, log_decay: Tensor) -> Tensor:
        # the difference of two running sums would lose digits after a strong decay
        size = log_decay.shape[-1]
        sums = log_decay[..., :, None].expand(*log_decay.shape, size).tril(-1).cumsum_(-2)
        decays = sums.exp_().tril_()
        ctx.save_for_backward(decays)
        return decays

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # g_m is in the sums of all pairs with j < m <= i
        (decays,) = ctx.saved_tensors
        change = (grads[0] * decays).tril(-1)
        # entries of rows i >= m, less those of them with j >= m
        grad: Tensor = (change.sum(-1) - change.sum(-2)).flip(-1).cumsum(-1).flip(-1)
        return grad


def _cut(length: int, chunk_size: int) -> tuple[list[int], int]:
    """Cut L tokens into spans of whole chunks and a rest; return them and the chunk size."""
    chunk = min(chunk_size, length)
    whole, rest = length // chunk, length % chunk  # torch.compile has no divmod of sizes
    most = CHUNKS * chunk
    spans = [most] * (whole // CHUNKS) + [whole % CHUNKS * chunk, rest]
    return [span for span in spans if span], chunk
