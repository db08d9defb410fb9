"""Linear attention as a layer: four projections around `attnkit.recurrence`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.layers import New, Past, RecurrentLayer, split_heads
from attnkit_plugins.recurrence.linear import LinearConfig, LinearOptions

if TYPE_CHECKING:
    from torch import Tensor


class LinearLayer(RecurrentLayer[LinearConfig]):
    """Causal linear attention of x to itself.

    Attributes:
        q_proj: Linear, (D) to (H E).
        k_proj: Linear, (D) to (Hkv E).
        v_proj: Linear, (D) to (Hkv Ev).
        out_proj: Linear, (H Ev) to (D).
    """

    def make(self, new: New) -> None:
        """Set the parameters."""
        config = self.config
        self.options = options = LinearOptions(
            feature_map=config.feature_map, eps=config.eps, chunk_size=config.chunk_size
        )
        state = options.state_shape(config.key_width, config.value_width)
        self.memory_shape = (config.num_heads, *state)
        width, bias = config.embed_dim, config.projection_bias
        self.q_proj = new.linear(width, config.num_heads * config.key_width, bias=bias)
        self.k_proj = new.linear(width, config.kv_heads * config.key_width, bias=bias)
        self.v_proj = new.linear(width, config.kv_heads * config.value_width, bias=bias)
        self.out_proj = new.linear(config.num_heads * config.value_width, width, bias=bias)

    def mix(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """Attend to this and earlier tokens; see `attnkit.layers.recurrent.RecurrentLayer`."""
        heads, kv_heads = self.config.num_heads, self.config.kv_heads
        query = split_heads(self.q_proj(x), heads)  # (B, H, L, E)
        key, value = split_heads(self.k_proj(x), kv_heads), split_heads(self.v_proj(x), kv_heads)
        if heads > kv_heads:
            key = key.repeat_interleave(heads // kv_heads, 1)
            value = value.repeat_interleave(heads // kv_heads, 1)
        out, memory = self.recur(past, query, key, value)
        return out.flatten(2), memory, past.state.inputs
