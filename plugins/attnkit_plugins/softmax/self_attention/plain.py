"""Self-attention in five lines of torch."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from attnkit.interface import SoftmaxRules
from attnkit.masks import Mask, Sizes


def attend(query: Tensor, key: Tensor, value: Tensor, **rules: Unpack[SoftmaxRules]) -> Tensor:
    """Attend; see `attnkit.interface.SoftmaxFunction`. Takes one head and no option."""
    assert rules["bias"] is None
    assert rules["softcap"] is None
    assert rules["sinks"] is None
    assert rules["dropout_p"] == 0.0
    weights = weigh(query, key, rules["mask"], rules["scale"])
    return (weights @ value.to(_wide(value))).to(query.dtype)


def weigh(query: Tensor, key: Tensor, mask: Mask, scale: float) -> Tensor:
    """Return the weights, (B, 1, L, S), in at least float32; a row that sees nothing is zero."""
    batch, heads, length, _ = query.shape
    seen = mask.to_bool(Sizes(batch, heads, length, key.shape[2]), query.device)
    logits = scale * (query.to(_wide(query)) @ key.to(_wide(key)).mT)  # (B, 1, L, S)
    empty = ~seen.any(-1, keepdim=True)
    # an empty row is uniform first: softmax would make it NaN, in the gradient too
    weights = logits.masked_fill(~seen, float("-inf")).masked_fill(empty, 0.0).softmax(-1)
    return weights.masked_fill(empty, 0.0)


def _wide(x: Tensor) -> torch.dtype:
    # half sums lose the small weights
    return torch.promote_types(x.dtype, torch.float32)
