"""Deliberately wrong softmax operations that show other keys than their mask says.

`MUTANTS` says which check must catch it, and on which subject.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from mutants_attention import seen_by
from mutants_softmax import attend, variant_of

import attnkit
from attnkit.masks.constructors import Sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def with_seen(
    change: Callable[[Any, Tensor], Tensor | None],
) -> Callable[..., Tensor]:
    """Attend with a changed mask; None leaves it."""

    def wrong(query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any) -> Tensor:
        changed = change(mask, seen_by(mask, query, key))
        mask = mask if changed is None else attnkit.dense(changed)
        return attend(query, key, value, mask=mask, **given)

    return wrong


def dense_of_one_sample(mask: Any, seen: Tensor) -> Tensor | None:
    return seen[:1].expand_as(seen) if "dense" in mask.parts else None


def first_real_key_dropped(mask: Any, seen: Tensor) -> Tensor | None:
    """Where padding is on the left, its end is off by one."""
    for part in mask.conjuncts():
        if getattr(part, "starts", None) is not None and seen.shape[-1] > 45:
            at = part.starts.clamp(max=seen.shape[-1] - 1)
            for sample, start in enumerate(at.tolist()):
                if start > 8:
                    seen[sample, ..., start + 1 :, start] = False
            return seen
    return None


def joined_by_or(mask: Any, seen: Tensor) -> Tensor | None:
    """A window and documents show what either shows."""
    if not {"window", "documents"} <= mask.parts:
        return None
    sizes = Sizes(*seen.shape)
    parts = [part for part in mask.conjuncts() if part.parts & {"window", "documents"}]
    others = [part for part in mask.conjuncts() if not part.parts & {"window", "documents"}]
    shown = torch.zeros_like(seen)
    for part in parts:
        shown = shown | part.to_bool(sizes, seen.device)
    for part in others:
        shown = shown & part.to_bool(sizes, seen.device)
    return shown


def newest_key_dropped(mask: Any, seen: Tensor) -> Tensor | None:
    if seen.shape[2] > 1 or seen.shape[3] < 100:
        return None
    seen[..., -1] = False
    return seen


def seam_dropped(mask: Any, seen: Tensor) -> Tensor | None:
    """Where long keys are split in two, the key at the seam is lost."""
    if seen.shape[3] < 4000:
        return None
    seen[..., 2048] = False
    return seen


def window_from_the_end(mask: Any, seen: Tensor) -> Tensor | None:
    """All queries see the last W keys, where each must see its own."""
    if mask.window is None or seen.shape[3] <= mask.window:
        return None
    seen = seen.clone()
    seen[..., : seen.shape[3] - mask.window] = False
    return seen


def window_on_one_side(mask: Any, seen: Tensor) -> Tensor | None:
    if mask.window is None or mask.is_causal:
        return None
    ahead = torch.ones_like(seen).tril(seen.shape[3] - seen.shape[2])
    return seen & ahead


def half_way_through(mask: Any, seen: Tensor) -> Tensor | None:
    """A prefix is taken for the number of its last token."""
    if "prefix" not in mask.parts or mask.is_causal:
        return None
    seen[..., seen.shape[3] // 2] &= torch.ones_like(seen[..., 0]).bool()
    seen[:, :, :5, seen.shape[3] // 2] = True
    return seen


def _sees(change: Callable[..., Any], kills: str) -> tuple[Any, ...]:
    return variant_of(change.__name__, with_seen(change)), kills, "wrong"


def documents_unread(mask: Any, seen: Tensor) -> Tensor | None:
    """All documents of a row see each other, though no call goes without documents."""
    return torch.ones_like(seen) if "documents" in mask.parts else None


MUTANTS = (
    (variant_of("nan_passes", attend, stops_nan=True), "M9.stops_nan", "wrong"),
    (
        variant_of("documents_unread", with_seen(documents_unread), needs=("documents",)),
        "S10.masks",
        "wrong",
    ),
    _sees(dense_of_one_sample, "M7.broadcast"),
    _sees(first_real_key_dropped, "M10.padded"),
    _sees(joined_by_or, "M12.composition"),
    _sees(newest_key_dropped, "T5.needle"),
    _sees(seam_dropped, "T5.long_needle"),
    _sees(window_from_the_end, "M4.window"),
    _sees(window_on_one_side, "M4.window"),
    _sees(half_way_through, "M3.support"),
)
