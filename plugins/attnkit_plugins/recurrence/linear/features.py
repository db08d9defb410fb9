"""Feature maps: what stands in for the exponential of softmax, q . k -> phi(q) . phi(k) >= 0."""

from __future__ import annotations

import torch
from torch import Tensor


def elu1(x: Tensor) -> Tensor:
    """Return elu(x) + 1: x + 1 above 0, exp(x) below."""
    # elu(x) itself is rounded next to -1 where x is small, and little is left of it after + 1
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0)."""
    return x.relu()


MAPS = {"elu1": elu1, "relu": relu}
