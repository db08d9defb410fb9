"""The Mamba-2 layer: projections, a short convolution, the recurrence, a gated norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from attnkit.layers import New, Past, RecurrentLayer, split_heads
from attnkit.masks import zero_padding
from attnkit_plugins.recurrence.state_space import StateSpaceConfig, StateSpaceOptions
from attnkit_plugins.recurrence.state_space.convolution import convolve


class StateSpaceLayer(RecurrentLayer[StateSpaceConfig]):
    """A state-space model of each head of x.

        z, u, dt = W_in x;    x', B, C = silu(convolution(u));    y = W_out norm(ssd(x') * silu(z))

    Attributes:
        in_proj: Linear, (D) to z (H Ev), u (H Ev + 2 G E) and dt (H).
        conv_weight: (H Ev + 2 G E, K), the token itself last.
        conv_bias: (H Ev + 2 G E,), or None.
        dt_bias: (H,), added to dt before the softplus.
        A_log: (H,), natural logarithm of -A.
        D: (H,), what of x' goes around the recurrence.
        norm_weight: (H Ev,), of an RMS norm over each of G equal parts.
        out_proj: Linear, (H Ev) to (D).
    """

    def make(self, new: New) -> None:
        """Set the parameters."""
        config = self.config
        inner, channels, heads = config.inner_width, config.conv_width, config.num_heads
        self.options = StateSpaceOptions(chunk_size=config.chunk_size)
        self.memory_shape = (heads, config.state_size, config.value_width)
        self.inputs_shape = (channels, config.conv_size - 1)
        bias = config.projection_bias
        self.in_proj = new.linear(config.embed_dim, inner + channels + heads, bias=bias)
        self.conv_weight = new.empty(channels, config.conv_size)
        self.conv_bias = new.empty(channels) if config.conv_bias else None
        self.dt_bias = new.empty(heads)
        self.A_log = new.empty(heads)
        self.D = new.empty(heads)
        self.norm_weight = new.empty(inner)
        self.out_proj = new.linear(inner, config.embed_dim, bias=bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights as Mamba-2 does: A from -16 to -1, dt from 0.001 to 0.1, log-uniform."""
        self.in_proj.reset_parameters()
        self.out_proj.reset_parameters()
        bound = self.config.conv_size**-0.5
        nn.init.uniform_(self.conv_weight, -bound, bound)
        if self.conv_bias is not None:
            nn.init.uniform_(self.conv_bias, -bound, bound)
        nn.init.uniform_(self.A_log, 1.0, 16.0).log_()
        nn.init.uniform_(self.dt_bias, math.log(0.001), math.log(0.1)).exp_()
        # the inverse of softplus
        self.dt_bias.add_(torch.log(-torch.expm1(-self.dt_bias)))
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm_weight)

    def mix(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """Mix this and earlier tokens; see `attnkit.layers.recurrent.RecurrentLayer`."""
        config = self.config
        widths = (config.inner_width, config.conv_width, config.num_heads)
        z, u, dt = self.in_proj(x).split_with_sizes(widths, -1)
        u = zero_padding(u, past.layout.keep)  # the projection may have a bias
        with torch.autocast(x.device.type, enabled=False):
            mixed, inputs = self._convolve(u, past)
            out, memory = self._scan(mixed, dt, past)
            return self._norm(out, z), memory, inputs

    def _convolve(self, u: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """(B, L, C) -> x', B and C side by side, (B, L, C), and the next past."""
        bias = None if self.conv_bias is None else _wide(self.conv_bias)
        weight = _wide(self.conv_weight)
        before = past.beside(past.state.inputs, u, u.dtype)
        mixed, inputs = convolve(u, before, weight, bias, past.layout)
        return silu(mixed), inputs

    def _scan(self, mixed: Tensor, dt: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Run the recurrence: (B, L, C) and dt (B, L, H) -> (B, L, H Ev) and the memory."""
        config = self.config
        group = config.num_groups * config.state_size
        x, b, c = mixed.split_with_sizes((config.inner_width, group, group), -1)
        dt = softplus(_wide(dt) + _wide(self.dt_bias)).transpose(1, 2)  # (B, H, L)
        x = split_heads(x, config.num_heads)  # (B, H, L, Ev)
        out, memory = self.recur(
            past,
            split_heads(c, config.num_groups),  # (B, G, L, E)
            split_heads(b, config.num_groups),
            x * dt[..., None],
            log_decay=-_wide(self.A_log).exp()[:, None] * dt,
        )
        out = out + _wide(self.D)[:, None] * x.transpose(1, 2)
        return out.flatten(2), memory

    def _norm(self, out: Tensor, z: Tensor) -> Tensor:
        """Gate, then norm each group: (B, L, H Ev) twice -> (B, L, H Ev) in the dtype of z."""
        gated = torch.unflatten(out * silu(_wide(z)), -1, (self.config.num_groups, -1))
        size = torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.config.norm_eps)
        return ((gated * size).flatten(2) * _wide(self.norm_weight)).to(z.dtype)


def _wide(x: Tensor) -> Tensor:
    """Convert to at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
