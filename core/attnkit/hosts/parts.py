"""What a variant builds for a site, and what it is built from; see `attnkit.placements`.

A recurrence brings a module that turns a layer's tensors into arguments of `attnkit.recurrence`. A
feed-forward variant brings a layer, made from the weights that the model has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from attnkit.interface import Options, Variant
    from attnkit.sites import Site


class Inputs(NamedTuple):
    """The arguments of `attnkit.recurrence` at a site.

    Attributes:
        query: (B, H, L, E).
        key: (B, H, L, E).
        value: (B, H, L, Ev).
        log_decay: (B, H, L) or (B, H, L, E), or None.
        scale: Multiplies the output.
        options: The variant's options.
        around: (B, H, L, Ev), added to the output; None for nothing.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor | None
    scale: float
    options: Options
    around: Tensor | None = None


class Module(Protocol):
    """What a variant builds for a site, an `torch.nn.Module`: from a layer's tensors to `Inputs`.

    Its parameters join the model's while it stands there.
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, x: Tensor, *, scale: float
    ) -> Inputs:
        """Prepare the recurrence.

        Args:
            query: (B, H, L, E), as it reaches the layer's attention function.
            key: (B, H, L, E), repeated to H heads.
            value: (B, H, L, Ev), repeated to H heads.
            x: (B, L, D), the layer's input.
            scale: What the layer's attention multiplies its logits by.
        """
        ...


class RecurrenceBuilder(Protocol):
    """`Placement.build` of a recurrence."""

    def __call__(
        self, site: Site, options: Any, *, device: torch.device, dtype: torch.dtype
    ) -> nn.Module:
        """Build the module for a site, deterministic but for torch's random numbers."""
        ...


@dataclass(frozen=True)
class Weights:
    """The weights of gated feed-forward networks, as the model holds them.

    Attributes:
        gate_up: (E, 2F, D), W_gate above W_up; E is 1 for a layer that is no mixture.
        down: (E, D, F), W_down.
    """

    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Routing:
    """What a model's router decided.

    Attributes:
        experts: (T, k), int64.
        gates: (T, k).
    """

    experts: Tensor
    gates: Tensor


class FeedforwardBuilder(Protocol):
    """`Placement.build` of a feed-forward variant."""

    def __call__(self, weights: Weights, options: Any, *, variant: Variant) -> nn.Module:
        """Build a `Mixture`, a module (..., D) in and out, from the weights of one network."""
        ...


@runtime_checkable
class Mixture(Protocol):
    """A layer that says what it computes, so that it can be verified once it is trained."""

    def decided(self, x: Tensor) -> tuple[Routing, Weights]:
        """Return the experts of tokens (T, D), and the weights of all experts."""
        ...
