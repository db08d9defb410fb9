"""What a family says to a swap: its obstacles at a site, what stands there, how it is judged.

The sites of attnkit's families, `softmax_site`, `recurrence_site` and `feedforward_site`, end in a
`SwapFamily` each; a plugin's family brings its own, see `attnkit.families.Family.swap`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from attnkit.errors import ArgumentError
from attnkit.hosts.protocol import Host, Mixer, Request
from attnkit.interface import Variant, load
from attnkit.placements import SiteOptions, WindowOptions
from attnkit.registry.registry import default
from attnkit.text import kind_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attnkit.problem import Problem
    from attnkit.promises import Relation
    from attnkit.sites import Site
    from attnkit.swaps.verification.reach import Further


@dataclass(frozen=True)
class Assignment:
    """A variant for a site.

    Attributes:
        trained: Whether it brings weights from an earlier swap, whose relation to the layer is not
            known.
    """

    site: Site
    variant: Variant
    options: SiteOptions
    pattern: str
    trained: bool = False

    @property
    def window_size(self) -> int | None:
        """The window that the plan gives."""
        return self.options.window_size if isinstance(self.options, WindowOptions) else None

    @property
    def relation(self) -> Relation:
        """How the layer's mathematics changes.

        A variant that differs from full attention by its mask alone (it says so by the mask
        parts it needs) changes nothing where the site already has that mask.
        """
        if self.trained:
            return "different"
        if self.variant.placement is not None:
            return self.variant.placement.relation
        size, window = self.window_size, self.site.needs.window
        if size is not None and (window is None or size < window):
            return "different"
        needed = set(self.variant.promises.needs)
        if self.variant.relation == "different" and needed == {"window"} and window is not None:
            return "exact"
        return self.variant.relation


class Measure(NamedTuple):
    """What some samples of a call should be, and how far rounding may take them from it.

    Attributes:
        at: Which samples.
        truth: Their output in float64.
        unit: What rounding may do to each element, float64.
        rows: Bool, broadcastable: which rows count.
    """

    at: slice
    truth: Tensor
    unit: Tensor
    rows: Tensor


@dataclass(eq=False)
class Attempt:
    """One answer of a variant, tried beside the model's own.

    Attributes:
        chosen: What computed it, ``variant.implementation``.
        out: It.
    """

    chosen: str
    out: Tensor

    def measures(self) -> Iterator[Measure]:
        """Yield what the answer should have been, some samples at a time."""
        raise NotImplementedError  # every family's own

    def left_out(self) -> int:
        """Count the rows that nothing is compared in."""
        return 0

    def keep(self) -> None:
        """Let the next call begin where this one ended."""


class Standing:
    """A mixer that runs a variant: what stays at a site after a swap.

    Attributes:
        takes: What a host must call it with.
    """

    takes: ClassVar[type] = Request

    def __call__(self, request: Any) -> Tensor:
        """Answer a site's call."""
        raise NotImplementedError  # every family's own

    def own(self, request: Any) -> Tensor:
        """Return the model's own answer."""
        out: Tensor = request.own(request.query, request.key, request.value, slice(None))
        return out

    def attempt(self, request: Any, *, exact: bool) -> Attempt:
        """Answer a call so that the answer can be judged; leave nothing behind.

        Args:
            request: The call.
            exact: Whether it should be what the model's own function computes.
        """
        raise NotImplementedError  # every family's own

    def beyond(self, attempt: Any) -> tuple[Further, ...]:
        """Return what the variant makes of calls that an attempt's call may be followed by."""
        return ()

    def instead(self, mixer: Mixer, *, replaces: bool = False) -> Mixer:
        """Return a mixer as one that a host takes for this one.

        Args:
            mixer: Answers the calls.
            replaces: Whether the host keeps the state as it does for this one, or beside its own.
        """
        return mixer

    @property
    def brings(self) -> tuple[nn.Module, bool] | None:
        """The module that it puts into the model, and whether that takes the layer's place."""
        return None


@dataclass(frozen=True, kw_only=True)
class SwapFamily:
    """How the variants of a family stand at a site.

    Attributes:
        obstacles: Why one cannot, in words.
        supposed: The problem that a dry run takes a site to have; of a layer in training or not.
        mixer: Builds what stands there; nothing is changed in the model.
    """

    obstacles: Callable[[Assignment], Iterable[str]]
    supposed: Callable[[Assignment, bool], Problem]
    mixer: Callable[[nn.Module, Host, Assignment], Standing]


def swap_family(variant: Variant) -> SwapFamily | None:
    """Return how a variant's family stands at a site; None where it cannot."""
    swap = default().family(variant.family).swap
    if swap is None:
        return None
    try:
        found: object = load(swap) if isinstance(swap, str) else swap
    except Exception as error:  # of a plugin
        raise ArgumentError(
            f"family {variant.family!r}: swap {swap!r} does not load: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, SwapFamily):
        raise ArgumentError(
            f"family {variant.family!r}: swap must be an attnkit.swaps.families.SwapFamily, "
            f"got {kind_of(found)}"
        )
    return found
