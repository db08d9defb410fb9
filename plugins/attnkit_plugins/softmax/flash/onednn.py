"""Softmax attention through torch's fused kernels, their float32 products made by oneDNN.

Half inputs are widened first: torch's half kernels run at float32 speed on a CPU, and round more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.kernels.onednn import fast
from attnkit_plugins.softmax.flash import sdpa

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
        O(L S) time, O(L + S) extra memory.
    """
    assert bias is None
    assert softcap is None
    assert sinks is None
    assert dropout_p == 0.0

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return sdpa.attend(
            query.float(),
            key.float(),
            value.float(),
            mask=mask,
            bias=None,
            scale=scale,
            softcap=None,
            sinks=None,
            dropout_p=0.0,
        )

    return fast(fused, query, key, value).to(query.dtype)
