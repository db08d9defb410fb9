"""Trials of variants that are no softmax attention: beside the model's own function, measured.

The counterparts of `attnkit.swaps.outputs.Trial` and ``Noisy``; `attnkit.swaps.recurrence_site` and
`attnkit.swaps.feedforward_site` have the units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from attnkit.choice.decision import choose
from attnkit.drift import Drift
from attnkit.errors import AttnkitError
from attnkit.operations.recurrence import layout_of, problem_of_recurrence
from attnkit.swaps.feedforward_site import Expert, Layered, definition, unit
from attnkit.swaps.outputs import Noisy
from attnkit.swaps.receipts import SiteReceipt

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.swaps.feedforward_site import Passage, Routing, Weights
    from attnkit.swaps.plan import Assignment
    from attnkit.swaps.recurrence_site import Carrying, Span, Step

BOUND = 3.0
"""Largest error of a correct implementation, in units; see `attnkit.swaps.outputs`."""


@dataclass
class _Measured:
    """What a trial finds out.

    Attributes:
        refusals: Why the variant cannot take what arrived.
        units: What noise of one unit is, by call.
    """

    assignment: Assignment
    refusals: list[str] = field(default_factory=list)
    units: list[Tensor] = field(default_factory=list)
    implementations: dict[str, None] = field(default_factory=dict)
    error_before: float = 0.0
    error_after: float = 0.0
    drift: Drift = field(default_factory=Drift)

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
            allowed=BOUND,
            rows_left_out=0,
            drift=self.drift.share(),
        )

    def refuse(self, error: Exception) -> None:
        """Note a refusal; whatever a plugin raises is one."""
        self.refusals.append(str(error) if isinstance(error, AttnkitError) else repr(error))

    def fits(self, own: Tensor, after: Tensor) -> bool:
        """Note a refusal unless two outputs have one shape."""
        if after.shape == own.shape:
            return True
        self.refusals.append(
            f"output: needs {tuple(own.shape)}, got {tuple(after.shape)} from "
            f"{self.assignment.variant.name!r}"
        )
        return False


@dataclass(kw_only=True)
class RecurrentTrial(_Measured):
    """A mixer that answers with the model's own function, and tries a recurrence beside it.

    Attributes:
        replaces: The model's cache keeps keys and values meanwhile.
    """

    mixer: Carrying
    replaces: bool = False

    def __call__(self, request: Span) -> Tensor:
        """Answer as the model would, and measure."""
        own = request.own(request.query, request.key, request.value, slice(None))
        unit = own.new_zeros(1)
        mixer = self.mixer
        try:
            step = mixer.step(request)
            self.implementations[self._chosen(step)] = None
            after, memory = step.run(mixer.variant, mixer.implementation, mixer.fallback)
        except Exception as error:
            self.refuse(error)
        else:
            if self.fits(own, after):
                unit = self._measure(request, step, own, after)
            step.keep(memory)
        self.units.append(unit)
        return own

    def noisy(self, generator: torch.Generator) -> Noisy:
        """Return a mixer that answers as the model would, with noise of up to one unit."""
        return Noisy(self.units, generator, replaces=False)

    def _chosen(self, step: Step) -> str:
        given, mixer = step.inputs, self.mixer
        state = given.value if step.before is None else step.before.memory
        problem = problem_of_recurrence(
            given.query,
            given.key,
            given.value,
            given.log_decay,
            None,
            given.scale,
            step.mask,
            state,
        )
        return choose(mixer.variant, problem, mixer.implementation, mixer.fallback).key

    def _measure(self, request: Span, step: Step, own: Tensor, after: Tensor) -> Tensor:
        """Note the error and the drift; return the root mean square unit of every row."""
        wide = step.widened(self.mixer.module, request)
        truth, _ = wide.run(self.mixer.variant, "reference")
        info = torch.finfo(after.dtype)
        scale = wide.absolute() * (info.eps + 16 * 2.0**-24) + info.smallest_normal * info.eps
        seen = 0 if step.before is None else step.before.tokens
        keep = layout_of(step.mask, own.shape[0], seen, own.shape[2]).keep
        real = torch.ones_like(own[..., :1], dtype=torch.bool)
        real = real if keep is None else keep[:, None, :, None]
        self.error_after = max(self.error_after, _worst(after, truth, scale, real))
        self.drift.add(own, after, real)
        return (scale * real).square().mean(-1, keepdim=True).sqrt().to(own.dtype)


@dataclass(kw_only=True)
class FeedforwardTrial(_Measured):
    """A mixer that answers with the model's own module, and tries a variant beside it."""

    mixer: Layered | Expert

    def __call__(self, request: Passage) -> Tensor:
        """Answer as the model would, and measure."""
        own = request.own(request.x.dtype)
        try:
            self.implementations[self.mixer.chosen(request)] = None
            after = self.mixer(request)
            meant = self._meant(request)
        except Exception as error:
            self.refuse(error)
            self.units.append(own.new_zeros(1))
        else:
            if self.fits(own, after):
                self._measure(request, own, after, *meant)
            else:
                self.units.append(own.new_zeros(1))
        return own

    def noisy(self, generator: torch.Generator) -> _NoisyPassage:
        """Return a mixer that answers as the model would, with noise of up to one unit."""
        return _NoisyPassage(self.units, generator)

    def _meant(self, request: Passage) -> tuple[Tensor, Routing | None, Weights]:
        """Return what should come out, in float64, and what it is made of."""
        mixer, x = self.mixer, request.x
        if isinstance(mixer, Expert) or self.assignment.relation == "exact":
            return request.own(torch.float64), request.routing, request.weights()
        routing, weights = mixer.decided(request)
        return definition(x.flatten(0, -2), weights, routing).view(x.shape), routing, weights

    def _measure(
        self,
        request: Passage,
        own: Tensor,
        after: Tensor,
        truth: Tensor,
        routing: Routing | None,
        weights: Weights,
    ) -> None:
        x, kind = request.x.flatten(0, -2), own.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else own.dtype
        size = unit(x, weights, routing, dtype).view(own.shape)
        real = torch.ones_like(own[..., :1], dtype=torch.bool)
        self.error_before = max(self.error_before, _worst(own, truth, size, real))
        self.error_after = max(self.error_after, _worst(after, truth, size, real))
        self.units.append(size.square().mean(-1, keepdim=True).sqrt().to(own.dtype))
        self.drift.add(own, after, real)


@dataclass
class _NoisyPassage:
    units: list[Tensor]
    generator: torch.Generator
    calls: int = 0

    def __call__(self, request: Passage) -> Tensor:
        own = request.own(request.x.dtype)
        size = self.units[self.calls % len(self.units)].to(own.dtype)
        self.calls += 1
        noise = torch.rand(own.shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        return own + noise.to(own) * size


def _worst(out: Tensor, truth: Tensor, size: Tensor, real: Tensor) -> float:
    """Return the largest error in units over the rows that count; inf if one is not finite."""
    errors = ((out.double() - truth).abs() / size).masked_fill(~real, 0.0)
    return float(errors.nan_to_num(nan=math.inf).amax()) if errors.numel() else 0.0
