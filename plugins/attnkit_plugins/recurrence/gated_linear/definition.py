"""The layer of gated linear attention in float64; see `attnkit.interface.LayerDefinition`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnkit.layers.definition import (
    Weights,
    heads_of,
    project,
    side_by_side,
    unpadded,
    visible,
)

if TYPE_CHECKING:
    from attnkit.masks import Mask
    from attnkit_plugins.recurrence.gated_linear import GatedLinearConfig


def gated_linear(weights: Weights, x: Tensor, *, config: GatedLinearConfig, mask: Mask) -> Tensor:
    """Compute y = W_out (rms_norm(o) * silu(W_gate x)), each head normed by itself.

    o_i = scale sum_{j <= i} (q_i * exp(g_{j+1} + ... + g_i)) . k_j v_j
    """
    shared = config.num_heads // config.groups
    query, key = (
        heads_of(project(weights, name, x), config.groups).repeat_interleave(shared, 1)
        for name in ("q_proj", "k_proj")
    )  # (B, H, L, E)
    value = heads_of(project(weights, "v_proj", x), config.num_heads)  # (B, H, L, Ev)
    real = unpadded(mask, x)[:, None, :, None]  # nothing decays over padding
    summed = torch.where(real, log_decay(weights, x, config), 0.0).cumsum(2)  # (B, H, L, E or 1)
    apart = summed[:, :, :, None] - summed[:, :, None]  # (B, H, L, S, E or 1)
    seen = visible(mask, x)[:, None, :, :, None]
    decay = torch.where(seen, apart, float("-inf")).exp()
    scale = config.key_width**-0.5 if config.scale is None else config.scale
    share = scale * (query[:, :, :, None] * decay * key[:, :, None]).sum(-1)  # (B, H, L, S)
    out = torch.einsum("bhls,bhsv->bhlv", share, value)
    size = (out.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()  # (B, H, L, 1)
    normed = side_by_side(out / size * weights["norm_weight"])
    gate = project(weights, "gate_proj", x)  # (B, L, H Ev)
    return project(weights, "out_proj", normed * gate * gate.sigmoid())


def log_decay(weights: Weights, x: Tensor, config: GatedLinearConfig) -> Tensor:
    """Return g, (B, H, L, E), or (B, H, L, 1) for one decay a head."""
    if config.decay == "fixed":
        power = torch.arange(5, 5 + config.num_heads, device=x.device)  # (H,)
        fixed = torch.log(1 - 2.0 ** -power.double())
        return fixed[:, None, None].expand(len(x), -1, x.shape[1], 1)
    if config.decay == "channel":
        logits = project(weights, "decay_proj.1", project(weights, "decay_proj.0", x))
    else:
        logits = project(weights, "decay_proj", x)
    decay = -torch.nn.functional.softplus(-logits, threshold=700) / config.gate_temperature
    return heads_of(decay, config.num_heads)
