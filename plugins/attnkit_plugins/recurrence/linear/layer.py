"""Linear attention as a layer: four projections around `attnkit.recurrence`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from attnkit.layers import Past, RecurrentLayer, split_heads
from attnkit_plugins.recurrence.linear import LinearOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from attnkit.interface import Variant
    from attnkit_plugins.recurrence.linear import LinearConfig


class LinearLayer(RecurrentLayer):
    """Causal linear attention of x to itself.

    Attributes:
        q_proj: Linear, (D) to (H E).
        k_proj: Linear, (D) to (Hkv E).
        v_proj: Linear, (D) to (Hkv Ev).
        out_proj: Linear, (H Ev) to (D).
    """

    config: LinearConfig

    def __init__(
        self,
        config: LinearConfig,
        *,
        variant: Variant,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = LinearOptions(
            feature_map=config.feature_map, eps=config.eps, chunk_size=config.chunk_size
        )
        state = options.state_shape(config.key_width, config.value_width)
        super().__init__(config, options, variant=variant, memory_shape=(config.num_heads, *state))

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(
                inputs, outputs, bias=config.projection_bias, device=device, dtype=dtype
            )

        self.q_proj = linear(config.embed_dim, config.num_heads * config.key_width)
        self.k_proj = linear(config.embed_dim, config.kv_heads * config.key_width)
        self.v_proj = linear(config.embed_dim, config.kv_heads * config.value_width)
        self.out_proj = linear(config.num_heads * config.value_width, config.embed_dim)

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
