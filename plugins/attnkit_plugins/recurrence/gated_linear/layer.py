"""Gated linear attention as a layer: projections, decays, a norm and an output gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from attnkit.layers import New, Past, RecurrentLayer, split_heads
from attnkit_plugins.recurrence.gated_linear import GatedLinearConfig, GatedLinearOptions


class GatedLinearLayer(RecurrentLayer[GatedLinearConfig]):
    """y = W_out (rms_norm(o) * silu(W_gate x)), with o from the recurrence, normed per head.

    Attributes:
        q_proj: Linear, (D) to (G E).
        k_proj: Linear, (D) to (G E).
        v_proj: Linear, (D) to (H Ev).
        gate_proj: Linear, (D) to (H Ev).
        out_proj: Linear, (H Ev) to (D).
        decay_proj: From (D): to (H E) through ``gate_rank``, or to (H); None for fixed decays.
        norm_weight: (Ev,).
    """

    def make(self, new: New) -> None:
        """Set the parameters."""
        config = self.config
        width, heads = config.embed_dim, config.num_heads
        self.options = GatedLinearOptions(chunk_size=config.chunk_size)
        self.memory_shape = (heads, config.key_width, config.value_width)
        bias = config.projection_bias
        self.q_proj = new.linear(width, config.groups * config.key_width, bias=bias)
        self.k_proj = new.linear(width, config.groups * config.key_width, bias=bias)
        self.v_proj = new.linear(width, heads * config.value_width, bias=bias)
        self.gate_proj = new.linear(width, heads * config.value_width, bias=bias)
        self.out_proj = new.linear(heads * config.value_width, width, bias=bias)
        self.decay_proj: nn.Module | None = None
        if config.decay == "channel":
            self.decay_proj = nn.Sequential(
                new.linear(width, config.gate_rank, bias=False),
                new.linear(config.gate_rank, heads * config.key_width, bias=True),
            )
        elif config.decay == "head":
            self.decay_proj = new.linear(width, heads, bias=True)
        self.norm_weight = new.filled(1.0, config.value_width)

    def mix(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """Attend to this and earlier tokens; see `attnkit.layers.recurrent.RecurrentLayer`."""
        config = self.config
        out, memory = self.recur(
            past,
            split_heads(self.q_proj(x), config.groups),
            split_heads(self.k_proj(x), config.groups),
            split_heads(self.v_proj(x), config.num_heads),
            log_decay=self.log_decay(x),
            scale=config.key_width**-0.5 if config.scale is None else config.scale,
        )
        return self._normed(out, self.gate_proj(x)), memory, past.state.inputs

    def log_decay(self, x: Tensor) -> Tensor:
        """Return the natural logarithms of the decays of tokens x, (B, L, D).

        Returns:
            (B, H, L, E) for decays per channel, else (B, H, L); in at least float32.
        """
        heads = self.config.num_heads
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.decay_proj is None:
            exponents = torch.arange(-5, -5 - heads, -1, device=x.device, dtype=wide)
            fixed = torch.log1p(-torch.exp2(exponents))  # (H,)
            return fixed[:, None].expand(x.shape[0], heads, x.shape[1])
        gates = logsigmoid(self.decay_proj(x).to(wide)) / self.config.gate_temperature
        return (
            split_heads(gates, heads) if self.config.decay == "channel" else gates.transpose(1, 2)
        )

    def _normed(self, out: Tensor, gate: Tensor) -> Tensor:
        """(B, L, H, Ev) and (B, L, H Ev) -> (B, L, H Ev)."""
        wide = torch.promote_types(out.dtype, torch.float32)
        out, weight = out.to(wide), self.norm_weight.to(wide)
        size = torch.rsqrt(out.square().mean(-1, keepdim=True) + self.config.norm_eps)
        normed = (out * size * weight).flatten(2) * silu(gate.to(wide))
        return normed.to(gate.dtype)
