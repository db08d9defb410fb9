"""What rewritten layers run where nothing is swapped in: their arithmetic, in the usual form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

_SETTINGS: dict[str, Any] = {"attn_implementation": "eager"}
EAGER: Any = PreTrainedConfig(**_SETTINGS)
"""The config of layers that hold none: they know one implementation."""


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    position_bias: Tensor | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, Tensor]:
    """Return (B, L, H, Ev), and the probabilities, (B, H, L, S); ``rest`` means nothing here.

    The mask, bool or added, and the bias, added to the scaled products, broadcast to (B, H, L, S).
    """
    logits = query @ key.mT * scaling
    if position_bias is not None:
        logits = logits + position_bias
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
    elif attention_mask is not None:
        logits = logits + attention_mask
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = functional.softmax(logits, dim=-1, dtype=wide).to(value.dtype)
    weights = functional.dropout(weights, p=dropout)
    return (weights @ value).transpose(1, 2), weights


def wide_eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **keywords: Any,
) -> tuple[Tensor, Tensor]:
    """Attend, with logits in at least float32."""
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(wide), key.to(wide)
    return eager_attention_forward(module, query, key, value, attention_mask, **keywords)
