"""Chunk by chunk: a matrix product within, a recurrence between.

With c_i the sum of g from the start of the chunk to token i, itself included,

    o_i = sum_{j <= i} (q_i . exp(c_i - c_j) k_j) v_j + (exp(c_i) q_i)^T S
    S'  = exp(c_last) S + sum_j exp(c_last - c_j) k_j v_j^T

for the tokens of a chunk that begins with state S. Every exponent is <= 0, so nothing overflows.
The two modules beside this one compute it: `head` for one decay per head, `channel` for one per
key channel. Further letters: R heads per group, N chunks, C tokens per chunk.

Source: Yang et al. 2023, https://arxiv.org/abs/2312.06635, section 4.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit.kernels.onednn import fast
from attnkit_plugins.recurrence.gated_linear import channel, head

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_plugins.recurrence.gated_linear import GatedLinearOptions

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
    options: GatedLinearOptions,
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
    span = channel.span if log_decay.dim() == 4 else head.span
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
            span,
            torch.unflatten(q.to(wide) * scale, 2, (-1, size)),  # (B, G, N, C, E)
            torch.unflatten(k.to(wide), 2, (-1, size)),
            torch.unflatten(v.to(wide), 3, (-1, size)),  # (B, G, R, N, C, Ev)
            torch.unflatten(g, 3, (-1, size)),  # (B, G, R, N, C) or (B, G, R, N, C, E)
            state,
        )  # (B, G, R, N, C, Ev)
        outs.append(out.flatten(3, 4).to(value.dtype))
    return torch.cat(outs, 3).flatten(1, 2), state.flatten(1, 2)


def spans_of(length: int, chunk_size: int) -> tuple[list[int], int]:
    """Cut L tokens into spans of whole chunks and a rest; return them and the chunk size."""
    chunk = min(chunk_size, length)
    whole, rest = length // chunk, length % chunk  # torch.compile has no divmod of sizes
    most = CHUNKS * chunk
    spans = [most] * (whole // CHUNKS) + [whole % CHUNKS * chunk, rest]
    return [span for span in spans if span], chunk
