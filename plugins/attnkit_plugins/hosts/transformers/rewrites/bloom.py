"""Bloom: ALiBi, the head's slope times the key's position, is added to the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bloom import modeling_bloom

from attnkit_plugins.hosts.transformers.masks import added
from attnkit_plugins.hosts.transformers.rewrites.eager import EAGER, eager_attention_forward

if TYPE_CHECKING:
    from torch import Tensor


class BloomAttention(modeling_bloom.BloomAttention):  # type: ignore[misc]  # transformers is untyped
    """See `transformers.models.bloom.modeling_bloom.BloomAttention`."""

    config = EAGER
    is_causal = True

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        alibi: Tensor,
        attention_mask: Tensor | None,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **rest: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) -> (B, L, D); ``alibi`` is (B H, 1, S)."""
        batch, length, _ = hidden_states.shape
        query, key, value = self._reshape(self.query_key_value(hidden_states))  # (B, H, L, E)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        position_bias = alibi.view(batch, self.num_heads, 1, -1)  # (B, H, 1, S)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            added(attention_mask),
            scaling=self.inv_norm_factor,
            position_bias=position_bias,
            dropout=self.attention_dropout.p if self.training else 0.0,
            output_attentions=output_attentions,
        )
        out = self.dense(mixed.reshape(batch, length, -1))
        out = modeling_bloom.dropout_add(out, residual, self.hidden_dropout, self.training)
        return out, weights
