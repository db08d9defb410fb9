"""Chunk by chunk: a masked matrix product within, a running sum between.

    o_i = sum_{j <= i} (q_i . k_j) v_j + S^T q_i,    S' = S + sum_j k_j v_j^T

for the tokens of a chunk that begins with state S. The heads of a group share q . k and lie side
by side in the other products. Further letters: R heads per group, N chunks, C tokens per chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit.kernels.onednn import fast

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_plugins.recurrence.linear import LinearOptions

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
    options: LinearOptions,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; see `attnkit.interface.RecurrenceFunction`.

    Note:
        O(L) time and memory. Sums run in the state's dtype.
    """
    assert log_decay is None
    assert beta is None
    wide, groups, heads = initial_state.dtype, query.shape[1], value.shape[1]
    state = (
        torch.unflatten(initial_state, 1, (groups, -1)).transpose(2, 3).flatten(3)
    )  # (B, G, E, R Ev)
    spans, chunk = spans_of(value.shape[2], options.chunk_size)
    parts = zip(
        # split, not slices: the gradient of each slice would be as long as the whole
        query.split_with_sizes(spans, 2),
        key.split_with_sizes(spans, 2),
        torch.unflatten(value, 1, (groups, -1)).split_with_sizes(spans, 3),
        strict=True,
    )
    outs = []
    for q, k, v in parts:
        size = (-1, min(chunk, q.shape[2]))
        out, state = fast(
            _span,
            torch.unflatten(q.to(wide) * scale, 2, size),  # (B, G, N, C, E)
            torch.unflatten(k.to(wide), 2, size),
            torch.unflatten(v.to(wide).transpose(2, 3).flatten(3), 2, size),  # (B, G, N, C, R Ev)
            state,
        )
        outs.append(out.flatten(2, 3).to(value.dtype))  # (B, G, N C, R Ev)
    joined = torch.unflatten(torch.cat(outs, 2), 3, (heads // groups, -1))  # (B, G, L, R, Ev)
    state = torch.unflatten(state, 3, (heads // groups, -1)).transpose(2, 3)  # (B, G, R, E, Ev)
    return joined.transpose(2, 3).flatten(1, 2), state.flatten(1, 2)


def spans_of(length: int, chunk_size: int) -> tuple[list[int], int]:
    """Cut L tokens into spans of whole chunks and a rest; return them and the chunk size."""
    chunk = min(chunk_size, length)
    whole, rest = length // chunk, length % chunk  # torch.compile has no divmod of sizes
    most = CHUNKS * chunk
    spans = [most] * (whole // CHUNKS) + [whole % CHUNKS * chunk, rest]
    return [span for span in spans if span], chunk


def _span(query: Tensor, key: Tensor, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of N chunks, (B, G, N, C, R Ev), and the state after them."""
    inside = (query @ key.mT).tril() @ value
    before = []
    for added in (key.mT @ value).unbind(2):  # (B, G, E, R Ev) each
        before.append(state)
        state = state + added
    return inside + query @ torch.stack(before, 2), state
