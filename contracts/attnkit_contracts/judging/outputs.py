"""How outputs are compared: with the definition's answer, with each other, and bit by bit."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from attnkit import precision
from attnkit_contracts.catalogue import BrokenError, InconclusiveError, Measured
from attnkit_contracts.inputs.cuts import sizes_of
from attnkit_contracts.judging import units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call

    Estimate = Callable[[int], Mapping[str, tuple[Tensor, Tensor]]]


Index = Any
"""What a tensor can be indexed with."""

BETTER = 8
"""How many times as many probes a better estimate takes."""

FAR = 8
"""An estimate from a few probes is not so many times too low."""

Place = tuple[int, ...]

TOLD = {"out": "the output", "state": "the final state"}
"""What is said for the names of outputs."""


def gradient_of(name: str) -> str:
    """Return what the gradient of a tensor is called among the results of a call."""
    return f"gradient of {name}"


def told(name: str) -> str:
    """Say which result of a call this is."""
    return TOLD.get(name, f"the {name}")


class Bound(NamedTuple):
    """The definition's answer and how large an error of it may be.

    Attributes:
        exact: float64, shaped as the output.
        unit: Of the error, shaped as the output or broadcasting to it.
        gate: How many units pass.
        name: Of the unit.
        better: Estimates the unit from more probes; None for a unit that is no estimate, or the
            best there is.
    """

    exact: Tensor
    unit: Tensor
    gate: float
    name: str
    better: Callable[[], Tensor] | None = None

    def beyond(self, got: Tensor) -> Tensor:
        """Return which elements are off by more than the gate; NaN always is."""
        off = (got.double() - self.exact).abs() / self.unit
        return ~(off <= self.gate)

    def only(self, counts: Tensor) -> Bound:
        """Return the bound of some rows; the others, (B, 1, L, 1) False, may be anything."""
        better = self.better
        return self._replace(
            unit=torch.where(counts, self.unit, torch.inf),
            better=better and (lambda: torch.where(counts, better(), torch.inf)),
        )


def estimated(estimate: Estimate, gate: float, probes: int) -> dict[str, Bound]:
    """Return the bound of every result whose unit is estimated from probes.

    Args:
        estimate: The definition's results and their units, by name, from so many probes.
        gate: How many units pass.
        probes: How many are enough for what is nowhere near the gate.
    """
    again = functools.cache(lambda: estimate(BETTER * probes))

    def better(name: str) -> Tensor:
        return again()[name][1]

    return {
        name: Bound(exact, unit, gate, "probe units", functools.partial(better, name))
        for name, (exact, unit) in estimate(probes).items()
    }


def probed(
    definition: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    inputs: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    grads: Mapping[str, Tensor] | None = None,
    gate: float | None = None,
    probes: int | None = None,
    together: bool = False,
    rounds: bool = False,
) -> dict[str, Bound]:
    """Return the bound of every output of a definition, and of every gradient, by name.

    Args:
        definition: In float64: named tensors in, named outputs out.
        inputs: Its tensors.
        dtype: Whose roundoff the units are of.
        grads: The gradients of its outputs, by name; None for no gradients.
        gate: How many units of an output pass; None for what is usual in this dtype.
        probes: How many disturbed evaluations a unit is of; None for what is usual.
        together: Whether the definition treats samples alike; see `precision.noise`.
        rounds: Whether each of its operations is off, too; see `units.Rounding`.
    """

    @torch.no_grad()
    def estimate(probes: int) -> dict[str, tuple[Tensor, Tensor]]:
        found, gradients = units.whole_noise(
            definition,
            inputs,
            grads or {},
            dtype,
            probes=probes,
            together=together,
            rounds=rounds,
        )
        return {**found, **{gradient_of(name): each for name, each in gradients.items()}}

    probes = probes or (units.GRADIENT_PROBES if grads else precision.PROBES)
    limits = estimated(estimate, gate or precision.forward_gate(dtype), probes)
    backward = units.backward_gate(dtype)
    of_gradients = {
        name: limits[name]._replace(gate=backward)
        for name in map(gradient_of, inputs if grads else ())
    }
    return {**limits, **of_gradients}


def near(limit: Bound, got: Tensor, where: str = "") -> Measured:
    """Measure the error of an output."""
    if got.shape != limit.exact.shape:
        raise BrokenError(
            f"expected shape {tuple(limit.exact.shape)}, got {tuple(got.shape)} {where}"
        )
    value, place = _error(limit, limit.gate, got, limit.exact)
    return Measured(value, limit.gate, limit.name, f"{where} {place}".strip())


def agree(limit: Bound, one: Tensor, other: Tensor, where: str = "") -> Measured:
    """Measure how far two outputs are apart that may each be off by the gate."""
    if one.shape != other.shape:
        raise BrokenError(f"expected shape {tuple(one.shape)}, got {tuple(other.shape)} {where}")
    value, place = _error(limit, 2 * limit.gate, one, other)
    return Measured(value, 2 * limit.gate, limit.name, f"{where} {place}".strip())


def _error(limit: Bound, gate: float, got: Tensor, wanted: Tensor) -> tuple[float, Place]:
    """Return the largest error in units, and where it is.

    Nothing is red for a unit that a few probes put too low by chance: what is beyond the gate, and
    not far beyond it, is measured again with a better estimate.
    """
    value, place = units.error(got, wanted, limit.unit)
    if limit.better is not None and gate < value <= FAR * gate:
        return units.error(got, wanted, limit.better())
    return value, place


def relative_error(
    dtype: torch.dtype, got: Tensor, wanted: float, terms: int, where: str
) -> Measured:
    """Measure a relative error in roundoffs: ``terms`` of the sums, four of the output."""
    unit = terms * precision.accumulation(dtype) + 4 * precision.roundoff(dtype)
    off = (got.double() - wanted).abs() / abs(wanted) / unit
    value = float(off.max()) if off.isfinite().all() else float("inf")
    return Measured(value, 1.0, f"of {unit:.3g} relative", where)


def part(limit: Bound, index: tuple[Index, ...]) -> Bound:
    """Return the bound of a part of the output."""
    shape, better = limit.exact.shape, limit.better
    return limit._replace(
        exact=limit.exact[index],
        unit=limit.unit.broadcast_to(shape)[index],
        better=None if better is None else lambda: better().broadcast_to(shape)[index],
    )


def worst(measured: Iterable[Measured]) -> Measured:
    """Return what is nearest to its threshold, or beyond it the most.

    Raises:
        InconclusiveError: Nothing was measured.
    """
    found = list(measured)
    if not found:
        raise InconclusiveError("no case of this check fits the promises")
    return max(found, key=_share)


def _share(measured: Measured) -> float:
    if measured.value != measured.value:
        return float("inf")
    return measured.value / measured.threshold if measured.threshold else measured.value


def exactly(count: int, unit: str) -> Measured:
    """Return what an exact check found: it may count nothing wrong, ever."""
    return Measured(float(count), 0.0, unit)


def same_bits(one: Tensor, other: Tensor, what: str) -> None:
    """Raise `BrokenError` unless two tensors are equal to the last bit."""
    if one.shape != other.shape or one.dtype != other.dtype:
        raise BrokenError(
            f"{what}: {tuple(one.shape)} {one.dtype} != {tuple(other.shape)} {other.dtype}"
        )
    different = ~((one == other) | (one.isnan() & other.isnan()))
    if different.any():
        place = tuple(int(i) for i in different.nonzero()[0])
        raise BrokenError(
            f"{what}: {int(different.sum())} of {one.numel()} elements changed, the first at "
            f"{place}: {one[place].item():.6g} became {other[place].item():.6g}",
            value=float(different.sum()),
        )


def must_differ(one: Tensor, other: Tensor, what: str) -> None:
    """Raise `InconclusiveError` if a change changed nothing: then a test of it proves nothing."""
    if torch.equal(one, other):
        raise InconclusiveError(f"{what} changed nothing, so the check proves nothing")


def must_be_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise `BrokenError` if anything is NaN or infinite."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BrokenError(f"{what}: {name} is not finite")


def gradients(
    function: Callable[[Call], Tensor], call: Call, grad_out: Tensor
) -> dict[str, Tensor]:
    """Return the gradient of every tensor of a call; one that gets none is `BrokenError`."""
    return with_gradients(function, call, grad_out)[1]


def with_gradients(
    function: Callable[[Call], Tensor], call: Call, grad_out: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output of a call, and its `gradients`."""
    leaves = call.leaves()
    with torch.enable_grad():
        out = function(leaves)
        if not out.requires_grad:
            raise BrokenError("the output does not require gradients although every input does")
        return out.detach(), received(out, leaves.tensors, grad_out.to(out))


def received(out: Tensor, leaves: Mapping[str, Tensor], grad_out: Tensor) -> dict[str, Tensor]:
    """Return the gradients that leaves get."""
    found = torch.autograd.grad(out, list(leaves.values()), grad_out, allow_unused=True)
    return named_gradients(leaves, found)


def named_gradients(names: Iterable[str], found: Iterable[Tensor | None]) -> dict[str, Tensor]:
    """Return gradients by name; one that is missing is `BrokenError`."""
    got: dict[str, Tensor] = {}
    for name, gradient in zip(names, found, strict=True):
        if gradient is None:
            raise BrokenError(f"{name} got no gradient, not even zero")
        got[name] = gradient
    return got


def output_shape(call: Call) -> tuple[int, ...]:
    """Return the shape that the output must have."""
    if "x" in call.tensors:
        return tuple(call.tensors["x"].shape)
    batch, heads, queries, _ = sizes_of(call)
    return batch, heads, queries, call.tensors["value"].shape[3]
