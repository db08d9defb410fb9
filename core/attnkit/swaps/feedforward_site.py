"""A feed-forward variant in place of a layer of a model, or of the experts in one.

Two kinds of sites. A *network* is one gated feed-forward layer, y = W_down (silu(W_gate x) *
W_up x): the variant builds a layer from its weights, and that layer takes its place among the
model's modules. *Experts* are many of them, behind a router that stays: the variant's
implementations run on the model's own weights, for the routing that the model decided.

Both are exact at the start, and verified as such on what reaches them in a run of the model,
against the model's own modules in float64. A layer that has been trained since is
verified against the sum that it stands for, over the experts that its router decides on. With
p = W_gate x, r = W_up x and h = silu(p) * r, in units of what rounding may do,

    dp = u |p| + e |W_gate| |x|,    dr = u |r| + e |W_up| |x|,    e = 8 * 2^-24
    dh = 1.1 dp |r| + |silu(p)| dr + 3u |h|
    unit = sum over experts of gate * (sqrt(W_down^2 (dh^2 + (e h)^2)) + 3u |y|) + tiny

u is the rounding unit of the dtype, 1.1 bounds the slope of silu. The errors of the terms of
W_down h are independent, so their squares add.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch.nn.functional import silu

from attnkit.choice.decision import AUTO, choose
from attnkit.errors import UnsupportedError
from attnkit.interface import load
from attnkit.operations.arguments import dtype_name
from attnkit.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from attnkit.interface import Variant
    from attnkit.swaps.plan import Assignment


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


class Passage(Protocol):
    """One call of a feed-forward site, as its host received it."""

    @property
    def x(self) -> Tensor:
        """(..., D), tokens; (T, D) of experts."""
        ...

    @property
    def routing(self) -> Routing | None:
        """None at a network."""
        ...

    def weights(self) -> Weights:
        """Return the site's weights, as they are now."""
        ...

    def own(self, dtype: torch.dtype) -> Tensor:
        """Run the model's own module in a dtype, shaped as ``x``."""
        ...


class Builder(Protocol):
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


class FeedforwardHost(Protocol):
    """What a host offers beside `attnkit.sites.Host` if it has feed-forward sites."""

    def weights(self, model: nn.Module, path: str) -> Weights:
        """Return the weights of a feed-forward site."""
        ...


@dataclass(frozen=True)
class Layered:
    """A mixer that is a layer; a host puts ``layer`` in the place of the site's module."""

    layer: nn.Module
    variant: Variant
    implementation: str = AUTO
    fallback: tuple[str, ...] = ()

    @classmethod
    def of(cls, assignment: Assignment, weights: Weights) -> Layered:
        """Build what an assignment asks for."""
        variant, options = assignment.variant, assignment.options
        assert variant.placement is not None
        build: Builder = load(variant.placement.build)
        layer = build(weights, options, variant=variant)
        return cls(layer, variant, options.implementation, options.fallback)

    def __call__(self, request: Passage) -> Tensor:
        """Answer a call, shaped as its x."""
        out: Tensor = self.layer(request.x)
        return out

    def decided(self, request: Passage) -> tuple[Routing, Weights]:
        """Return what the layer computes in a call."""
        if not isinstance(self.layer, Mixture):
            raise UnsupportedError(
                f"weights: {type(self.layer).__name__} has no method 'decided', so that what "
                "training made of it cannot be verified; see attnkit.swaps.feedforward_site.Mixture"
            )
        return self.layer.decided(request.x.flatten(0, -2))

    def chosen(self, request: Passage) -> str:
        """Return which implementation takes a call, as ``variant.implementation``."""
        experts = getattr(getattr(self.layer, "config", None), "num_experts", 1)
        problem = _problem(request.x, experts, ())
        return choose(self.variant, problem, self.implementation, self.fallback).key


