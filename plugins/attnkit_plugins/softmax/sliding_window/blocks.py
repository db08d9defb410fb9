"""Sliding-window attention by blocks of queries, each against only the keys in its reach.

A block of R queries reaches at most R + w - 1 keys (R + 2 w - 2 where later keys are visible), a
slice of the keys. So a block is one product, one softmax and another product, and its logits are
overwritten by the next block's: tiles as in `attnkit.kernels.tiles`, each as wide as the reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from attnkit.kernels import tiles

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.interface import SoftmaxRules

# measured with w from 64 to 1024: fewer rows cost calls, more rows cost keys outside the window
BLOCK_ROWS = 64


def attend(query: Tensor, key: Tensor, value: Tensor, **rules: Unpack[SoftmaxRules]) -> Tensor:
    """Attend block by block; see `attnkit.interface.SoftmaxFunction`.

    Note:
        O(L w) time; O(L + S + w) extra memory, forward and backward.
    """
    assert rules["dropout_p"] == 0.0
    tiling = tiles.Rules(rules["mask"], rules["scale"], rules["softcap"], BLOCK_ROWS)
    return tiles.attend(query, key, value, rules["bias"], rules["sinks"], tiling)
