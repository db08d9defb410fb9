"""Multi-head attention in plain torch: all logits at once, in at least float32.

Query heads that share a key/value head stand in line as further queries of one product, so that
no key is repeated; for one query this is the fastest form there is on a CPU.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from attnkit.interface import SoftmaxRules
from attnkit.masks import Mask, Sizes


def attend(query: Tensor, key: Tensor, value: Tensor, **rules: Unpack[SoftmaxRules]) -> Tensor:
    """Attend; see `attnkit.interface.SoftmaxFunction`.

    Note:
        O(L S) time and memory.
    """
    mask, bias, softcap = rules["mask"], rules["bias"], rules["softcap"]
    batch, heads, length, width = query.shape
    groups, keys = key.shape[1:3]
    wide = torch.promote_types(query.dtype, torch.float32)
    folded = (query.to(wide) * rules["scale"]).reshape(batch, groups, -1, width)  # (B, Hkv, G L, E)
    logits = (folded @ key.to(wide).mT).view(batch, heads, length, keys)  # (B, H, L, S)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias.to(wide)
    weights = _softmax(logits, mask, bias, rules["sinks"])
    if rules["dropout_p"] > 0.0:
        weights = torch.nn.functional.dropout(weights, rules["dropout_p"])
    # (B, Hkv, G L, Ev)
    out = weights.reshape(batch, groups, -1, keys) @ value.to(wide)
    return out.view(batch, heads, length, value.shape[3]).to(query.dtype)


def _softmax(logits: Tensor, mask: Mask, bias: Tensor | None, sinks: Tensor | None) -> Tensor:
    """Return the weights (B, H, L, S), zero where the mask, or a bias of -inf, hides a key."""
    batch, heads, length, keys = logits.shape
    seen = None
    # one query stands at the last key: causal hides nothing from it
    if mask.parts or (mask.is_causal and length > 1):
        seen = mask.to_bool(Sizes(batch, heads, length, keys), logits.device)
        logits = logits.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        sink = sinks.to(logits.dtype)[:, None, None].expand(batch, heads, length, 1)
        return torch.cat((logits, sink), -1).softmax(-1)[..., :-1]  # (B, H, L, S)
    if bias is not None:
        shown = bias != float("-inf")
        seen = shown if seen is None else seen & shown
    if seen is None:
        return logits.softmax(-1)
    # of a row that sees nothing softmax makes NaN, in the gradient too
    empty = ~seen.any(-1, keepdim=True)  # (B or 1, H or 1, L, 1)
    return logits.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
