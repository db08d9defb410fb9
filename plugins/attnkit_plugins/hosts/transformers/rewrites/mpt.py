"""MPT: ALiBi is added to the logits; its mask says what is hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mpt import modeling_mpt

from attnkit_plugins.hosts.transformers.rewrites.eager import EAGER, eager_attention_forward

if TYPE_CHECKING:
    from torch import Tensor


class MptAttention(modeling_mpt.MptAttention):  # type: ignore[misc]  # transformers is untyped
    """See `transformers.models.mpt.modeling_mpt.MptAttention`."""

    config = EAGER
    is_causal = True

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Tensor | None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        **rest: Any,
    ) -> tuple[Any, Any]:
        """(B, L, D) -> (B, L, D); ``position_bias`` is (H, 1, longest sequence)."""
        batch, length, _ = hidden_states.shape
        fused = self.Wqkv(hidden_states)
        if self.clip_qkv:
            fused = fused.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        shape = (batch, length, self.n_heads, self.head_dim)
        query, key, value = (each.view(shape).transpose(1, 2) for each in fused.chunk(3, dim=2))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if position_bias is not None:
            position_bias = position_bias[None, :, :, -key.shape[2] :]  # (1, H, 1, S)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            None if attention_mask is None else ~attention_mask,
            scaling=self.softmax_scale,
            position_bias=position_bias,
            dropout=self.attn_dropout_p if self.training else 0.0,
        )
        return self.out_proj(mixed.reshape(batch, length, -1)), weights
