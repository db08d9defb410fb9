"""The definition, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnkit.masks.constructors import Sizes

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.masks.constructors import Mask


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Mask, scale: float, **_: Any
) -> Tensor:
    """Attend; see `attnkit.interface.SoftmaxFunction`."""
    batch, heads, queries = query.shape[:3]
    sizes = Sizes(batch, heads, queries, key.shape[2])
    seen = mask.to_bool(sizes, query.device)
    logits = scale * query.double() @ key.double().mT  # (B, H, L, S)
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    return (weights @ value.double()).to(query.dtype)
