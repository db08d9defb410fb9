"""Rotary positions: each pair of channels turns by an angle that grows with the position.

Pairs are channel c and channel c + E/2, as in Llama and GPT-NeoX (the paper pairs 2c and 2c + 1,
which is a permutation of the channels of both query and key and changes no logit).

Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, *, first: int, base: float) -> Tensor:
    """Turn x, (B, H, L, E) with E even, by its positions, of which ``first`` is the first.

    Pair c turns by ``position * base ** (-2 c / E)`` radians, in at least float32.
    """
    length, width = x.shape[2:]
    # float64: at position 1e5 a float32 angle is off by 0.01 radian
    wide = torch.float64
    positions = torch.arange(first, first + length, device=x.device, dtype=wide)  # (L,)
    pairs = torch.arange(0, width, 2, device=x.device, dtype=wide)  # (E / 2,)
    angles = positions[:, None] * base ** (-pairs / width)  # (L, E / 2)
    working = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(working), angles.sin().to(working)
    left, right = x.to(working).chunk(2, -1)  # (B, H, L, E / 2) each
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)
