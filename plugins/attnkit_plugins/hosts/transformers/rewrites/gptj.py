"""GPT-J and CodeGen: rotated queries and keys; the arithmetic is in a method of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.codegen import modeling_codegen
from transformers.models.gptj import modeling_gptj

from attnkit_plugins.hosts.transformers.dispatch import check_keywords
from attnkit_plugins.hosts.transformers.masks import added
from attnkit_plugins.hosts.transformers.rewrites.eager import EAGER, wide_eager_attention_forward


class _Rotated(nn.Module):
    """What the two have in common, in front of their own classes."""

    config: Any
    scale_attn: Tensor
    attn_dropout: nn.Dropout

    def forward(
        self,
        hidden_states: Tensor | None,
        layer_past: Any = None,
        attention_mask: Tensor | None = None,
        position_ids: Any = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        **rest: Any,
    ) -> Any:
        """(B, L, D) -> (B, L, D)."""
        check_keywords(type(self).__name__, {"output_attentions": output_attentions})
        return super().forward(hidden_states, layer_past, attention_mask, position_ids)

    def _attn(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, wide_eager_attention_forward
        )
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            added(attention_mask),
            scaling=1 / self.scale_attn,
            dropout=self.attn_dropout.p if self.training else 0.0,
        )
        return mixed.transpose(1, 2), weights


class GPTJAttention(_Rotated, modeling_gptj.GPTJAttention):  # type: ignore[misc]  # transformers is untyped
    """See `transformers.models.gptj.modeling_gptj.GPTJAttention`."""


class CodeGenAttention(_Rotated, modeling_codegen.CodeGenAttention):  # type: ignore[misc]  # transformers is untyped
    """See `transformers.models.codegen.modeling_codegen.CodeGenAttention`."""

    config = EAGER
    is_causal = True
