"""Tensors in a stranger's convention: axes swapped, masks written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def swapped(tensor: Tensor, layout: str) -> Tensor:
    """Go between our layout and a stranger's, either way: two axes change places, or none."""
    match layout:
        case "BLHE":
            return tensor.transpose(1, 2)
        case "LBD":
            return tensor.transpose(0, 1)
    return tensor


def written(seen: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Write a bool tensor, True for visible, as ``bool``, ``hidden``, ``integer`` or additive."""
    match kind:
        case "hidden":
            return ~seen
        case "integer":
            return seen.long()
        case "additive" | "additive_min":
            least = float("-inf") if kind == "additive" else torch.finfo(dtype).min
            nothing = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            return nothing.masked_fill(~seen, least)
    return seen
