"""Chunk by chunk: a matrix product within, a recurrence between.

With one decay per head the arithmetic is that of `attnkit.kernels.chunks`; with one per key
channel a decay is no factor of q . k, and `channel` has it.

Source: Yang et al. 2023, https://arxiv.org/abs/2312.06635, section 4.2.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from attnkit.kernels import chunks
from attnkit_plugins.recurrence.gated_linear import channel

if TYPE_CHECKING:
    from torch import Tensor


def span(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """Run N chunks; see `attnkit.kernels.chunks.scan`."""
    run = channel.span if log_decay.dim() == 6 else chunks.by_head
    return run(query, key, value, state, log_decay)


scan = functools.partial(chunks.scan, span=span)
