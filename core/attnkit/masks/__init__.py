"""Who may look at what: masks that are made, combined, read and written down.

Start with `constructors`. `algebra` says what a mask is, `tensors` has those that hold tensors,
`padded_tokens` zeroes what they hide;
`reader` and `recognition` go from torch's tensors back to masks, `codes` to what a graph can hold.
"""

from attnkit.masks.algebra import And, Causal, Full, Mask, Or, Sizes, SlidingWindow
from attnkit.masks.constructors import (
    blocks,
    causal,
    dense,
    documents,
    full,
    left_padding,
    padding,
    prefix_lm,
    sliding_window,
)
from attnkit.masks.padded_tokens import hide_padding, real_tokens, zero_padding
from attnkit.masks.tensors import Blocks, Dense, Documents, Padding, PrefixLM

__all__ = [
    "And",
    "Blocks",
    "Causal",
    "Dense",
    "Documents",
    "Full",
    "Mask",
    "Or",
    "Padding",
    "PrefixLM",
    "Sizes",
    "SlidingWindow",
    "blocks",
    "causal",
    "dense",
    "documents",
    "full",
    "hide_padding",
    "left_padding",
    "padding",
    "prefix_lm",
    "real_tokens",
    "sliding_window",
    "zero_padding",
]
