"""Layers, (B, L, D) to (B, L, D): `create` makes one by name.

Start with `construction`, what a layer is made with. `softmax` is the layer of softmax variants,
`recurrent` what those of recurrences share; `softmax_config` and `heads` have their options, and
import no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.layers.construction import MadeLayer as MadeLayer
    from attnkit.layers.construction import New as New
    from attnkit.layers.heads import GroupedHeadsConfig as GroupedHeadsConfig
    from attnkit.layers.heads import HeadsConfig as HeadsConfig
    from attnkit.layers.heads import check_multiple as check_multiple
    from attnkit.layers.heads import split_heads as split_heads
    from attnkit.layers.recurrent import Past as Past
    from attnkit.layers.recurrent import RecurrentLayer as RecurrentLayer
    from attnkit.layers.softmax import SoftmaxLayer as SoftmaxLayer
    from attnkit.layers.softmax import drop_first as drop_first
    from attnkit.layers.softmax_config import SoftmaxConfig as SoftmaxConfig
else:
    __getattr__, __dir__, __all__ = face(
        __name__,
        {
            "attnkit.layers.construction": "MadeLayer New",
            "attnkit.layers.heads": "GroupedHeadsConfig HeadsConfig check_multiple split_heads",
            "attnkit.layers.recurrent": "Past RecurrentLayer",
            "attnkit.layers.softmax": "SoftmaxLayer drop_first",
            "attnkit.layers.softmax_config": "SoftmaxConfig",
        },
    )
