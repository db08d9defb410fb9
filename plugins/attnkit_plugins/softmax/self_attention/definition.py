"""The single-head layer in float64; see `attnkit.interface.LayerDefinition`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnkit.layers.definition import Weights, project
from attnkit.masks import Mask, Sizes

if TYPE_CHECKING:
    from attnkit_plugins.softmax.self_attention import SelfAttentionConfig


def self_attention(
    weights: Weights, x: Tensor, *, config: SelfAttentionConfig, mask: Mask
) -> Tensor:
    """Compute y = W_out softmax(q k^T / sqrt(E)) v."""
    batch, length, _ = x.shape
    query, key, value = (project(weights, f"{name}_proj", x) for name in "qkv")  # (B, L, E) each
    logits = torch.einsum("ble,bse->bls", query, key) * query.shape[-1] ** -0.5
    seen = mask.to_bool(Sizes(batch, 1, length, length), x.device)[:, 0].expand(batch, -1, -1)
    seen = seen.tril() if config.is_causal else seen
    blind = ~seen.any(-1, keepdim=True)  # sees no token, gives 0
    logits = torch.where(seen | blind, logits, float("-inf"))
    share = torch.where(blind, 0.0, logits.softmax(-1))
    return project(weights, "out_proj", torch.einsum("bls,bse->ble", share, value))
