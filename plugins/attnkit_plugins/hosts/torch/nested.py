"""Nested tensors, in which `TransformerEncoder` drops padding, to padded ones and back."""

from __future__ import annotations

import torch
from torch import Tensor


def unpacked(nested: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, L, D), zero at padding, and (B, L), True at padding."""
    padded = nested.to_padded_tensor(0.0)
    lengths = torch.tensor([each.shape[0] for each in nested.unbind()], device=padded.device)
    places = torch.arange(padded.shape[1], device=padded.device)
    return padded, places >= lengths[:, None]


def packed(padded: Tensor, hidden: Tensor) -> Tensor:
    """Take out the padding of (B, L, D) again."""
    lengths = (~hidden).sum(dim=1).tolist()
    rows = [each[:length] for each, length in zip(padded, lengths, strict=True)]
    return torch.nested.as_nested_tensor(rows)
