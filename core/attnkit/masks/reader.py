"""From a mask tensor as torch's functions take it to an attnkit mask, and what is left of it.

A bool tensor hides keys. A float tensor is added to the logits; it hides a key by a number that
no logit survives, the lowest of its dtype or -inf, and the other numbers are a bias.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from attnkit.errors import MaskError, ShapeError
from attnkit.masks.constructors import Mask, Sizes, dense, full
from attnkit.masks.recognition import lift


class Reading(NamedTuple):
    """What a mask tensor says: who may look at what, and what is added to the logits."""

    mask: Mask
    bias: Tensor | None


# a model hands one tensor to all its layers: it is read once, by the first of them
_read: MutableMapping[Tensor, tuple[object, Reading]] = WeakTensorKeyDictionary()


def read_mask(
    name: str,
    given: Tensor,
    view: Tensor,
    sizes: Sizes,
    *,
    hides: bool = False,
    window: int | None = None,
) -> Reading:
    """Translate a mask tensor, once per tensor and version.

    Args:
        name: What the host calls it, for messages.
        given: The tensor as it arrived; what was read is remembered by it.
        view: The same with 4 dimensions, broadcastable to (B, H, L, S).
        sizes: B, H, L, S of the call.
        hides: A bool tensor's True means hidden; else it means visible.
        window: A window that the layer is known to have, in keys, self included.

    Raises:
        MaskError: Neither bool nor floating.
        ShapeError: It does not fit the sizes.
    """
    if view.dtype != torch.bool and not view.is_floating_point():
        raise MaskError(f"{name} must be a bool or a floating tensor, got {given.dtype}")
    if any(n not in (1, m) for n, m in zip(view.shape, sizes, strict=True)):
        raise ShapeError(
            f"{name} {tuple(given.shape)} does not fit (B, H, L, S) = {tuple(sizes)} of the call"
        )
    if torch.compiler.is_compiling():
        # reading the contents would end the graph
        if view.dtype != torch.bool:
            return Reading(full(), view)
        return Reading(dense(~view if hides else view), None)
    if given.requires_grad or given.is_inference():
        # a graph must not be kept, and a tensor without a version may change unseen
        return _translate(view, sizes, hides=hides, window=window)
    key = (given._version, tuple(view.shape), sizes, hides, window)
    known = _read.get(given)
    if known is None or known[0] != key:
        reading = _translate(view, sizes, hides=hides, window=window)
        if reading.bias is view:
            # what is kept must not hold the tensor that it is kept by
            reading = Reading(reading.mask, view.clone())
        known = (key, reading)
        _read[given] = known
    return known[1]


def _translate(view: Tensor, sizes: Sizes, *, hides: bool, window: int | None) -> Reading:
    if view.dtype == torch.bool:
        seen = ~view if hides else view.clone()
        return Reading(_lift(seen, sizes, window), None)
    hidden = view <= torch.finfo(view.dtype).min / 2
    if not bool(hidden.any()):
        return Reading(full(), view)
    rest = view.masked_fill(hidden, 0.0)
    bias = rest if rest.requires_grad or bool(rest.any()) else None
    return Reading(_lift(~hidden, sizes, window), bias)


def _lift(seen: Tensor, sizes: Sizes, window: int | None) -> Mask:
    # many repeat one mask for every head
    if seen.shape[1] > 1 and bool((seen == seen[:, :1]).all()):
        seen = seen[:, :1]
    return lift(seen, sizes, window)
