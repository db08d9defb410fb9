"""Multi-head attention by torch's ``scaled_dot_product_attention``.

The kernel is left to torch. Its causal flag is aligned to the upper left, so it is used only
where L = S; every other mask goes in as a tensor. A row that sees nothing is zero in torch too.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from attnkit.masks import Sizes

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.masks import Mask


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
    batch, heads, length, _ = query.shape
    # in a graph with symbols for sizes, torch takes no symbol for this
    shared = index(heads) != index(key.shape[1])
    sizes = Sizes(batch, heads, length, key.shape[2])
    if bias is not None:
        # torch would round the bias to a half dtype before adding it
        wide = torch.promote_types(query.dtype, torch.float32)
        query, key, value = (x.to(wide) for x in (query, key, value))
    square_causal = mask.is_causal and not mask.parts and length == sizes.keys and bias is None
    if square_causal and scale < 0:
        # torch scales what it has hidden already: -inf times -1 would be seen, and be NaN
        query, scale = -query, -scale
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if square_causal else _as_tensor(mask, bias, sizes, query),
        dropout_p=dropout_p,
        is_causal=square_causal,
        scale=scale,
        enable_gqa=shared,
    )
    return out if bias is None else out.to(dtype)


def _as_tensor(mask: Mask, bias: Tensor | None, sizes: Sizes, query: Tensor) -> Tensor | None:
    """Return mask and bias as one tensor, broadcastable to (B, H, L, S)."""
    one_query = sizes.queries == 1 and sizes.keys >= 1
    if not mask.parts and (not mask.is_causal or one_query):
        return None if bias is None else bias.to(query.dtype)
    seen = mask.to_bool(sizes, query.device)
    if bias is None:
        return seen
    hidden = torch.full((), float("-inf"), dtype=query.dtype, device=query.device)
    return torch.where(seen, bias.to(query.dtype), hidden)
