"""Padded tokens set to 0, so that NaN and inf in them reach neither outputs nor gradients.

A product with 0 does not do: 0 * NaN is NaN, and so is the gradient of a weight that met it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.masks.algebra import Mask, Sizes
from attnkit.masks.tensors import Padding

if TYPE_CHECKING:
    from torch import Tensor


def real_tokens(mask: Mask, batch: int, seen: int, length: int) -> Tensor | None:
    """Say which of the last ``length`` of ``seen + length`` tokens are no padding.

    Returns:
        Bool, (B, L); None where the mask has no padding that holds for all of it.
    """
    keep: Tensor | None = None
    if "padding" in mask.parts:
        for part in mask.conjuncts():
            if isinstance(part, Padding):
                real = part.keep(Sizes(batch, 1, length, seen + length))[:, seen:]
                keep = real if keep is None else keep & real
    return keep


def zero_padding(x: Tensor, keep: Tensor | None, *, axis: int = 1) -> Tensor:
    """Set the padded tokens to 0.

    Args:
        x: (B, ..., L, ...).
        keep: (B, L), False at padding; None where there is none.
        axis: Which of x's dimensions is L: 1 of (B, L, D), 2 of (B, H, L) or (B, H, L, E).
    """
    import torch

    if keep is None:
        return x
    batch, length = keep.shape
    ones = (1,) * (axis - 1), (1,) * (x.dim() - axis - 1)
    real = keep.to(x.device).reshape(batch, *ones[0], length, *ones[1])
    return torch.where(real, x, x.new_zeros(()))


def hide_padding(mask: Mask, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Zero the keys and values that padding hides.

    Args:
        mask: Any mask; only padding that holds for the whole mask is looked at.
        key: (B, Hkv, S, E).
        value: (B, Hkv, S, Ev).
    """
    keep = real_tokens(mask, key.shape[0], 0, key.shape[2])
    return zero_padding(key, keep, axis=2), zero_padding(value, keep, axis=2)
