"""From a dense boolean mask back to the structure it was made of, where that can be proven.

Libraries hand over masks as (B, 1, L, S) tensors; implementations are fast for causal masks,
windows and padding that they know by name. `lift` guesses the structure from a few rows and
takes a guess only if it equals the tensor everywhere, so nothing depends on the guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit.masks import (
    Mask,
    Sizes,
    causal,
    dense,
    documents,
    full,
    left_padding,
    padding,
    sliding_window,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def lift(seen: Tensor, sizes: Sizes, window: int | None = None) -> Mask:
    """Return a mask that equals a tensor, made of named parts if such a mask is found.

    Args:
        seen: Bool, broadcastable to (B, H, L, S), 4 dimensions, True = may attend.
        sizes: B, H, L, S of the call.
        window: A window that the layer is known to have, in keys, self included; where the
            tensor is compatible with it, the mask says so.

    Note:
        Reads the tensor, which on a GPU waits for it.
    """
    if 0 not in seen.shape and seen.shape[1] == 1:
        whole = seen.expand(seen.shape[0], 1, sizes.queries, sizes.keys)
        for guess in _guesses(whole, sizes, window):
            if _equal(guess, whole, sizes):
                return guess
    return dense(seen)


def _guesses(seen: Tensor, sizes: Sizes, window: int | None) -> Iterator[Mask]:
    columns = seen.any(dim=2)[:, 0]  # (b, S), keys that some query sees
    offset = sizes.keys - sizes.queries
    rows = torch.arange(sizes.queries, device=seen.device)[:, None] + offset
    distance = rows - torch.arange(sizes.keys, device=seen.device)  # (L, S), query minus key
    later = bool((seen & (distance < 0)).any())
    base = full() if later else causal()
    # one query sees no later key by position alone: both names are true, causal is the host's
    pads = list(_paddings(columns, sizes))
    for pad in pads:
        if window is not None:
            yield base & sliding_window(window) & pad
        yield base & pad
    reach = int((distance.abs() * seen.any(dim=0)[0]).max()) + 1
    if reach < sizes.keys:
        for pad in pads:
            yield base & sliding_window(reach) & pad
    if sizes.queries == sizes.keys and bool(seen.any(dim=-1).all()):
        first = seen[:, 0].int().argmax(dim=-1)  # (b, L), first key that each query sees
        ids = first.expand(sizes.batch, -1)
        if window is not None:
            yield base & sliding_window(window) & documents(ids)
        yield base & documents(ids)


def _paddings(columns: Tensor, sizes: Sizes) -> Iterator[Mask]:
    if bool(columns.all()):
        yield full()
        return
    length = sizes.keys
    columns = columns.expand(sizes.batch, -1)
    first = columns.int().argmax(dim=-1)  # (B,)
    last = length - columns.flip(-1).int().argmax(dim=-1)  # (B,)
    none = ~columns.any(dim=-1)
    starts = torch.where(none, length, first)
    ends = torch.where(none, 0, last)
    if bool((starts == 0).all()):
        yield padding(ends)
    elif bool((ends == length).all()):
        yield left_padding(starts)
    else:
        yield left_padding(starts) & padding(ends)


def _equal(guess: Mask, seen: Tensor, sizes: Sizes) -> bool:
    made = guess.to_bool(sizes, seen.device)
    return bool((made == seen).all())
