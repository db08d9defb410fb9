"""Multi-head attention by torch's ``scaled_dot_product_attention``.

The kernel is left to torch. Its causal flag is aligned to the upper left, so it is used only
where L = S; every other mask goes in as a tensor. A row that sees nothing is zero in torch too.
"""

from __future__ import annotations

from operator import index

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnkit.masks import Mask, Sizes


# spelt out: a dict of keywords would cost a small call half a microsecond
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """Attend; see `attnkit.interface.SoftmaxFunction`.

    Note:
        O(L S) time; O(L S) memory with a mask or a bias.
    """
    assert softcap is None
    assert sinks is None
    dtype = query.dtype
    batch, heads, length, width = query.shape
    _, kv_heads, keys, _ = key.shape
    if bias is not None:
        # torch would round the bias to a half dtype before adding it
        wide = torch.promote_types(query.dtype, torch.float32)
        query, key, value = (x.to(wide) for x in (query, key, value))
    square_causal = mask.is_causal and not mask.parts and length == keys and bias is None
    if square_causal and scale < 0:
        # torch scales what it has hidden already: -inf times -1 would be seen, and be NaN
        query, scale = -query, -scale
    given = None if bias is None else bias.to(query.dtype)
    if mask.parts or (mask.is_causal and length > 1 and not square_causal):
        given = _as_tensor(mask, bias, Sizes(batch, heads, length, keys), query)
    # in a graph with symbols for sizes, torch takes no symbol for this
    shared = index(heads) != index(kv_heads)
    # heads that share keys can stand in line as further queries, where all see the same: in
    # bfloat16 with 1024 keys 10 times faster than enable_gqa
    folded = shared and length == 1 and (given is None or given.shape[1] == 1)
    if folded:
        query = query.reshape(batch, kv_heads, -1, width)  # (B, Hkv, H / Hkv, E)
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=given,
        dropout_p=dropout_p,
        is_causal=square_causal and not folded,
        scale=scale,
        enable_gqa=shared and not folded,
    )
    if folded:
        out = out.reshape(batch, heads, 1, value.shape[3])
    return out if bias is None else out.to(dtype)


def _as_tensor(mask: Mask, bias: Tensor | None, sizes: Sizes, query: Tensor) -> Tensor:
    """Return mask and bias as one tensor, broadcastable to (B, H, L, S)."""
    if bias is None and sizes.queries == 1 and mask.memory is not None:
        # what torch makes of a bool tensor, made once for many layers
        return mask.to_additive(sizes, query.device, query.dtype)
    seen = mask.to_bool(sizes, query.device)
    if bias is None:
        return seen
    hidden = torch.full((), float("-inf"), dtype=query.dtype, device=query.device)
    return torch.where(seen, bias.to(query.dtype), hidden)
