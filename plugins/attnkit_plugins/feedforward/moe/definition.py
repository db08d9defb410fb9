"""The mixture of experts in float64; see `attnkit.interface.LayerDefinition`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnkit.layers.definition import Weights, project, unpadded

if TYPE_CHECKING:
    from attnkit.masks import Mask
    from attnkit_plugins.feedforward.moe import MoEConfig


def moe(weights: Weights, x: Tensor, *, config: MoEConfig, mask: Mask) -> Tensor:
    """Compute y = sum_k p_k down_k (silu(gate_k x) * up_k x) over the k most probable experts.

    Without a capacity: which tokens are dropped is for the suite's own checks of routing.
    """
    probable = project(weights, "router", x).softmax(-1)  # (B, L, E)
    least = probable.topk(config.top_k).values[..., -1:]
    share = torch.where(probable >= least, probable, 0.0)
    if config.renormalise:
        share = share / share.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for expert in range(config.num_experts):
        gate, up = (x @ weights["gate_up_proj"][expert].mT).chunk(2, -1)  # (B, L, F) each
        answer = (gate * gate.sigmoid() * up) @ weights["down_proj"][expert].mT
        y = y + share[..., expert, None] * answer
    return torch.where(unpadded(mask, x)[..., None], y, 0.0)
