"""State-space duality: within a chunk a masked matrix product, between chunks a recurrence.

With c_i the sum of g from the start of the chunk to token i, itself included,

    o_i = sum_{j <= i} exp(c_i - c_j) (q_i . k_j) v_j + exp(c_i) S^T q_i
    S'  = exp(c_last) S + sum_j exp(c_last - c_j) k_j v_j^T

for the tokens of a chunk that begins with state S. Every exponent is <= 0, so nothing overflows.
q . k and the products with the state are done once for all heads of a group. Further letters:
R heads per group, N chunks, C tokens per chunk.

Source: Dao & Gu 2024, https://arxiv.org/abs/2405.21060, section 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attnkit.kernels.onednn import fast

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_plugins.recurrence.state_space import StateSpaceOptions

# chunks that are computed together; more of them fall out of the cache of a CPU
CHUNKS = 8


def scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    log_decay: Tensor | None,
    beta: Tensor | None,
    scale: float,
    initial_state: Tensor,
    options: StateSpaceOptions,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; see `attnkit.interface.RecurrenceFunction`.

    Note:
        O(L) time and memory. Sums run in the state's dtype.
    """
    assert beta is None
    assert log_decay is not None
    wide, groups = initial_state.dtype, query.shape[1]
    state = torch.unflatten(initial_state, 1, (groups, -1))  # (B, G, R, E, Ev)
    spans, chunk = spans_of(value.shape[2], options.chunk_size)
    parts = zip(
        # split, not slices: the gradient of each slice would be as long as the whole
        query.split_with_sizes(spans, 2),
        key.split_with_sizes(spans, 2),
        torch.unflatten(value, 1, (groups, -1)).split_with_sizes(spans, 3),
        torch.unflatten(log_decay, 1, (groups, -1)).split_with_sizes(spans, 3),
        strict=True,
    )
    outs = []
    for q, k, v, g in parts:
        size = min(chunk, q.shape[2])
        out, state = fast(
            _span,
            torch.unflatten(q.to(wide) * scale, 2, (-1, size)),  # (B, G, N, C, E)
            torch.unflatten(k.to(wide), 2, (-1, size)),
            torch.unflatten(v.to(wide), 3, (-1, size)),  # (B, G, R, N, C, Ev)
            torch.unflatten(g.to(wide), 3, (-1, size)),  # (B, G, R, N, C)
            state,
        )
        outs.append(out.to(value.dtype))
    return torch.cat(outs, 3).flatten(1, 2), state.flatten(1, 2)


def spans_of(length: int, chunk_size: int) -> tuple[list[int], int]:
    """Cut L tokens into spans of whole chunks and a rest; return them and the chunk size."""
    chunk = min(chunk_size, length)
    whole, rest = length // chunk, length % chunk  # torch.compile has no divmod of sizes
    most = CHUNKS * chunk
    spans = [most] * (whole // CHUNKS) + [whole % CHUNKS * chunk, rest]
    return [span for span in spans if span], chunk


def _span(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs (B, G, R, N C, Ev) of N chunks and the state after them."""
    heads, width = value.shape[2], value.shape[-1]
    # torch leaves apply untyped
    decays: Tensor = Decays.apply(log_decay)  # type: ignore[no-untyped-call]
    upto = log_decay.cumsum(-1).exp()  # (B, G, R, N, C)
    scores = query @ key.mT  # (B, G, N, C, C)
    inside = (decays * scores[:, :, None]) @ value  # (B, G, R, N, C, Ev)

    # the last row holds what each token keeps until the end of the chunk
    carried = value * decays[..., -1, :, None]
    added = key.mT @ carried.movedim(2, -2).flatten(-2)  # (B, G, N, E, R Ev)
    added = torch.unflatten(added, -1, (heads, width))
    before, state = _states(added, upto[..., -1:], state)
    outside = query @ before.flatten(-2)  # (B, G, N, C, R Ev)
    outside = torch.unflatten(outside, -1, (heads, width)).movedim(-2, 2) * upto[..., None]
    return (inside + outside).flatten(3, 4), state


def _states(added: Tensor, decays: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Carry the state from chunk to chunk.

    Args:
        added: (B, G, N, E, R, Ev), what each chunk adds.
        decays: (B, G, R, N, 1), of each chunk.
        state: (B, G, R, E, Ev).

    Returns:
        The states before each chunk, (B, G, N, E, R, Ev), and the one after all.
    """
    state = state.movedim(2, 3)  # (B, G, E, R, Ev)
    factors = decays[:, :, None].unbind(4)  # (B, G, 1, R, 1) each
    before = []
    for factor, new in zip(factors, added.unbind(2), strict=True):
        before.append(state)
        state = torch.addcmul(new, state, factor)
    return torch.stack(before, 2), state.movedim(3, 2)


class Decays(torch.autograd.Function):
    """exp of the sum of g over tokens j + 1 to i where j <= i, else 0: (..., C) to (..., C, C).

    A function of its own so that autograd keeps one such matrix, not three.
    """

    @staticmethod
    def forward(ctx: Any, log_decay: Tensor) -> Tensor:
        """Sum up each pair's own terms."""
        # the difference of two running sums would lose digits after a strong decay
        size = log_decay.shape[-1]
        sums = log_decay[..., :, None].expand(*log_decay.shape, size).tril(-1).cumsum_(-2)
        decays = sums.exp_().tril_()
        ctx.save_for_backward(decays)
        return decays

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """g_m is in the sums of all pairs with j < m <= i."""
        (decays,) = ctx.saved_tensors
        change = (grads[0] * decays).tril(-1)
        # entries of rows i >= m, less those of them with j >= m
        grad: Tensor = (change.sum(-1) - change.sum(-2)).flip(-1).cumsum(-1).flip(-1)
        return grad
