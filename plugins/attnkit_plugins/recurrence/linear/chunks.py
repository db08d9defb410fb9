"""Chunk by chunk: a masked matrix product within, a running sum between.

    o_i = sum_{j <= i} (q_i . k_j) v_j + S^T q_i,    S' = S + sum_j k_j v_j^T

for the tokens of a chunk that begins with state S. The heads of a group share q . k and lie side
by side in the other products. Letters as in `attnkit.kernels.chunks`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from attnkit.kernels import chunks


def span(query: Tensor, key: Tensor, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run N chunks; see `attnkit.kernels.chunks.scan`."""
    heads = value.shape[2]
    value, state = chunks.side_by_side(value), chunks.side_by_side(state)  # (B, G, N, C, R Ev)
    inside = (query @ key.mT).tril() @ value
    before, state = chunks.carry(state, (key.mT @ value).unbind(2))  # (B, G, E, R Ev) each
    out = inside + query @ torch.stack(before, 2)
    return chunks.apart(out, heads), chunks.apart(state, heads)


scan = functools.partial(chunks.scan, span=span)
