"""A variant at a site, tried beside the model's own function and measured before anything changes.

On the tensors that reach the site, the variant's output o is compared with o*, a float64 run (of
the model's own function for an exact swap, of the variant's own definition otherwise), in units of
what rounding may do, which the family says (`attnkit.swaps.families.Measure`):

    error = max |o - o*| / unit

Correct code stays below 1, the conformance suite allows 2; the model's own float64 run may add 1,
since most libraries round their softmax to float32. Hence `SITE_BOUND` = 3; no variant is asked
for a smaller error than that of the model's own function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnkit.errors import AttnkitError, HostError
from attnkit.precision import worst
from attnkit.swaps.receipts import SiteReceipt

if TYPE_CHECKING:
    from attnkit.hosts.protocol import Mixer
    from attnkit.swaps.families import Assignment, Attempt, Standing
    from attnkit.swaps.verification.reach import Further

SITE_BOUND = 3.0


@dataclass
class Drift:
    """Root mean square of the change over that of the layer's own output, over several calls."""

    changed: float = 0.0
    size: float = 0.0

    def add(self, own: Tensor, after: Tensor, rows: Tensor) -> None:
        """Count one call.

        Args:
            own: The layer's own output.
            after: What stands in its place.
            rows: Bool, broadcastable to both: which rows count.
        """
        before = own.double().masked_fill(~rows, 0.0)
        moved = after.double().masked_fill(~rows, 0.0) - before
        self.changed += float(moved.square().sum())
        self.size += float(before.square().sum())

    def share(self) -> float:
        """Return the drift, 0 for no change; inf where the layer's own output is 0."""
        if not self.changed:
            return 0.0
        return math.sqrt(self.changed / self.size) if self.size else math.inf


@dataclass
class Trial:
    """A mixer that answers with the model's own function, and tries the variant beside it.

    Attributes:
        refusals: Why the variant cannot take what arrived.
        units: Root mean square unit of every row, by call.
        first: The first attempt; the calls beyond the sample are like its own.
    """

    assignment: Assignment
    standing: Standing
    refusals: list[str] = field(default_factory=list)
    units: list[Tensor] = field(default_factory=list)
    implementations: dict[str, None] = field(default_factory=dict)
    error_before: float = 0.0
    error_after: float = 0.0
    rows_left_out: int = 0
    drift: Drift = field(default_factory=Drift)
    first: Attempt | None = None

    def __call__(self, request: Any) -> Tensor:
        """Answer as the model would, and measure."""
        if not isinstance(request, self.standing.takes):
            raise HostError(self._unfit(request))
        own = self.standing.own(request)
        unit = own.new_zeros(1)
        try:
            attempt = self.standing.attempt(request, exact=self.exact)
        # each refusal is reported, and whatever a plugin raises is one
        except Exception as error:
            self.refusals.append(str(error) if isinstance(error, AttnkitError) else repr(error))
        else:
            self.implementations[attempt.chosen] = None
            if self._fits(own, attempt.out):
                unit = self._measured(own, attempt)
                self.first = self.first or attempt
            attempt.keep()
        self.units.append(unit)
        return own

    @property
    def exact(self) -> bool:
        """Whether the variant should compute what the model's own function does."""
        return self.assignment.relation == "exact"

    @property
    def allowed(self) -> float:
        """Bound on the error, in units."""
        own = self.error_before if self.exact else 0.0
        return max(SITE_BOUND, own if math.isfinite(own) else 0.0)

    def receipt(self) -> SiteReceipt:
        """Return what was measured."""
        site = self.assignment.site
        return SiteReceipt(
            path=site.path,
            layer=site.layer,
            variant=self.assignment.variant.name,
            relation=self.assignment.relation,
            implementations=tuple(self.implementations),
            calls=len(self.units),
            error_before=self.error_before if self.exact else None,
            error_after=self.error_after,
            allowed=self.allowed,
            rows_left_out=self.rows_left_out,
            drift=self.drift.share(),
            beyond=tuple(each.what for each in self.beyond if not each.why),
        )

    @cached_property
    def beyond(self) -> tuple[Further, ...]:
        """What the variant makes of calls beyond the sample; asked once the model has run."""
        return () if self.first is None else self.standing.beyond(self.first)

    @property
    def is_wide(self) -> bool:
        """Whether the site computes in float64."""
        return all(unit.dtype == torch.float64 for unit in self.units)

    def noisy(self, generator: torch.Generator, units: float) -> Mixer:
        """Return a mixer that answers as the model would, with noise of up to so many units."""
        sizes = [unit * units for unit in self.units]
        return self.standing.instead(Noisy(self.standing, sizes, generator))

    def _unfit(self, request: object) -> str:
        """Say that a host calls a mixer with something else than its kind takes."""
        site, came = self.assignment.site, type(request)
        return (
            f"host {site.host!r}: called the mixer at {site.path} with {came.__module__}."
            f"{came.__qualname__}; {self.assignment.variant.name!r} takes an "
            f"attnkit.hosts.protocol.{self.standing.takes.__name__}"
        )

    def _fits(self, own: Tensor, after: Tensor) -> bool:
        """Note a refusal unless two outputs have one shape and dtype."""
        if (after.shape, after.dtype) == (own.shape, own.dtype):
            return True
        self.refusals.append(
            f"output: needs {tuple(own.shape)} {own.dtype}, got {tuple(after.shape)} "
            f"{after.dtype} from {self.assignment.variant.name!r}"
        )
        return False

    def _measured(self, own: Tensor, attempt: Attempt) -> Tensor:
        """Note errors and drift; return the root mean square unit of every row."""
        self.rows_left_out += attempt.left_out()
        units = []
        for at, truth, unit, rows in attempt.measures():
            before, after = own[at], attempt.out[at]
            self.error_before = max(self.error_before, worst(before, truth, unit, rows))
            self.error_after = max(self.error_after, worst(after, truth, unit, rows))
            self.drift.add(before, after, rows)
            units.append((unit * rows).square().mean(-1, keepdim=True).sqrt().to(own.dtype))
        return torch.cat(units)


@dataclass
class Noisy:
    """A mixer that answers with the model's own function plus noise, its size by call."""

    standing: Standing
    sizes: list[Tensor]
    generator: torch.Generator
    calls: int = 0

    def __call__(self, request: Any) -> Tensor:
        """Answer as the model would, with noise."""
        own = self.standing.own(request)
        size = self.sizes[self.calls % len(self.sizes)].to(own.dtype)
        self.calls += 1
        noise = torch.rand(own.shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        return own + noise.to(own) * size


@dataclass
class Counting:
    """A mixer that counts the calls of another one."""

    mixer: Standing
    calls: int = 0

    def __call__(self, request: Any) -> Tensor:
        """Count and pass on."""
        self.calls += 1
        return self.mixer(request)
