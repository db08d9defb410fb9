"""The Mamba-2 layer in float64; see `attnkit.interface.LayerDefinition`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import softplus

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
    from attnkit_plugins.recurrence.state_space import StateSpaceConfig


def state_space(weights: Weights, x: Tensor, *, config: StateSpaceConfig, mask: Mask) -> Tensor:
    """Compute y = W_out norm((h C + D u) * silu(z)), each of G parts normed by itself.

    h_i = sum_{j <= i} exp(dt_{j+1} A + ... + dt_i A) dt_j u_j B_j^T
    """
    heads, groups = config.num_heads, config.num_groups
    inner, channels = config.inner_width, config.conv_width
    z, u, dt = project(weights, "in_proj", x).tensor_split((inner, inner + channels), -1)
    mixed = convolution(weights, u, config, mask)
    mixed = mixed * mixed.sigmoid()
    u, b, c = mixed.tensor_split((inner, inner + groups * config.state_size), -1)
    u = heads_of(u, heads)  # (B, H, L, Ev)
    b, c = (heads_of(each, groups).repeat_interleave(heads // groups, 1) for each in (b, c))
    dt = softplus(dt + weights["dt_bias"], threshold=700).mT  # (B, H, L)
    rate = -weights["A_log"].exp()[:, None] * dt

    summed = torch.where(unpadded(mask, x)[:, None], rate, 0.0).cumsum(2)  # padding decays nothing
    apart = summed[..., None] - summed[:, :, None]  # (B, H, L, S)
    decay = torch.where(visible(mask, x)[:, None], apart, float("-inf")).exp()
    share = torch.einsum("bhle,bhse->bhls", c, b) * decay * dt[:, :, None]
    out = torch.einsum("bhls,bhsv->bhlv", share, u) + weights["D"][:, None, None] * u
    gated = side_by_side(out) * z * z.sigmoid()  # (B, L, H Ev)
    parts = torch.unflatten(gated, -1, (groups, -1))
    size = (parts.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
    return project(weights, "out_proj", (parts / size).flatten(2) * weights["norm_weight"])


def convolution(weights: Weights, u: Tensor, config: StateSpaceConfig, mask: Mask) -> Tensor:
    """Sum weight[K - 1 - d] u_{t - d} over the d < K last real tokens of a document."""
    # how many real tokens lie between two, (B, L, L)
    number = unpadded(mask, u).cumsum(1)
    back = number[:, :, None] - number[:, None]
    y = torch.zeros_like(u)
    for d in range(config.conv_size):
        taken = (visible(mask, u) & (back == d)).to(u.dtype)
        y = y + weights["conv_weight"][:, config.conv_size - 1 - d] * (taken @ u)
    return y + weights["conv_bias"] if config.conv_bias else y
