"""From the mask that a transformers layer is given to an attnkit mask, and what is left of it.

Three forms arrive, by the model's own implementation: None, a bool tensor (True = may attend),
a float tensor that is added to the logits. A float tensor hides a key by a number that no
logit survives: the lowest of its dtype, or -inf; other numbers are a bias.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Mask, Sizes, dense, full, sliding_window
from attnkit.masks.recognition import lift


class Reading(NamedTuple):
    """What a mask tensor says.

    Attributes:
        mask: Who may look at what, among the first ``keys`` keys.
        bias: The additive terms that came with it.
        keys: How many keys to look at; None for all. The unwritten end of a cache is left out,
            where there are more keys than queries: the last query stands at the last key only
            without it.
        aligned: Whether the last query is known to stand at the last of these keys.
    """

    mask: Mask
    bias: Tensor | None
    keys: int | None
    aligned: bool


class _Known(NamedTuple):
    """What one forward pass of one model has read.

    Attributes:
        tensor: The mask.
        asked: What it was read for.
        config: Of the model.
        layers: Which layers have asked, by id. A layer that asks again is in another pass, before
            which the contents may have changed: through numpy or ``.data`` no version tells.
    """

    tensor: ref[Tensor]
    asked: object
    config: object
    layers: set[int]
    reading: Reading


# a model hands one tensor to all its layers: it is read once, by the first of them. By the number
# of a living object: torch's dictionary of weak keys would cost a microsecond in every layer
_read: dict[int, _Known] = {}

# where versions are not tracked, the same: the contents are kept, to see whether they changed
_inferred: MutableMapping[Tensor, tuple[object, Tensor, Reading]] = WeakTensorKeyDictionary()


def added(given: Tensor | None) -> Tensor | None:
    """Return a mask that a model adds to its logits; refuse one of bools, which hides nothing."""
    if given is not None and given.dtype == torch.bool:
        raise UnsupportedError(
            "attention_mask: bool, which the model adds to its logits as 0 and 1, so that it hides "
            "nothing; give it as floating, 0 and -inf, or load the model with "
            "attn_implementation='sdpa' where it has that"
        )
    return given


def read(
    given: Tensor,
    query: Sequence[int],
    key: Sequence[int],
    window: int | None,
    layer: object,
    config: object,
) -> Reading:
    """Translate a mask tensor, once per forward pass, version and sizes.

    Args:
        given: (B or 1, H or 1, L or 1, S), bool or floating.
        query: Shape of the query.
        key: Shape of the key.
        window: A window that the layer has, if it says so.
        layer: Who asks.
        config: What all layers of its model share.
    """
    compiling = torch.compiler.is_compiling()
    # what a pass has read comes first: every layer but one asks for it, at every token
    if not compiling and (known := _read.get(id(given))) is not None:
        tensor, asked, of, layers, reading = known
        if (
            tensor() is given
            and asked == _asked(given, query, key, window)
            and of is config
            and id(layer) not in layers
            and not given.requires_grad
        ):
            layers.add(id(layer))
            return reading
    if given.dim() != 4:
        raise UnsupportedError(
            f"attention_mask must have 4 dimensions here, got {tuple(given.shape)}; the model's "
            "own implementation must be 'sdpa' or 'eager'"
        )
    sizes = Sizes(query[0], query[1], query[2], key[2])
    if compiling:
        return _untouched(given, sizes, window)
    if given.requires_grad:
        # a graph must not be kept
        return _translate(given, sizes, window)
    if given.is_inference():
        return _read_inferred(given, sizes, window)
    number, reading = id(given), _translate(given, sizes, window)
    alive = ref(given, lambda _: _read.pop(number, None))
    asked = _asked(given, query, key, window)
    _read[number] = _Known(alive, asked, config, {id(layer)}, reading)
    return reading


def _asked(
    given: Tensor, query: Sequence[int], key: Sequence[int], window: int | None
) -> tuple[object, ...]:
    """Return what a reading is for; what inference mode makes must not meet a backward pass."""
    return (given._version, query, key, window, torch.is_inference_mode_enabled())


def _untouched(given: Tensor, sizes: Sizes, window: int | None) -> Reading:
    """Translate a mask while compiling: reading the contents would end the graph."""
    is_bool = given.dtype == torch.bool
    aligned = sizes.queries == sizes.keys
    mask = dense(given) if is_bool else full()
    # the tensor has the window already; it can be named where it hides nothing more
    if window is not None and (aligned or sizes.keys <= window):
        mask = mask & sliding_window(window)
    return Reading(mask, None if is_bool else given, None, aligned)


def _read_inferred(given: Tensor, sizes: Sizes, window: int | None) -> Reading:
    """Translate a tensor whose version is not tracked: it may change between two layers."""
    key = (sizes, window)
    known = _inferred.get(given)
    if known is None or known[0] != key or not torch.equal(known[1], given):
        known = (key, given.clone(), _translate(given, sizes, window))
        _inferred[given] = known
    return known[2]


def _translate(given: Tensor, sizes: Sizes, window: int | None) -> Reading:
    bias = None
    if given.dtype == torch.bool:
        # a mask that holds the tensor itself, kept in `_read`, would keep it alive for ever
        seen = given.clone()
    else:
        hidden = given <= torch.finfo(given.dtype).min / 2
        seen, rest = ~hidden, given.masked_fill(hidden, 0.0)
        # a learned mask may be 0 and still wants a gradient
        bias = rest if rest.requires_grad or bool(rest.any()) else None
    written = None
    if seen.shape[3] == sizes.keys > sizes.queries:
        written = _written(seen, sizes)
    if written is not None:
        seen, sizes = seen[..., :written], sizes._replace(keys=written)
        bias = None if bias is None else bias[..., :written]
    mask = lift(seen, sizes, window).remembering((sizes, seen))
    return Reading(mask, bias, written, aligned=sizes.keys >= sizes.queries)


def _written(seen: Tensor, sizes: Sizes) -> int | None:
    """Return how many keys there are up to the last query's own; None for all.

    The others are the unwritten end of a cache. No query sees past its own key, and some sees it:
    padding at the end, hidden from all, is no end of a cache.
    """
    length = seen.shape[3]
    if bool(seen.select(3, -1).any()):
        return None
    last = length - 1 - seen.flip(3).int().argmax(dim=3)  # (B or 1, H or 1, L or 1), key
    first = last - torch.arange(seen.shape[2], device=seen.device)  # where the first query stands
    first = first.masked_fill(~seen.any(dim=3), -sizes.queries)
    # one key at least: a cut to none would be another kind of call
    found = max(1, int(first.amax()) + sizes.queries)
    return found if found < length else None
