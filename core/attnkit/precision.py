"""How large an error of rounding may be: the units by which swaps and the suite judge.

    unit of attention = (P|V|) (2u + s (8 + 4 sigma)) + floor

P|V| is the attention over absolute values, sigma bounds the logits of a row, u is the rounding
unit of the dtype, s that of the sums inside, which are float32's, and float64's for float64. In
these units correct code stays below 1, measured in every dtype.

    probe unit of any function = u |f| + root mean square of f(x (1 + u xi)) - f(x)

asks, in float64, how far the output moves when all inputs move by rounding; it presumes nothing of
the function. Measured, correct code stays under 1.8 of it in half precision and under 60 in
float32, whose sums are longer than the noise of the inputs shows; the gates are 3 and 256.

Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, sections 3.1 and 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

LOW = (torch.bfloat16, torch.float16)
PROBES = 8

FLOAT32_INSIDE = float(torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps)
"""How many times larger rounding is where something of float64 is computed in float32."""


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


def forward_gate(dtype: torch.dtype) -> float:
    """Return the largest probe-unit error of a correct forward."""
    return 3.0 if dtype in LOW else 256.0


def noise(
    function: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    inputs: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    probes: int = PROBES,
    together: bool = False,
    within: AbstractContextManager[object] | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return every result of f in float64 with its probe unit u|f| + s.

        s**2 = mean over probes and the last axis of (f(x (1 + u xi)) - f(x))**2, xi ~ U(-1, 1)

    Args:
        function: The definition, in float64: named tensors in, named tensors out.
        inputs: Its tensors; every one is disturbed.
        dtype: Whose roundoff u is.
        probes: How many disturbed evaluations.
        together: Evaluate all probes as one call, one behind the other along the first axis;
            for functions that treat samples alike.
        within: What disturbed evaluations run in, unless they are one call with the exact one.
    """
    points = _disturbed(inputs, roundoff(dtype), probes)  # (1 + probes, *shape) each
    if together:
        joined = function({name: each.flatten(0, 1) for name, each in points.items()})
        results = {n: torch.unflatten(each, 0, (1 + probes, -1)) for n, each in joined.items()}
    else:
        each_by_itself = [function({name: each[0] for name, each in points.items()})]
        with within or nullcontext():
            each_by_itself += [
                function({name: each[i] for name, each in points.items()})
                for i in range(1, 1 + probes)
            ]
        results = {n: torch.stack([each[n] for each in each_by_itself]) for n in each_by_itself[0]}
    found = {}
    for name, result in results.items():
        exact, moved = result[0], result[1:]
        spread = (moved - exact).square().mean(0).mean(-1, keepdim=True).sqrt()
        found[name] = exact, roundoff(dtype) * exact.abs() + spread + smallest(dtype)
    return found


def _disturbed(inputs: Mapping[str, Tensor], u: float, probes: int) -> dict[str, Tensor]:
    """Return x in float64 and, behind it, x (1 + u xi) of every probe, along a new first axis."""
    count = sum(tensor.numel() for tensor in inputs.values())
    draw = torch.Generator().manual_seed(0)
    noise = 2 * torch.rand(probes, count, generator=draw, dtype=torch.float64) - 1
    parts = noise.split_with_sizes([tensor.numel() for tensor in inputs.values()], 1)
    disturbed = {}
    for (name, tensor), xi in zip(inputs.items(), parts, strict=True):
        point = tensor.detach().double()
        moved = point * (1 + u * xi.reshape(probes, *tensor.shape).to(point.device))
        disturbed[name] = torch.cat((point[None], moved))
    return disturbed


def worst(out: Tensor, truth: Tensor, unit: Tensor, rows: Tensor) -> float:
    """Return the largest error in units over some rows; inf if one is not finite."""
    errors = ((out.double() - truth).abs() / unit).masked_fill(~rows, 0.0)
    return float(errors.nan_to_num(nan=float("inf")).amax()) if errors.numel() else 0.0


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
