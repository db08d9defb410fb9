"""Does a swapped model compute what it did? Its outputs, compared with noise at the sites.

`attnkit.swaps.verification.trial` measures every site. At an output y, noise of up to one unit is
put on the result of every site, in runs of its own; s is the root mean square of what that does to
a row of y, against the run in which every site answers with the model's own function: what a host
computes around the sites, other than the model does, is no noise. Before and after differ at a site
by at most R = error before + error after units, that is sqrt(3) R root mean squares of the noise.
Rounding between the sites is drawn anew by any change, as it is by the noise: R counts as at least
1. The largest of n values that are each a sum of many such errors lies below sqrt(2 ln 2n) root
mean squares; s itself is known to about a factor 2 from few runs:

    moved = max |y' - y| / (u |y| + s)  <=  2 sqrt(3) max(1, R) sqrt(2 ln 2n)

A mistake in the mathematics is thousands of units at its site in float32, and is found there.

A model of float64 that rounds to float32 inside, at its sites or around them, absorbs noise of
float64: noise is drawn in units of float32 then, and R counted in those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from attnkit.errors import VerificationError
from attnkit.precision import roundoff, smallest
from attnkit.swaps.receipts import OutputReceipt, SiteReceipt

NOISE_RUNS = 4


def compare_outputs(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    noise: Sequence[Mapping[str, Tensor]],
    sites: list[SiteReceipt],
) -> tuple[OutputReceipt, ...]:
    """Measure how far every output moved.

    Args:
        before: Outputs by name.
        after: The same, after the swap.
        noise: What noise at the sites does to them, see `noise_of`; empty unless the swap is
            exact.
        sites: What was measured at the sites.

    Raises:
        VerificationError: The two have other names or shapes.
    """
    _check_alike(before, after, "after the swap")
    told = []
    for name, old in before.items():
        difference = apart(after[name], old)
        scale = old.double().square().mean().sqrt()
        moved = allowed = None
        if noise:
            squares = torch.stack([run[name].square() for run in noise])
            spread = squares.mean(dim=(0, -1)).sqrt()[..., None]  # (..., 1)
            unit = roundoff(old.dtype) * old.double().abs() + spread + smallest(old.dtype)
            moved = float((difference / unit).amax()) if old.numel() else 0.0
            allowed = output_bound(sites, old.numel())
        told.append(
            OutputReceipt(
                name=name,
                shape=tuple(old.shape),
                largest=float(difference.amax()) if old.numel() else 0.0,
                relative=float(difference.square().mean().sqrt() / scale) if old.numel() else 0.0,
                moved=moved,
                allowed=allowed,
            )
        )
    return tuple(told)


def noise_of(
    noisy: Callable[[torch.Generator], Mapping[str, Tensor]], quiet: Mapping[str, Tensor]
) -> list[Mapping[str, Tensor]]:
    """Return how far noise at the sites moves every output, in a few runs.

    Args:
        noisy: Runs the model with noise drawn from a generator.
        quiet: Its outputs without.

    Raises:
        VerificationError: A run has other names or shapes.
    """
    runs: list[Mapping[str, Tensor]] = []
    for seed in range(NOISE_RUNS):
        outputs = noisy(torch.Generator().manual_seed(seed))
        _check_alike(quiet, outputs, "with noise of a rounding error at its sites")
        runs.append({name: apart(outputs[name], out) for name, out in quiet.items()})
    return runs


def _check_alike(before: Mapping[str, Tensor], after: Mapping[str, Tensor], when: str) -> None:
    """Refuse to compare what differs in more than its numbers."""
    for name in sorted(before.keys() | after.keys()):
        one, other = (
            f"shape {tuple(outputs[name].shape)}" if name in outputs else "no such output"
            for outputs in (before, after)
        )
        if one != other:
            raise VerificationError(
                f"cannot compare the model's output {name!r}: {one}, and {when} {other}; "
                "verify a part of the model whose outputs have the same shapes in every run"
            )


def output_bound(sites: list[SiteReceipt], elements: int) -> float:
    """Return how many noise units an output of so many elements may move."""
    apart = max((site.error_before or 0.0) + site.error_after for site in sites)
    tail = math.sqrt(2 * math.log(2 * max(elements, 1)))
    return 2 * math.sqrt(3) * max(1.0, apart) * max(1.0, tail)


def apart(new: Tensor, old: Tensor) -> Tensor:
    """Return |new - old| in float64: 0 for equal infinities, inf for a NaN on one side."""
    new, old = new.double(), old.double()
    same = (new == old) | (new.isnan() & old.isnan())
    return (new - old).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(same, 0.0)
