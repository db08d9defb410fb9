"""GPT-Neo: logits are not scaled, and every second layer has a window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_neo import modeling_gpt_neo

from attnkit_plugins.hosts.transformers.dispatch import check_keywords
from attnkit_plugins.hosts.transformers.masks import added
from attnkit_plugins.hosts.transformers.rewrites.eager import wide_eager_attention_forward


class GPTNeoSelfAttention(modeling_gpt_neo.GPTNeoSelfAttention):  # type: ignore[misc]  # transformers is untyped
    """See `transformers.models.gpt_neo.modeling_gpt_neo.GPTNeoSelfAttention`."""

    scaling = 1.0

    @property
    def sliding_window(self) -> int | None:
        """Keys that a query sees at most, self included."""
        return self.config.window_size if self.attention_type == "local" else None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **rest: Any,
    ) -> Any:
        """(B, L, D) -> (B, L, D)."""
        check_keywords(type(self).__name__, {"output_attentions": output_attentions})
        return super().forward(hidden_states, attention_mask, layer_past)

    def _attn(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        length, keys = query.shape[2], key.shape[2]
        seen = self.bias[:, :, keys - length : keys, :keys]  # (1, 1, L, S), causal and the window
        given = added(attention_mask)
        if given is not None:
            seen = torch.where(seen, given, torch.finfo(given.dtype).min)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, wide_eager_attention_forward
        )
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            seen,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            dropout=self.attn_dropout.p if self.training else 0.0,
        )
        return mixed.transpose(1, 2), weights
