"""Does a swapped model compute what it should? Measured at every site, then at the outputs.

At a site, on the query, key and value that reach it, the variant's output o is compared with o*,
a float64 run (of the model's own function for an exact swap, of the variant's reference
otherwise), in units of what rounding may do:

    unit = (P|V|) (2u + 2^-24 (8 + 4 sigma)) + tiny,    error = max |o - o*| / unit

u is the rounding unit of the dtype, P|V| the same attention over absolute values, sigma bounds a
row's logits; float32 sums are assumed inside. Correct code stays below 1, the conformance suite
allows 2; the model's own float64 run may add 1, since most libraries round their softmax to
float32. Hence `SITE_BOUND` = 3.

At an output y, noise of up to one unit is put on the result of every site, in runs of its own;
s is the root mean square of what that does to a row of y, against the run in which every site
answers with the model's own function: what a host computes around the sites, other than the model
does, is no noise. Before and after differ at a site by at
most R = error before + error after units, that is sqrt(3) R root mean squares of the noise.
Rounding between the sites is drawn anew by any change, as it is by the noise: R counts as at least
1. The largest of n values that are each a sum of many such errors lies below sqrt(2 ln 2n) root
mean squares; s itself is known to about a factor 2 from few runs:

    moved = max |y' - y| / (u |y| + s)  <=  2 sqrt(3) max(1, R) sqrt(2 ln 2n)

A mistake in the mathematics is thousands of units at its site in float32, and is found there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from attnkit.drift import Drift
from attnkit.errors import AttnkitError
from attnkit.masks.constructors import Sizes, dense, full
from attnkit.sites import Call
from attnkit.swaps.receipts import OutputReceipt, SiteReceipt
from attnkit.swaps.softmax_site import Running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from attnkit.sites import Mixer, Request
    from attnkit.swaps.plan import Assignment

SITE_BOUND = 3.0
NOISE_RUNS = 4
_ELEMENTS = 1 << 24
"""How many logits a float64 run may hold at a time."""


@dataclass
class Trial:
    """A mixer that answers with the model's own function, and tries the variant beside it.

    Attributes:
        refusals: Why the variant cannot take what arrived.
        units: Root mean square unit of every row (B, H, L, 1), by call.
    """

    assignment: Assignment
    refusals: list[str] = field(default_factory=list)
    units: list[Tensor] = field(default_factory=list)
    implementations: dict[str, None] = field(default_factory=dict)
    error_before: float = 0.0
    error_after: float = 0.0
    rows_left_out: int = 0
    drift: Drift = field(default_factory=Drift)

    def __call__(self, request: Request) -> Tensor:
        """Answer as the model would, and measure."""
        own = request.own(request.query, request.key, request.value, slice(None))
        running = Running.of(self.assignment)
        try:
            call = running.narrowed(request.call())
            self.implementations[running.chosen(call)] = None
            after = running(request)
        # each refusal is reported, and whatever a plugin raises is one
        except Exception as error:
            told = str(error) if isinstance(error, AttnkitError) else repr(error)
            self.refusals.append(told)
            self.units.append(own.new_zeros(1))
        else:
            self._measure(request, call, own, after)
        return own

    def receipt(self) -> SiteReceipt:
        """Return what was measured."""
        site, exact = self.assignment.site, self.assignment.relation == "exact"
        return SiteReceipt(
            path=site.path,
            layer=site.layer,
            variant=self.assignment.variant.name,
            relation=self.assignment.relation,
            implementations=tuple(self.implementations),
            calls=len(self.units),
            error_before=self.error_before if exact else None,
            error_after=self.error_after,
            allowed=SITE_BOUND,
            rows_left_out=self.rows_left_out,
            drift=self.drift.share(),
        )

    def noisy(self, generator: torch.Generator) -> Noisy:
        """Return a mixer that answers as the model would, with noise of up to one unit."""
        return Noisy(self.units, generator)

    def _measure(self, request: Request, call: Call, own: Tensor, after: Tensor) -> None:
        if (after.shape, after.dtype) != (own.shape, own.dtype):
            self.refusals.append(
                f"output: needs {tuple(own.shape)} {own.dtype}, got {tuple(after.shape)} "
                f"{after.dtype} from {self.assignment.variant.name!r}"
            )
            self.units.append(own.new_zeros(1))
            return
        sizes = _sizes(call)
        seen = call.mask.to_bool(sizes, call.query.device).expand(sizes.batch, -1, -1, -1)
        counts = seen.any(dim=-1, keepdim=True)  # (B, 1 or H, L, 1), rows that see a key
        self.rows_left_out += int((~counts).sum()) * (sizes.heads // counts.shape[1])
        self.drift.add(own, after, counts)
        rows = []
        for part in _parts(sizes):
            truth, spread = self._truth(request, call, part)
            unit = _unit(_cut(call, part), seen[part], spread, own.dtype)
            self.error_before = max(self.error_before, _worst(own[part], truth, unit, counts[part]))
            self.error_after = max(self.error_after, _worst(after[part], truth, unit, counts[part]))
            rows.append((unit * counts[part]).square().mean(-1, keepdim=True).sqrt().to(own.dtype))
        self.units.append(torch.cat(rows))

    def _truth(self, request: Request, call: Call, part: slice) -> tuple[Tensor, Tensor]:
        """Return o* and P|V| of some samples, in float64."""
        if self.assignment.relation == "exact":
            tensors = (request.query, request.key, request.value)
            query, key, value = (tensor[part].double() for tensor in tensors)
            return request.own(query, key, value, part), request.own(query, key, value.abs(), part)
        running, wide = Running.of(self.assignment), _cut(call, part)
        positive = replace(wide, value=wide.value.abs())
        return running.attend(wide, "reference"), running.attend(positive, "reference")


@dataclass
class Noisy:
    """A mixer that answers with the model's own function plus noise of up to one unit.

    Attributes:
        replaces: False where a recurrence stood, which needs the host to keep its state.
    """

    units: list[Tensor]
    generator: torch.Generator
    calls: int = 0
    replaces: bool | None = None

    def __call__(self, request: Request) -> Tensor:
        """Answer as the model would, with noise."""
        own = request.own(request.query, request.key, request.value, slice(None))
        unit = self.units[self.calls % len(self.units)].to(own.dtype)
        self.calls += 1
        noise = torch.rand(own.shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        return own + noise.to(own) * unit


@dataclass
class Counting:
    """A mixer that counts the calls of another one."""

    mixer: Mixer
    calls: int = 0

    @property
    def replaces(self) -> bool | None:
        """What a mixer with a state says, see `recurrence_site.Carrying`; else None."""
        found: bool | None = getattr(self.mixer, "replaces", None)
        return found

    def __call__(self, request: Any) -> Tensor:
        """Count and pass on."""
        self.calls += 1
        return self.mixer(request)


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
        noise: What noise at the sites does to them, from `apart`; empty unless the swap is exact.
        sites: What was measured at the sites.
    """
    told = []
    for name, old in before.items():
        difference = apart(after[name], old)
        scale = old.double().square().mean().sqrt()
        moved = allowed = None
        if noise:
            squares = torch.stack([run[name].square() for run in noise])
            spread = squares.mean(dim=(0, -1)).sqrt()[..., None]  # (..., 1)
            unit = _roundoff(old.dtype) * old.double().abs() + spread + _smallest(old.dtype)
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


