"""Wrong ways to read a mask: each returns which keys are seen, bool (B, H, L, S).

Part of `mistakes_softmax`. A part of a mask that is read wrongly stands beside others that are
read rightly.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from attnkit.masks.constructors import (
    Blocks,
    Causal,
    Dense,
    Documents,
    Mask,
    Or,
    Padding,
    PrefixLM,
    Sizes,
    SlidingWindow,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Reader = Callable[[Mask, Sizes, torch.device], Tensor]
    Seen = Callable[[Mask, "Grid", Sizes], Tensor]


class Grid(NamedTuple):
    """Positions: ``i`` of queries, (L, 1); ``p`` of queries among the keys; ``j`` of keys, (S,)."""

    i: Tensor
    p: Tensor
    j: Tensor


def grid(sizes: Sizes, device: torch.device) -> Grid:
    """Return the positions of a call."""
    i = torch.arange(sizes.queries, device=device)[:, None]
    return Grid(i, i + sizes.keys - sizes.queries, torch.arange(sizes.keys, device=device))


def visible(mask: Mask, sizes: Sizes, device: torch.device) -> Tensor:
    """Read a mask rightly."""
    return mask.to_bool(sizes, device).expand(*sizes)


def misread(*kinds: type[Mask], seen: Seen) -> Reader:
    """Return a reader that takes parts of these kinds for something else."""

    def read(mask: Mask, sizes: Sizes, device: torch.device) -> Tensor:
        found = torch.ones(*sizes, dtype=torch.bool, device=device)
        for part in mask.conjuncts():
            wrong = isinstance(part, kinds)
            found = found & (
                seen(part, grid(sizes, device), sizes) if wrong else part.to_bool(sizes, device)
            )
        return found

    return read


def ignoring(*kinds: type[Mask]) -> Reader:
    """Return a reader that overlooks parts of these kinds."""
    return misread(*kinds, seen=lambda _part, at, _sizes: (at.p == at.p) & (at.j == at.j))


def upper_left(part: Mask, at: Grid, sizes: Sizes) -> Tensor:
    """Count queries from the first key on."""
    if isinstance(part, SlidingWindow):
        return (at.i - at.j).abs() < part.window_size
    return at.j <= at.i


def window_of(extra: int) -> Seen:
    """Return windows that are too long by some keys."""

    def seen(part: Mask, at: Grid, sizes: Sizes) -> Tensor:
        assert isinstance(part, SlidingWindow)
        return (at.p - at.j).abs() < part.window_size + extra

    return seen


def earlier_only(part: Mask, at: Grid, sizes: Sizes) -> Tensor:
    """Limit earlier keys and no later ones."""
    assert isinstance(part, SlidingWindow)
    return at.p - at.j < part.window_size


def two_sided(mask: Mask, sizes: Sizes, device: torch.device) -> Tensor:
    """Drop the causal part wherever there is a window."""
    reader = ignoring(Causal) if mask.window is not None else visible
    return reader(mask, sizes, device)


def other_side(part: Mask, at: Grid, sizes: Sizes) -> Tensor:
    """Look for padding at the other end, (B, 1, 1, S)."""
    assert isinstance(part, Padding)
    seen = torch.ones(sizes.batch, 1, 1, sizes.keys, dtype=torch.bool, device=at.j.device)
    if part.lengths is not None:
        seen = seen & (at.j >= sizes.keys - part.lengths[:, None, None, None])
    if part.starts is not None:
        seen = seen & (at.j < sizes.keys - part.starts[:, None, None, None])
    return seen


def any_part(mask: Mask, sizes: Sizes, device: torch.device) -> Tensor:
    """Show a key that any part allows."""
    parts = [part.to_bool(sizes, device).expand(*sizes) for part in mask.conjuncts()]
    return torch.stack(parts).any(0) if parts else visible(mask, sizes, device)


def both_sides(part: Mask, at: Grid, sizes: Sizes) -> Tensor:
    """Take ``|`` for ``&``."""
    assert isinstance(part, Or)
    device = at.j.device
    return part.left.to_bool(sizes, device) & part.right.to_bool(sizes, device)


def without_tail(block: int) -> Reader:
    """Return a reader that overlooks keys behind the last whole block."""

    def read(mask: Mask, sizes: Sizes, device: torch.device) -> Tensor:
        whole = sizes.keys // block * block
        kept = torch.arange(sizes.keys, device=device) < (whole or sizes.keys)
        return visible(mask, sizes, device) & kept

    return read


def without_newest(*, least: int = 0, stepping: bool = False) -> Reader:
    """Return a reader that overlooks the last key, of many keys alone or of one query alone."""

    def read(mask: Mask, sizes: Sizes, device: torch.device) -> Tensor:
        lost = sizes.keys > least and (sizes.queries == 1 or not stepping)
        kept = torch.arange(sizes.keys, device=device) < sizes.keys - lost
        return visible(mask, sizes, device) & kept

    return read


def without_oldest(holds: Callable[[Sizes], bool] = lambda _: True) -> Reader:
    """Return a reader that overlooks the first key, of all calls or of some."""

    def read(mask: Mask, sizes: Sizes, device: torch.device) -> Tensor:
        kept = torch.arange(sizes.keys, device=device) >= holds(sizes)
        return visible(mask, sizes, device) & kept

    return read


def unmasked(axis: int, where: Callable[[Tensor, int], Tensor]) -> Reader:
    """Return a reader that overlooks the whole mask at some samples, heads or queries (0, 1, 2)."""

    def read(mask: Mask, sizes: Sizes, device: torch.device) -> Tensor:
        shape = [1] * 4
        shape[axis] = -1
        at = torch.arange(sizes[axis], device=device)
        return visible(mask, sizes, device) | where(at, sizes[axis]).reshape(shape)

    return read


def _from(first: int, at: Tensor, _: int) -> Tensor:
    return at >= first


def of_first(axis: int) -> Reader:
    """Return a reader that gives all samples, or heads, what the first one sees."""
    return lambda *call: visible(*call).narrow(axis, 0, 1).expand_as(visible(*call))


def one_more(part: Mask, at: Grid, sizes: Sizes) -> Tensor:
    """Take one token of padding for a real one, (B, 1, 1, S)."""
    assert isinstance(part, Padding)
    seen = torch.ones(sizes.batch, 1, 1, sizes.keys, dtype=torch.bool, device=at.j.device)
    if part.lengths is not None:
        seen = seen & (at.j <= part.lengths[:, None, None, None])
    if part.starts is not None:
        seen = seen & (at.j >= part.starts[:, None, None, None] - 1)
    return seen


def until(later: int) -> Seen:
    """Show the keys up to so many behind a query's own, or before it."""
    return lambda _part, at, _sizes: at.j <= at.p + later


