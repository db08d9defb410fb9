"""torch.nn's own layers and the masks they take, in float64, for the tests of swaps in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def attention(**options: Any) -> Any:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(32, 4, dtype=DOUBLE, **options).eval()
    for parameter in layer.parameters():
        # larger than torch initialises, and biases too: attention must prefer some keys to others
        nn.init.normal_(parameter, std=0.3)
    return layer


def encoder(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"batch_first": True, "dtype": DOUBLE, **options}
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, **sizes), 2).eval()


def padding(length: int = 9) -> torch.Tensor:
    """Return (2, L), True where the first sample is padded."""
    hidden = torch.zeros(2, length, dtype=torch.bool)
    hidden[0, length - 3 :] = True
    return hidden


def later(length: int = 9) -> torch.Tensor:
    """Return (L, L), True for later keys."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)
