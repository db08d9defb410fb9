"""A state-space layer's recurrence in place of a layer's attention function.

    h_t = exp(dt_t A) h_{t-1} + dt_t v_t k_t^T,    o_t = scale * h_t q_t + D v_t

q stands for C, k for B and v for x, as in Wang et al. 2024 (https://arxiv.org/abs/2408.15237,
section 2.1); there is no convolution and no gated norm, for which a layer of softmax attention
has no weights.

New parameters: dt = softplus(W x + dt_bias) with W = 0 and dt_bias such that dt is 0.1 for the
first head to 0.001 for the last, in equal ratios (Mamba-2 draws it from that range); A_log = 0,
that is A = -1; D = 0, as the model's residual connection carries the token itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from attnkit.hosts.parts import Inputs
from attnkit.sites import Site
from attnkit_plugins.recurrence.state_space import StateSpaceOptions, StateSpaceSiteOptions

LONGEST, SHORTEST = 0.1, 0.001
"""dt of the first and the last head at the start."""


class StateSpaceSite(nn.Module):
    """What a state-space layer has beside q, k and v.

    Attributes:
        dt_weight: (H, D).
        dt_bias: (H,), added before the softplus.
        A_log: (H,), natural logarithm of -A.
        D: (H,), what of v goes around the recurrence.
    """

    def __init__(
        self,
        site: Site,
        options: StateSpaceSiteOptions,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.options = StateSpaceOptions(chunk_size=options.chunk_size)
        heads, width = site.needs.heads or 1, site.input_dim or 1

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, device=device, dtype=dtype))

        self.dt_weight = zeros(heads, width)
        self.A_log = zeros(heads)
        self.D = zeros(heads)
        ends = math.log(LONGEST), math.log(SHORTEST)
        dt = torch.linspace(*ends, heads, device=device, dtype=torch.float64).exp()
        # the inverse of softplus
        self.dt_bias = nn.Parameter((dt + torch.log(-torch.expm1(-dt))).to(dtype))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, x: Tensor, *, scale: float
    ) -> Inputs:
        """See `attnkit.hosts.parts.Module`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        raw = linear(x, self.dt_weight).to(wide) + self.dt_bias.to(wide)  # (B, L, H)
        dt = softplus(raw).transpose(1, 2)  # (B, H, L)
        log_decay = -self.A_log.to(wide).exp()[:, None] * dt
        fed = (value * dt[..., None]).to(value.dtype)
        around = (value * self.D.to(wide)[:, None, None]).to(value.dtype)
        return Inputs(query, key, fed, log_decay, scale, self.options, around)