READERS: tuple[tuple[str, str, tuple[Reader, ...]], ...] = (
    ("upper_left_causal", "the causal mask aligned upper-left instead of lower-right",
     (misread(Causal, seen=upper_left), misread(Causal, SlidingWindow, seen=upper_left))),
    ("causal_ignored", "the causal mask ignored", (ignoring(Causal),)),
    ("causal_strict", "the causal mask hiding a query's own key",
     (misread(Causal, seen=until(-1)),)),
    ("causal_one_ahead", "the causal mask showing one later key",
     (misread(Causal, seen=until(1)),)),
    ("window_one_long", "a window of one key more", (misread(SlidingWindow, seen=window_of(1)),)),
    ("window_one_short", "a window of one key less",
     (misread(SlidingWindow, seen=window_of(-1)),)),
    ("window_two_sided", "a window that reaches both ways although the mask is causal",
     (two_sided,)),
    ("window_one_sided", "a window that limits earlier keys only",
     (misread(SlidingWindow, seen=earlier_only),
      misread(SlidingWindow, seen=lambda *each: earlier_only(*each) & until(0)(*each)))),
    ("window_ignored", "the window ignored", (ignoring(SlidingWindow),)),
    ("padding_one_more", "one token of padding taken for a real one",
     (misread(Padding, seen=one_more),)),
    ("padding_ignored", "the padding ignored", (ignoring(Padding),)),
    ("padding_other_side", "the padding taken to be at the other end",
     (misread(Padding, seen=other_side),)),
    ("documents_ignored", "the documents ignored", (ignoring(Documents),)),
    ("prefix_ignored", "the prefix ignored",
     (ignoring(PrefixLM), misread(PrefixLM, seen=until(0)))),
    ("dense_ignored", "the dense mask ignored", (ignoring(Dense),)),
    ("dense_inverted", "the polarity of the dense mask inverted (True taken for hidden)",
     (misread(Dense, seen=lambda part, at, sizes: ~part.to_bool(sizes, at.j.device)),)),
    ("blocks_ignored", "the block map ignored", (ignoring(Blocks),)),
    ("mask_inverted", "the polarity of the whole mask inverted (True taken for hidden)",
     (lambda mask, sizes, device: ~visible(mask, sizes, device),)),
    ("mask_ignored", "the whole mask ignored", (ignoring(Mask),)),
    ("mask_ignored_odd_heads", "the whole mask ignored for every second head",
     (unmasked(1, lambda at, _: at % 2 == 1),)),
    ("mask_ignored_last_query", "the whole mask ignored for the last query",
     (unmasked(2, lambda at, queries: at == queries - 1),)),
    ("mask_ignored_later", "the whole mask ignored from some query on",
     tuple(unmasked(2, partial(_from, first)) for first in (16, 32, 64, 128))),
    ("mask_ignored_last_sample", "the whole mask ignored for the last sample",
     (unmasked(0, lambda at, batch: at == max(1, batch - 1)),)),
    ("mask_first_sample", "the first sample's mask for all samples", (of_first(0),)),
    ("mask_first_head", "the first head's mask for all heads", (of_first(1),)),
    ("parts_or", "the parts of the mask joined by or instead of and", (any_part,)),
    ("union_and", "the two sides of a union joined by and instead of or",
     (misread(Or, seen=both_sides),)),
    ("first_key_dropped", "the first key dropped",
     (without_oldest(), without_oldest(lambda sizes: 1 < sizes.queries < sizes.keys),
      without_oldest(lambda sizes: sizes.queries < sizes.keys))),
    ("newest_key_dropped", "the newest key dropped",
     (*(without_newest(least=least) for least in (0, 16, 32, 64, 128)),
      without_newest(stepping=True))),
    ("tail_dropped", "the keys behind the last whole block dropped",
     tuple(without_tail(block) for block in (16, 32, 64, 128))),
)  # fmt: skip
"""Name, statement and readers of every mistake that is about masks."""
