"""The block-sparse layer: softmax attention, and the pattern of its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnkit.layers import SoftmaxLayer
from attnkit.masks import Mask, blocks

if TYPE_CHECKING:
    from attnkit_plugins.softmax.block_sparse import BlockSparseConfig


class BlockSparseLayer(SoftmaxLayer):
    """Attention of x to itself, in the blocks that the configured pattern and the mask allow."""

    config: BlockSparseConfig

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        size, local = self.config.block_size, self.config.local_blocks
        if size is not None and local is not None:
            count = -(-key.shape[2] // size)
            block = torch.arange(count, device=key.device)
            near = (block[:, None] - block).abs() < local  # (N, N)
            mask = mask & blocks(near | (block < self.config.global_blocks), size)
        return super()._attend(query, key, value, mask)
