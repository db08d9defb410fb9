"""The block-sparse layer in float64; see `attnkit.interface.LayerDefinition`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnkit.layers.definition import Weights, softmax
from attnkit.masks import Mask, dense

if TYPE_CHECKING:
    from attnkit_plugins.softmax.block_sparse import BlockSparseConfig


def block_sparse(
    weights: Weights,
    x: Tensor,
    *,
    config: BlockSparseConfig,
    mask: Mask,
    context: Tensor | None = None,
) -> Tensor:
    """Softmax attention where block(i) is near block(j), or j is in a global block."""
    size, local = config.block_size, config.local_blocks
    if size is not None and local is not None:
        block = torch.arange(x.shape[1], device=x.device) // size
        near = (block[:, None] - block).abs() < local  # (L, L)
        mask = mask & dense(near | (block < config.global_blocks))
    return softmax(weights, x, config=config, mask=mask, context=context)
