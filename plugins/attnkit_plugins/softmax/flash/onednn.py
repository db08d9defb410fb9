"""Softmax attention through torch's fused kernels, their float32 products made by oneDNN.

Half inputs are widened first: torch's half kernels run at float32 speed on a CPU, and round more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from attnkit.kernels.onednn import fast
from attnkit_plugins.softmax.flash import sdpa

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.interface import SoftmaxRules


def attend(query: Tensor, key: Tensor, value: Tensor, **rules: Unpack[SoftmaxRules]) -> Tensor:
    """Attend; see `attnkit.interface.SoftmaxFunction`.

    Note:
        O(L S) time, O(L + S) extra memory.
    """

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return sdpa.attend(query.float(), key.float(), value.float(), **rules)

    return fast(fused, query, key, value).to(query.dtype)
