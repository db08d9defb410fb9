"""Who may look at what: a small algebra of masks and the forms it lowers to.

A mask is a predicate over (batch, query head, query position, key position). True means: may
attend. Every mask says it once, in `Mask.allows`, elementwise; boolean tensors, additive tensors,
tiles and FlexAttention's ``mask_mod`` all follow from that one line.

Queries are aligned to the *last* keys (lower right): query i stands at key position i + S - L.
Positions below are those of the keys. Masks combine with ``&`` and ``|``.

Masks are made here. `attnkit.masks.algebra` has the masks without tensors and how they combine,
`attnkit.masks.tensors` those that hold tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnkit.errors import MaskError
from attnkit.masks.algebra import CAUSAL, FULL
from attnkit.masks.algebra import And as And
from attnkit.masks.algebra import Causal as Causal
from attnkit.masks.algebra import Full as Full
from attnkit.masks.algebra import Mask as Mask
from attnkit.masks.algebra import Or as Or
from attnkit.masks.algebra import Sizes as Sizes
from attnkit.masks.algebra import SlidingWindow as SlidingWindow
from attnkit.masks.tensors import Blocks as Blocks
from attnkit.masks.tensors import Dense as Dense
from attnkit.masks.tensors import Documents as Documents
from attnkit.masks.tensors import Padding as Padding
from attnkit.masks.tensors import PrefixLM as PrefixLM
from attnkit.text import described

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def full() -> Mask:
    """Hide nothing: every query sees every key."""
    return FULL


def causal() -> Mask:
    """Hide later keys: query i sees key j iff j <= i + (S - L), lower-right aligned."""
    return CAUSAL


def sliding_window(window_size: int) -> Mask:
    """Hide keys that are ``window_size`` or more positions away, on either side.

    With `causal` this leaves exactly ``window_size`` keys, the query's own included.

    Raises:
        MaskError: ``window_size`` is not a positive int.
    """
    if not _is_count(window_size):
        raise MaskError(
            f"window_size must be a positive int (keys, self included), got {window_size!r}; "
            "leave the mask out for no window"
        )
    return SlidingWindow(window_size)


def padding(lengths: Tensor | Sequence[int]) -> Mask:
    """Hide what follows each sample's real keys.

    Args:
        lengths: (B,), how many leading keys of each sample are real, 0 to S.

    Note:
        What the padding holds, NaN and inf included, reaches neither outputs nor gradients.
    """
    return Padding(None, _counts("padding lengths", lengths))


def left_padding(counts: Tensor | Sequence[int]) -> Mask:
    """Hide the first ``counts[b]`` keys of each sample, as generation in batches pads.

    Args:
        counts: (B,), how many leading keys of each sample are padding, 0 to S.

    Note:
        What the padding holds, NaN and inf included, reaches neither outputs nor gradients.
    """
    return Padding(_counts("left_padding counts", counts), None)


def documents(ids: Tensor) -> Mask:
    """Hide other documents of a packed row.

    Args:
        ids: (B, S), an integer for every key; equal means the same document. Each document's
            tokens lie together.
    """
    if not _is_tensor(ids) or ids.dim() != 2 or ids.dtype not in _integers():
        raise MaskError(
            f"documents ids must be an integer tensor (B, S), got {described(ids)}; "
            "give one document id for every key"
        )
    return Documents(ids)


def prefix_lm(lengths: Tensor | Sequence[int]) -> Mask:
    """Hide later keys, except the first ``lengths[b]``, which every query sees.

    Args:
        lengths: (B,), how many leading keys all queries see, 0 to S.
    """
    return PrefixLM(_counts("prefix_lm lengths", lengths))


def dense(tensor: Tensor) -> Mask:
    """Hide what the tensor says: True may be attended to, False is hidden.

    Args:
        tensor: Bool, broadcastable to (B, H, L, S).

    Raises:
        MaskError: Not a bool tensor. A float tensor of additive terms is a ``bias``.
    """
    import torch

    if not _is_tensor(tensor) or tensor.dtype != torch.bool or tensor.dim() > 4:
        raise MaskError(
            "dense mask must be a bool tensor of at most 4 dimensions, True = may attend, got "
            f"{described(tensor)}; give additive float terms as bias"
        )
    return Dense(tensor)


def blocks(block_map: Tensor, block_size: int) -> Mask:
    """Hide whole blocks of keys.

    Args:
        block_map: Bool, broadcastable to (B, H, N, N), N = ceil(S / block_size); entry (r, c)
            says whether queries in block r may attend to keys in block c.
        block_size: Positions per block, both ways.
    """
    import torch

    fits = _is_tensor(block_map) and block_map.dtype == torch.bool and 2 <= block_map.dim() <= 4
    if not fits:
        raise MaskError(
            f"block_map must be a bool tensor (..., N, N) of 2 to 4 dimensions, got "
            f"{described(block_map)}"
        )
    if not _is_count(block_size):
        raise MaskError(f"block_size must be a positive int (positions), got {block_size!r}")
    return Blocks(block_map, block_size)


def _counts(name: str, given: Tensor | Sequence[int]) -> Tensor:
    import torch

    try:
        counts = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MaskError(f"{name} must be integers (B,), got {described(given)}") from error
    if counts.dim() != 1 or (counts.dtype not in _integers() and counts.numel()):
        raise MaskError(f"{name} must be integers (B,), got {described(counts)}")
    return counts


def _is_tensor(given: object) -> bool:
    import torch

    return isinstance(given, torch.Tensor)


def _is_count(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given >= 1


def _integers() -> tuple[torch.dtype, ...]:
    import torch

    return (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
