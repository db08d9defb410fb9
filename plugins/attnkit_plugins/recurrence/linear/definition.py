"""The layer of linear attention in float64; see `attnkit.interface.LayerDefinition`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnkit.layers.definition import Weights, heads_of, project, side_by_side, visible

if TYPE_CHECKING:
    from attnkit.masks import Mask
    from attnkit_plugins.recurrence.linear import LinearConfig


def linear(weights: Weights, x: Tensor, *, config: LinearConfig, mask: Mask) -> Tensor:
    """Compute y = W_out o, o_i = sum_j a_ij v_j / max(sum_j a_ij, eps).

    a_ij = phi(q_i) . phi(k_j)
    """
    shared = config.num_heads // config.kv_heads
    query = heads_of(project(weights, "q_proj", x), config.num_heads)  # (B, H, L, E)
    key = heads_of(project(weights, "k_proj", x), config.kv_heads).repeat_interleave(shared, 1)
    value = heads_of(project(weights, "v_proj", x), config.kv_heads).repeat_interleave(shared, 1)
    if config.feature_map == "elu1":
        # elu(x) + 1, of negative x without its rounding to 1
        query, key = (torch.where(p > 0, p + 1, p.clamp(max=0).exp()) for p in (query, key))
    else:
        query, key = query.clamp(min=0), key.clamp(min=0)
    share = torch.einsum("bhle,bhse->bhls", query, key) * visible(mask, x)[:, None]
    total = share.sum(-1, keepdim=True).clamp(min=config.eps)  # (B, H, L, 1)
    out = torch.einsum("bhls,bhsv->bhlv", share, value) / total
    return project(weights, "out_proj", side_by_side(out))
