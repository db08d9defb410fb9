"""Gated linear attention in place of a layer's attention function.

    o_t = scale * sum_{j <= t} exp(g_{j+1} + ... + g_t) (1 - exp(g_j)) (q_t . k_j) v_j

The factor 1 - exp(g), as in Qin et al. 2024 (https://arxiv.org/abs/2404.07904, eq. 6), makes the
weights of a row those of a running mean, so that outputs keep the size of values; there is no
norm and no output gate, for which a layer of softmax attention has no weights.

New parameters, in place of those: the decays. They start as exp(g) = 1 - r_h for every token, r_h
from 1/32 for the first head to 1/512 for the last in equal ratios (Sun et al. 2023,
https://arxiv.org/abs/2307.08621, section 3.1, as in their code), and depend on the layer's input
once trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from attnkit.hosts.parts import Inputs
from attnkit.sites import Site
from attnkit_plugins.recurrence.gated_linear import GatedLinearOptions, GatedLinearSiteOptions

FASTEST, SLOWEST = 1 / 32, 1 / 512
"""What a state loses per token at the start, in the first and the last head."""


class GatedLinearSite(nn.Module):
    """The decays of the heads of a layer.

    Attributes:
        decay_proj: Linear, from (D) or (gate_rank) to (H) or (H E), weight 0; None if fixed.
        decay_down: Linear, (D) to (gate_rank), for decays per channel; else None.
    """

    def __init__(
        self,
        site: Site,
        options: GatedLinearSiteOptions,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.options = GatedLinearOptions(chunk_size=options.chunk_size)
        heads, width = site.needs.heads or 1, site.input_dim or 1
        self.heads, self.by_channel = heads, options.decay == "channel"
        self.decay_down: nn.Linear | None = None
        self.decay_proj: nn.Linear | None = None
        if options.decay == "fixed":
            return
        channels = (site.needs.head_dim or 1) if self.by_channel else 1
        if self.by_channel:
            rank = options.gate_rank
            self.decay_down = nn.Linear(width, rank, bias=False, device=device, dtype=dtype)
            width = rank
        self.decay_proj = nn.Linear(width, heads * channels, device=device, dtype=dtype)
        keeps = 1 - losses(heads, device)  # (H,)
        with torch.no_grad():
            self.decay_proj.weight.zero_()
            self.decay_proj.bias.copy_(torch.logit(keeps).repeat_interleave(channels))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, x: Tensor, *, scale: float
    ) -> Inputs:
        """See `attnkit.hosts.parts.Module`."""
        log_decay = self.log_decay(x)
        new = -torch.expm1(log_decay)
        if self.by_channel:
            key = (key * new).to(key.dtype)
        else:
            value = (value * new[..., None]).to(value.dtype)
        return Inputs(query, key, value, log_decay, scale, self.options)

    def log_decay(self, x: Tensor) -> Tensor:
        """Return g of tokens x, (B, L, D): (B, H, L), or (B, H, L, E) by channel."""
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.decay_proj is None:
            fixed = torch.log1p(-losses(self.heads, x.device).to(wide))  # (H,)
            return fixed[:, None].expand(x.shape[0], self.heads, x.shape[1])
        inner = x if self.decay_down is None else self.decay_down(x)
        gates = logsigmoid(self.decay_proj(inner).to(wide))  # (B, L, H) or (B, L, H E)
        if self.by_channel:
            return torch.unflatten(gates, -1, (self.heads, -1)).transpose(1, 2)
        return gates.transpose(1, 2)


def losses(heads: int, device: torch.device) -> Tensor:
    """Return r_h, (H,), float64."""
    ends = math.log(FASTEST), math.log(SLOWEST)
    return torch.linspace(*ends, heads, device=device, dtype=torch.float64).exp()
