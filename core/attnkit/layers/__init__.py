"""Layers, (B, L, D) to (B, L, D): `create` makes one by name.

Start with `softmax`, the layer of all softmax variants, and `softmax_config`, its options, which
imports no torch. The layer of a recurrence or a mixture lives with its variant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.layers.softmax import SoftmaxLayer, drop_first, without_padding
    from attnkit.layers.softmax_config import SoftmaxConfig
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "attnkit.layers.softmax": "SoftmaxLayer drop_first without_padding",
            "attnkit.layers.softmax_config": "SoftmaxConfig",
        },
    )

__all__ = [
    "SoftmaxConfig",
    "SoftmaxLayer",
    "drop_first",
    "without_padding",
]
