"""Softmax attention through torch's fused kernels, where they are exactly right.

torch falls back to a kernel that materialises L x S for some arguments, and aligns its causal
mask to the upper left; `refuses` keeps such calls away. Kernels are left to torch's choice:
naming one (``sdpa_kernel``) costs more than a small call.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING

from torch.nn.functional import scaled_dot_product_attention

from attnkit.masks import Mask, Sizes

if TYPE_CHECKING:
    from torch import Tensor


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
        O(L S) time, O(L + S) extra memory.
    """
    assert bias is None
    assert softcap is None
    assert sinks is None
    batch, heads, queries, width = query.shape
    # fused kernels read rows of adjacent numbers; torch would leave them for the slow one
    if not query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        query, key, value = (
            x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)
        )
    # one query stands at the last key: causal hides nothing
    is_causal = mask.is_causal and queries > 1
    if is_causal:
        if scale < 0:
            # torch scales what it has hidden already: -inf times -1 would be seen, and be NaN
            query, scale = -query, -scale
        # in a graph with symbols for sizes, torch takes no symbol for this
        shared = index(heads) != index(key.shape[1])
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=shared
        )
    seen = None
    if mask.parts:
        # the same keys for every query: (B, 1, 1, S)
        sizes = Sizes(batch, 1, 1, key.shape[2])
        if mask.memory is None:
            seen = mask.to_bool(sizes, query.device)
        else:
            # what torch makes of a bool tensor, made once for many layers
            seen = mask.to_additive(sizes, query.device, query.dtype)
    # all queries see the same keys, so heads that share keys can stand in line as further
    # queries: in bfloat16 8 times faster than enable_gqa for one query
    folded = query.reshape(batch, key.shape[1], -1, width)  # (B, Hkv, G L, E)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=seen, scale=scale)
    return out.reshape(batch, heads, queries, width)
