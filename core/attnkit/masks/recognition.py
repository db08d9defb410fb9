"""From a dense boolean mask back to the structure it was made of, where that can be proven.

Libraries hand over masks as (B, 1, L, S) tensors; implementations are fast for causal masks,
windows and padding that they know by name. `lift` guesses the structure from a few rows and
takes a guess only if it equals the tensor everywhere, so nothing depends on the guess.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator

import torch
from torch import Tensor

from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import (
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
    if sizes.queries == 1:
        return _of_one_query(seen, sizes, window)
    whole = seen.expand(-1, 1, sizes.queries, sizes.keys)
    for guess in _guesses(whole, sizes, window):
        if bool((guess.to_bool(sizes, seen.device) == whole).all()):
            return guess
    return dense(seen)


def lift_causal(seen: Tensor, sizes: Sizes) -> Mask:
    """Return what `lift` does, for a recurrence, which reads its tokens in order.

    Args:
        seen: See `lift`; a host's ``attention_mask``.
        sizes: B, H, L, S of the call.

    Raises:
        UnsupportedError: A query sees later keys.
    """
    mask = lift(seen, sizes)
    # a single query stands at the last key
    if sizes.queries > 1 and not mask.is_causal:
        ahead = torch.ones(sizes.queries, sizes.keys, dtype=torch.bool, device=seen.device)
        ahead = ahead.triu(sizes.keys - sizes.queries + 1)  # (L, S), key past the query's own
        if bool((seen & ahead).any()):
            raise UnsupportedError(
                f"attention_mask: {tuple(seen.shape)} lets a query see later keys, a recurrence "
                "has none; hide them in the mask, give a mask (B, S) of padding alone, or restore "
                "the swap"
            )
    return mask


def _of_one_query(seen: Tensor, sizes: Sizes, window: int | None) -> Mask:
    """Take apart what one query of each sample sees, at every step of a generation.

    That is a run of keys, or nothing that has a name. It sees all keys whether one calls that
    causal or not; full asks for less.
    """
    keys = sizes.keys
    rows = seen.reshape(len(seen), -1).expand(sizes.batch, keys)  # (B, S)
    starts = rows.view(torch.uint8).argmax(-1)  # (B,)
    counts = rows.sum(-1)  # (B,)
    first = starts.tolist()
    last = [start + count for start, count in zip(first, counts.tolist(), strict=True)]
    # a row whose keys end with the last key of all is a run by their number alone
    if any(end < keys for end in last):
        places = torch.arange(keys, device=seen.device)
        runs = (places >= starts[:, None]) & (places < (starts + counts)[:, None])
        if not torch.equal(runs, rows):
            return dense(seen)
    parts: list[Mask] = []
    hidden = 0 if window is None else max(0, keys - window)
    if window is not None and all(a >= hidden or a == b for a, b in zip(first, last, strict=True)):
        parts.append(sliding_window(window))
    else:
        hidden = 0
    if any(start > hidden for start in first):
        parts.append(left_padding(starts))
    if any(end < keys for end in last):
        parts.append(padding(starts + counts))
    return functools.reduce(operator.and_, parts) if parts else full()


def _guesses(seen: Tensor, sizes: Sizes, window: int | None) -> Iterator[Mask]:
    offset = sizes.keys - sizes.queries
    rows = torch.arange(sizes.queries, device=seen.device)[:, None] + offset
    distance = rows - torch.arange(sizes.keys, device=seen.device)  # (L, S), query minus key
    base = full() if bool((seen & (distance < 0)).any()) else causal()
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
