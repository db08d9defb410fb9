"""DeBERTa, versions 2 and 3: what contents and relative positions say to each other is added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deberta_v2 import modeling_deberta_v2

from attnkit_plugins.hosts.transformers.rewrites.eager import EAGER, eager_attention_forward

if TYPE_CHECKING:
    from torch import Tensor


class DisentangledSelfAttention(modeling_deberta_v2.DisentangledSelfAttention):  # type: ignore[misc]  # transformers is untyped
    """See `transformers.models.deberta_v2.modeling_deberta_v2.DisentangledSelfAttention`."""

    config = EAGER
    is_causal = False

    @property
    def scaling(self) -> float:
        """What multiplies the products of queries and keys: three of them are added up."""
        terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        return float((self.attention_head_size * terms) ** -0.5)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) -> (B, L, D)."""
        heads = self.num_attention_heads
        asking = hidden_states if query_states is None else query_states
        given: Any = ((self.query_proj, asking), (self.key_proj, hidden_states))
        query, key = (self.transpose_for_scores(project(x), heads) for project, x in given)
        value = self.transpose_for_scores(self.value_proj(hidden_states), heads)  # (B H, S, Ev)
        position_bias = None
        if self.relative_attention:
            terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
            embedded = self.pos_dropout(rel_embeddings)
            told: Any = self.disentangled_attention_bias(query, key, relative_pos, embedded, terms)
            position_bias = told.unflatten(0, (-1, heads))  # (B, H, L, S)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attend(
            self,
            *(each.unflatten(0, (-1, heads)) for each in (query, key, value)),
            attention_mask.bool(),
            scaling=self.scaling,
            position_bias=position_bias,
            dropout=self.dropout.p if self.training else 0.0,
            output_attentions=output_attentions,
        )
        return mixed.flatten(2), weights