def _sizes(call: Call) -> Sizes:
    batch, heads, queries, _ = call.query.shape
    return Sizes(batch, heads, queries, call.key.shape[2])


def _parts(sizes: Sizes) -> Iterator[slice]:
    """Cut the batch so that a float64 run of a part stays small."""
    step = max(1, _ELEMENTS // max(1, sizes.heads * sizes.queries * sizes.keys))
    starts = range(0, sizes.batch, step)
    yield from (slice(start, min(start + step, sizes.batch)) for start in starts)


def _cut(call: Call, part: slice) -> Call:
    """Return some samples of a call, in float64; what differs by sample becomes a dense mask."""
    sizes = _sizes(call)
    mask = call.mask
    if part != slice(0, sizes.batch):
        mask = full()
        for each in call.mask.conjuncts():
            one = dense(each.to_bool(sizes, call.query.device)[part]) if each.per_batch else each
            mask = mask & one
    bias = call.bias
    if bias is not None:
        bias = bias.double()
        bias = bias[part] if bias.dim() == 4 and bias.shape[0] > 1 else bias
    return Call(
        query=call.query[part].double(),
        key=call.key[part].double(),
        value=call.value[part].double(),
        mask=mask,
        bias=bias,
        scale=call.scale,
        softcap=call.softcap,
        sinks=None if call.sinks is None else call.sinks.double(),
        dropout_p=call.dropout_p,
        aligned=call.aligned,
    )


def _unit(call: Call, seen: Tensor, spread: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what rounding may do in ``dtype``, (b, H, L, Ev), see the top of this module.

    Args:
        call: Some samples, in float64.
        seen: (b, 1 or H, L, S), which keys are visible.
        spread: P|V|, (b, H, L, Ev).
        dtype: Of the call as it arrived.
    """
    query, key = call.query, call.key
    batch, heads, length, width = query.shape
    grouped = query.abs().reshape(batch, key.shape[1], -1, length, width)
    logits = grouped @ key.abs()[:, :, None].transpose(-1, -2)  # (b, Hkv, H / Hkv, L, S)
    scale = width**-0.5 if call.scale is None else abs(call.scale)
    logits = logits.reshape(batch, heads, length, -1) * scale
    if call.bias is not None:
        logits = logits + call.bias.abs().nan_to_num(posinf=0.0)
    sigma = logits.masked_fill(~seen, 0.0).amax(dim=-1, keepdim=True)  # (b, H, L, 1)
    if call.sinks is not None:
        sigma = torch.maximum(sigma, call.sinks.abs()[:, None, None])
    rate = 2 * _roundoff(dtype) + 2.0**-24 * (8 + 4 * sigma)
    return spread * rate + 4 * _smallest(dtype) * (1 + call.value.abs().amax())


def _worst(out: Tensor, truth: Tensor, unit: Tensor, counts: Tensor) -> float:
    """Return the largest error in units over the rows that count; inf if one is not finite."""
    errors = ((out.double() - truth).abs() / unit).masked_fill(~counts, 0.0)
    return float(errors.nan_to_num(nan=math.inf).amax()) if errors.numel() else 0.0


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _smallest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
