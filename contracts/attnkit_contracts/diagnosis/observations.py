"""One call of a subject, beside what the right definition and mistaken ones make of it.

`faults` and `diagnosis` are built on `observe`, `expected` and `explains`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from attnkit_contracts.inputs.calls import showing_weights
from attnkit_contracts.judging import units
from attnkit_contracts.subjects.target import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from attnkit_contracts.definitions.mistakes.mistake import Mistake
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.judging.outputs import Bound
    from attnkit_contracts.subjects.subject import Subject

PROBES = 4
CLEARLY = 4.0
"""How many times nearer to a mistake than to the right definition an explained output is."""

FEW = 8
"""Fewer elements than this say nothing about a common factor."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with one call.

    Attributes:
        kind: ``values``, ``not finite``, ``shape``, ``dtype``, ``write``, ``no gradient`` or
            ``raises`` and an error's name.
        name: ``out``, ``state``, ``gradient of`` an input; of a write, the input.
        got: What came; None where the call raised.
        limit: What should have come; None where the call raised.
        told: What an error said, or which shape or dtype came.
        written: The inputs that were written to.
    """

    kind: str
    name: str = "out"
    got: Tensor | None = None
    limit: Bound | None = None
    told: str = ""
    written: tuple[str, ...] = ()

    @property
    def beyond(self) -> Tensor | None:
        """Which elements are off by more than the gate; None where none is, or none can be told."""
        if self.got is None or self.limit is None or self.got.shape != self.limit.exact.shape:
            return None
        wrong = self.limit.beyond(self.got)
        return wrong if wrong.any() else None

    @property
    def error(self) -> float:
        """In units of the gate: above 1 is wrong."""
        if self.got is None or self.limit is None or self.got.shape != self.limit.exact.shape:
            return float("inf")
        got, exact = self.got, self.limit.exact
        if not exact.isfinite().all():
            # a mistaken definition may be NaN, and then must be so in the same places
            same = exact.isnan() & got.isnan()
            got, exact = torch.where(same, 0.0, got), torch.where(same, 0.0, exact)
        unit = self.limit.unit.nan_to_num(1.0)
        return units.error(got, exact, unit)[0] / self.limit.gate


@dataclass(frozen=True)
class Observation:
    """What a subject made of a call.

    Attributes:
        call: As it was before.
        plain: The same with what padding holds set to 0.
        got: ``out``, and ``state`` of a recurrence.
        kept: (B, H, L, S), which probabilities dropout kept; None without dropout.
        error: What was raised instead.
        written: The inputs that are not what they were before.
    """

    call: Call
    plain: Call
    got: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None
    error: Exception | None = None
    written: tuple[str, ...] = ()


def in_float32(subject: Subject, seen: Observation) -> bool:
    """Return whether a float64 output is right, but no better than one of float32."""
    if subject.dtype != torch.float64:
        return False
    return _distance(seen, expected(subject, seen, dtype=torch.float32)) <= 1


def observe(subject: Subject, call: Call) -> Observation:
    """Call a subject; what it raises is an observation too."""
    if call.extras.get("dropout_p"):
        # the output then shows what was dropped
        call = showing_weights(call)
    before = call.map(lambda _, tensor: tensor.detach().clone())
    plain = subject.without_padding(before)
    # tensors that cannot lie so are no fault of the subject
    call.arguments()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # one that is written to, and returned, must outlive that this is undone
            found: dict[str, Any] = dict(subject.outputs(call))
            got = {n: t.clone() if isinstance(t, torch.Tensor) else t for n, t in found.items()}
    # whatever a stranger's code raises is what we look for
    except Exception as error:
        return Observation(before, plain, error=error)
    finally:
        written = _restored(call, before)
    kept = got["out"] != 0 if call.extras.get("dropout_p") else None
    # a mistake may read the padding, the right definition does not
    seen = before if is_finite(before) else plain
    return Observation(seen, plain, got, kept, written=written)


@torch.no_grad()
def _restored(call: Call, before: Call) -> tuple[str, ...]:
    """Undo what was written to a call's tensors; return which of them were."""
    written = []
    for name, tensor in call.tensors.items():
        was = before.tensors[name]
        if not ((tensor == was) | (tensor.isnan() & was.isnan())).all():
            written.append(name)
            tensor.copy_(was)
    return tuple(written)


def is_finite(call: Call) -> bool:
    """Return whether all that a call is given is finite, but for a bias, which may hide keys."""
    legal = {name: tensor.isfinite() for name, tensor in call.tensors.items()}
    if "bias" in legal:
        legal["bias"] |= call.tensors["bias"] == float("-inf")
    return all(bool(each.all()) for each in legal.values())


