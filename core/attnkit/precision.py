"""How large an error of rounding may be: the units by which swaps and the suite judge.

    unit of attention = (P|V|) (2u + s (8 + 4 sigma)) + floor

P|V| is the attention over absolute values, sigma bounds the logits of a row, u is the rounding
unit of the dtype, s that of the sums inside, which are float32's, and float64's for float64. In
these units correct code stays below 1, measured in every dtype.

Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, sections 3.1 and 4.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def roundoff(dtype: torch.dtype) -> float:
    """Return u, half the distance from 1 to the next number: 2**-8 for bfloat16."""
    return torch.finfo(dtype).eps / 2


def accumulation(dtype: torch.dtype) -> float:
    """Return the roundoff of the sums: float32's, for float64 its own."""
    return roundoff(_sums(dtype))


def smallest(dtype: torch.dtype) -> float:
    """Return what underflow may take: the smallest number, or what sums and exp flush to zero.

    They may flush what is below the normal numbers of the dtype they are in; torch's exp does.
    """
    info = torch.finfo(dtype)
    return max(info.tiny * info.eps, torch.finfo(_sums(dtype)).tiny)


def relative(size: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the relative error of a probability whose logits have this size, shaped as that."""
    return 2 * roundoff(dtype) + accumulation(dtype) * (8 + 4 * size)


def floor(values: Tensor, dtype: torch.dtype) -> float:
    """Return what underflow may do to a sum over values."""
    return 4 * smallest(dtype) * (1 + (float(values.abs().max()) if values.numel() else 0.0))


def of_attention(spread: Tensor, size: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the unit of each output of attention, (B, H, L, Ev).

    Args:
        spread: P|V|, (B, H, L, Ev), float64.
        size: sigma, (B, H, L).
        values: (B, Hkv, S, Ev).
        dtype: Of the call.
    """
    return spread * relative(size, dtype)[..., None] + floor(values, dtype)


def worst(out: Tensor, truth: Tensor, unit: Tensor, rows: Tensor) -> float:
    """Return the largest error in units over some rows; inf if one is not finite."""
    errors = ((out.double() - truth).abs() / unit).masked_fill(~rows, 0.0)
    return float(errors.nan_to_num(nan=float("inf")).amax()) if errors.numel() else 0.0


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
