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
    if 0 in seen.shape or seen.shape[1] != 1:
        return dense(seen)
    whole = seen.expand(-1, 1, sizes.queries, sizes.keys)
    return next((g for g in _guesses(whole, sizes, window) if _equal(g, whole, sizes)), dense(seen))


def _guesses(seen: Tensor, sizes: Sizes, window: int | None) -> Iterator[Mask]:
    offset = sizes.keys - sizes.queries
    rows = torch.arange(sizes.queries, device=seen.device)[:, None] + offset
    distance = rows - torch.arange(sizes.keys, device=seen.device)  # (L, S), query minus key
    # one query sees all keys whether one calls it causal or not; full asks for less
    forward = sizes.queries == 1 or bool((seen & (distance < 0)).any())
    base = full() if forward else causal()
    paddings = list(_paddings(seen.any(dim=2)[:, 0], sizes))
    windows = [base] if window is None else [base & sliding_window(window), base]
    yield from (base & pad for base in windows for pad in paddings)
    reach = int((distance.abs() * seen.any(dim=0)[0]).max()) + 1
    if reach < sizes.keys:
        yield from (base & sliding_window(reach) & pad for pad in paddings)
    if sizes.queries == sizes.keys and bool(seen.any(dim=-1).all()):
        first = seen[:, 0].int().argmax(dim=-1)  # (b, L), first key that each query sees
        yield from (base & documents(first.expand(sizes.batch, -1)) for base in windows)


def _paddings(columns: Tensor, sizes: Sizes) -> Iterator[Mask]:
    """Guess from ``columns`` (b, S), the keys that some query sees."""
    yield full()
    if bool(columns.all()):
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