def expected(
    subject: Subject, seen: Observation, rules: Any = None, *, dtype: torch.dtype | None = None
) -> dict[str, Bound]:
    """Return what a definition makes of an observed call, and the unit of errors.

    Without the rules of a mistake it is the right one, without a dtype the unit is the subject's.

    Raises:
        InconclusiveError: There is no definition.
    """
    call = seen.plain if rules is None else seen.call
    how = Reading(subject.steps if rules is None else rules, seen.kept, dtype, PROBES)
    return subject.bounds(call, how=how)


@torch.no_grad()
def outputs(subject: Subject, seen: Observation, rules: Any = None) -> dict[str, Tensor]:
    """Return what a definition gives for an observed call, without the unit of errors."""
    call = seen.plain if rules is None else seen.call
    return subject.definition(call, subject.steps if rules is None else rules)(call.tensors)


def gain(fault: Fault) -> float | None:
    """Return c if the output is c times the right one, within the gate; None if it is not."""
    if fault.got is None or fault.limit is None or fault.kind != "values":
        return None
    exact, got = fault.limit.exact.flatten(), fault.got.double().flatten()
    if not exact.square().sum() or exact.numel() < FEW:
        return None
    factor = float((got * exact).sum() / exact.square().sum())
    unit = fault.limit.unit.broadcast_to(fault.limit.exact.shape)
    again = units.error(fault.got, factor * fault.limit.exact, unit)[0] / fault.limit.gate
    return factor if again <= 1 and again * CLEARLY <= fault.error else None


def explains(
    mistake: Mistake[Any], subject: Subject, call: Call, dtype: torch.dtype | None = None
) -> bool:
    """Return whether a call's output is a mistake's, and clearly not the right one."""
    seen = observe(subject, call)
    return seen.error is None and explainer(subject, seen, dtype)(mistake)


def explainer(
    subject: Subject, seen: Observation, dtype: torch.dtype | None = None
) -> Callable[[Mistake[Any]], bool]:
    """Return what says whether a mistake gives this output, and the right definition clearly not.

    How far the output is from the right one is measured once, for all mistakes.
    """
    limits, most = expected(subject, seen, dtype=dtype), None
    if subject.may_cancel:
        # units are dear: they are asked for only of what is nearer than the right definition
        most = _off(seen, {name: limit.exact for name, limit in limits.items()})
    right = _distance(seen, limits)

    def explained(mistake: Mistake[Any]) -> bool:
        if right <= 1:
            return False
        wrong = _nearest(mistake, subject, seen, dtype, most)
        return wrong <= 1 and wrong * CLEARLY <= right

    return explained


def _off(seen: Observation, exact: Mapping[str, Tensor]) -> float:
    """Return the largest error of an output; infinite where shapes or finiteness disagree."""
    return max(
        float((seen.got[name].double() - each).abs().nan_to_num(torch.inf).max())
        if seen.got[name].shape == each.shape and each.numel()
        else float("inf")
        for name, each in exact.items()
    )


def is_consistent(
    mistake: Mistake[Any], subject: Subject, seen: Observation, dtype: torch.dtype | None = None
) -> bool:
    """Return whether an output, right or wrong, is one that this mistake gives."""
    return _nearest(mistake, subject, seen, dtype) <= 1


def is_right(subject: Subject, seen: Observation, dtype: torch.dtype | None = None) -> bool:
    """Return whether an output is the right definition's."""
    return _distance(seen, expected(subject, seen, dtype=dtype)) <= 1


def _nearest(
    mistake: Mistake[Any],
    subject: Subject,
    seen: Observation,
    dtype: torch.dtype | None,
    most: float | None = None,
) -> float:
    """Return the distance to the nearest of a mistake's definitions that are off by less."""
    readings = [seen]
    if subject.sees_emptied and seen.call is not seen.plain:
        # attnkit empties padding before the operation sees it
        readings.append(replace(seen, call=seen.plain))
    return min(
        (
            _distance(seen, expected(subject, reading, definition, dtype=dtype))
            for reading in readings
            for definition in mistake.definitions
            if most is None or _off(seen, _exact(subject, reading.call, definition)) < most
        ),
        default=float("inf"),
    )


def _exact(subject: Subject, call: Call, rules: Any) -> Mapping[str, Tensor]:
    return subject.definition(call, rules)({n: t.double() for n, t in call.tensors.items()})


def _distance(seen: Observation, limits: Mapping[str, Bound]) -> float:
    """Return the largest error in gates; infinite where shapes or finiteness disagree."""
    return max(Fault("", name, seen.got[name], limit).error for name, limit in limits.items())
