"""From the mask that a transformers layer is given to an attnkit mask, and what is left of it.

Three forms arrive, by the model's own implementation: None, a bool tensor (True = may attend),
a float tensor that is added to the logits. A float tensor hides a key by a number that no
logit survives: the lowest of its dtype, or -inf; other numbers are a bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from attnkit.errors import UnsupportedError
from attnkit.lifting import lift
from attnkit.masks import Mask, Sizes, dense, full

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from torch import Tensor


class Reading(NamedTuple):
    """What a mask tensor says.

    Attributes:
        mask: Who may look at what, among the first ``keys`` keys.
        bias: The additive terms that came with it.
        keys: How many keys to look at. Keys at the end that no query sees are left out where
            there are more keys than queries: they are the unwritten end of a cache, and the last
            query stands at the last key only without them.
        aligned: Whether the last query is known to stand at the last of these keys.
    """

    mask: Mask
    bias: Tensor | None
    keys: int
    aligned: bool


# a model hands one tensor to all its layers: it is read once, by the first of them. By the number
# of a living object: torch's dictionary of weak keys would cost a microsecond in every layer
_read: dict[int, tuple[ref[Tensor], object, Reading]] = {}

# where versions are not tracked, the same: the contents are kept, to see whether they changed
_inferred: MutableMapping[Tensor, tuple[object, Tensor, Reading]] = WeakTensorKeyDictionary()


def read(given: Tensor, sizes: Sizes, window: int | None) -> Reading:
    """Translate a mask tensor, once per tensor, version and sizes.

    Args:
        given: (B or 1, H or 1, L or 1, S), bool or floating.
        sizes: B, H, L, S of the call.
        window: A window that the layer has, if it says so.
    """
    if given.dim() != 4:
        raise UnsupportedError(
            f"attention_mask must have 4 dimensions here, got {tuple(given.shape)}; the model's "
            "own implementation must be 'sdpa' or 'eager'"
        )
    if torch.compiler.is_compiling():
        # reading the contents would end the graph
        is_bool = given.dtype == torch.bool
        aligned = sizes.queries == sizes.keys
        mask = dense(given) if is_bool else full()
        return Reading(mask, None if is_bool else given, sizes.keys, aligned)
    if given.is_inference():
        return _read_inferred(given, sizes, window)
    # what is made in inference mode must not meet a backward pass
    key = (given._version, sizes, window, torch.is_inference_mode_enabled())
    known = _read.get(id(given))
    if known is None or known[0]() is not given or known[1] != key:
        number = id(given)
        alive = ref(given, lambda _: _read.pop(number, None))
        known = _read[number] = (alive, key, _translate(given, sizes, window))
    return known[2]


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
        bias = rest if bool(rest.any()) else None
    keys = sizes.keys
    if seen.shape[3] == keys > sizes.queries:
        columns = seen.any(dim=2).any(dim=1).any(dim=0)  # (S,)
        # one key at least: a cut to none would be another kind of call
        keys = max(1, keys - int(columns.flip(0).int().argmax())) if bool(columns.any()) else 1
        seen = seen[..., :keys]
        bias = None if bias is None else bias[..., :keys]
    sizes = sizes._replace(keys=keys)
    mask = lift(seen, sizes, window).remembering()
    return Reading(mask, bias, keys, aligned=keys >= sizes.queries)