@dataclass(frozen=True)
class Expert:
    """A mixer that runs a model's own experts, for the routing that the model decided."""

    variant: Variant
    implementation: str = AUTO
    fallback: tuple[str, ...] = ()
    record: Callable[..., Weights] = field(init=False)

    def __post_init__(self) -> None:
        """Import what holds the weights, which no graph could do."""
        assert self.variant.placement is not None
        object.__setattr__(self, "record", load(self.variant.placement.weights or Weights))

    @classmethod
    def of(cls, assignment: Assignment) -> Expert:
        """Make the mixer that an assignment asks for."""
        options = assignment.options
        return cls(assignment.variant, options.implementation, options.fallback)

    def __call__(self, request: Passage) -> Tensor:
        """Answer a call, (T, D)."""
        x, routing, weights = request.x, request.routing, request.weights()
        assert routing is not None
        if not x.numel():
            return x.clone()
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        given = self.record(weights.gate_up.to(dtype), weights.down.to(dtype))
        tokens, gates = x.to(dtype), routing.gates.to(torch.promote_types(dtype, torch.float32))
        problem = _problem(tokens, len(weights.gate_up), (weights.gate_up, weights.down, gates))
        chosen = choose(self.variant, problem, self.implementation, self.fallback)
        with torch.autocast(kind, enabled=False):
            out: Tensor = chosen.function(tokens, routing.experts, gates, weights=given)
        return out.to(x.dtype)

    def chosen(self, request: Passage) -> str:
        """Return which implementation takes a call, as ``variant.implementation``."""
        problem = _problem(request.x, len(request.weights().gate_up), ())
        return choose(self.variant, problem, self.implementation, self.fallback).key


def unit(x: Tensor, weights: Weights, routing: Routing | None, dtype: torch.dtype) -> Tensor:
    """Return what rounding in ``dtype`` may do to each output, (T, D), float64.

    Args:
        x: (T, D), as it reached the site.
        weights: Of the site.
        routing: Of the tokens; None where there is one network.
        dtype: Of the module's arithmetic.
    """
    if routing is not None:
        routing = Routing(routing.experts, routing.gates.abs())
    total = _summed(x, weights, routing, partial(_network_unit, dtype=dtype))
    return total + torch.finfo(dtype).smallest_normal


def definition(x: Tensor, weights: Weights, routing: Routing | None) -> Tensor:
    """Return what a site computes, (T, D), float64; arguments as of `unit`."""
    return _summed(x, weights, routing, _network)


def _summed(
    x: Tensor,
    weights: Weights,
    routing: Routing | None,
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Sum what each token's networks give, times their gates, in float64."""
    x = x.double()
    total = torch.zeros_like(x)
    for expert, (gate_up, down) in enumerate(zip(weights.gate_up, weights.down, strict=True)):
        if routing is None:
            total += network(x, gate_up.double(), down.double())
            continue
        chosen = routing.experts == expert  # (T, k)
        rows = chosen.any(-1)
        if bool(rows.any()):
            share = (routing.gates.double() * chosen).sum(-1)[rows, None]
            total[rows] += share * network(x[rows], gate_up.double(), down.double())
    return total


def _network(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (x @ gate_up.T).chunk(2, -1)  # (T, F), (T, F)
    return (silu(gate) * up) @ down.T


def _network_unit(x: Tensor, gate_up: Tensor, down: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the unit of one network's outputs; see the top of this module."""
    roundoff, sums = torch.finfo(dtype).eps / 2, 8 * 2.0**-24
    inner = x @ gate_up.T  # (T, 2F)
    inner_error = roundoff * inner.abs() + sums * (x.abs() @ gate_up.abs().T)
    (gate, up), (d_gate, d_up) = inner.chunk(2, -1), inner_error.chunk(2, -1)
    hidden = silu(gate) * up  # (T, F)
    d_hidden = 1.1 * d_gate * up.abs() + silu(gate).abs() * d_up + 3 * roundoff * hidden.abs()
    squares = d_hidden.square() + (sums * hidden).square()
    return (squares @ down.square().T).sqrt() + 3 * roundoff * (hidden @ down.T).abs()


def _problem(x: Tensor, experts: int, weights: tuple[Tensor, ...]) -> Problem:
    tokens = x.numel() // max(1, x.shape[-1])
    tracked = any(each.requires_grad for each in (x, *weights))
    return Problem(
        family="feedforward",
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=1,
        heads=experts,
        kv_heads=experts,
        query_length=tokens or 1,
        key_length=tokens or 1,
        head_dim=x.shape[-1],
        value_head_dim=x.shape[-1],
        gradients=torch.is_grad_enabled() and tracked,
        compiling=torch.compiler.is_compiling(),
    )
