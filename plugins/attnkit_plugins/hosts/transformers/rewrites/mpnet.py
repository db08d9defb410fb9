"""MPNet: one bias by relative position, for all layers, is added to the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mpnet import modeling_mpnet

from attnkit_plugins.hosts.transformers.masks import added
from attnkit_plugins.hosts.transformers.rewrites.eager import EAGER, eager_attention_forward

if TYPE_CHECKING:
    from torch import Tensor


class MPNetSelfAttention(modeling_mpnet.MPNetSelfAttention):  # type: ignore[misc]  # transformers is untyped
    """See `transformers.models.mpnet.modeling_mpnet.MPNetSelfAttention`."""

    config = EAGER
    is_causal = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **rest: Any,
    ) -> tuple[Tensor]:
        """(B, L, D) -> (B, L, D); ``position_bias`` is (B, H, L, L)."""
        batch, length, _ = hidden_states.shape
        shape = (batch, length, self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            project(hidden_states).view(shape).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, _ = attend(
            self,
            query,
            key,
            value,
            added(attention_mask),
            scaling=self.attention_head_size**-0.5,
            position_bias=position_bias,
            dropout=self.dropout.p if self.training else 0.0,
            output_attentions=output_attentions,
        )
        return (self.o(mixed.reshape(batch, length, -1)),)
