"""What stands at a site after a swap: a variant, answering the site's calls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnkit.choice.decision import choose
from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import sliding_window
from attnkit.operations.attention import answer, attention, problem_of

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.interface import Variant
    from attnkit.masks.constructors import Mask
    from attnkit.sites import Call, Request
    from attnkit.swaps.plan import Assignment


@dataclass(frozen=True)
class Running:
    """A mixer that runs a variant: what stays at a site after a swap."""

    variant: Variant
    implementation: str = "auto"
    fallback: tuple[str, ...] = ()
    window_size: int | None = None

    @classmethod
    def of(cls, assignment: Assignment) -> Running:
        """Make the mixer that an assignment asks for."""
        options = assignment.options
        return cls(
            assignment.variant, options.implementation, options.fallback, assignment.window_size
        )

    def __call__(self, request: Request) -> Tensor:
        """Answer a site's call."""
        call = self.narrowed(request.call())
        return answer(call, self.variant, self.implementation, self.fallback)

    def narrowed(self, call: Call) -> Call:
        """Add the plan's window to the mask of a call."""
        if self.window_size is None:
            return call
        if not call.aligned:
            raise UnsupportedError(
                "window_size: needs to know where the queries stand among the keys, which this "
                "call does not tell (cross-attention, or a static cache while compiling); leave "
                "the layer out, or use a dynamic cache"
            )
        return replace(call, mask=_windowed(call.mask, self.window_size))

    def attend(self, call: Call, implementation: str, fallback: tuple[str, ...] = ()) -> Tensor:
        """Run the variant, (B, H, L, Ev)."""
        return attention(
            **call.arguments(),
            variant=self.variant,
            implementation=implementation,
            fallback=fallback,
        )

    def chosen(self, call: Call) -> str:
        """Return which implementation takes a call, as ``variant.implementation``."""
        problem = problem_of(**call.arguments())
        return choose(self.variant, problem, self.implementation, self.fallback).key


def _windowed(mask: Mask, size: int) -> Mask:
    """Narrow a mask, once for all layers if it remembers."""
    if mask.memory is None:
        return mask & sliding_window(size)
    found: Mask | None = mask.memory.get(size)
    if found is None:
        found = mask.memory[size] = (mask & sliding_window(size)).remembering()
    return found
