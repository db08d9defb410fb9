"""A feed-forward variant in place of a layer of a model, or of the experts in one.

Two kinds of sites. A *network* is one gated feed-forward layer, y = W_down (silu(W_gate x) *
W_up x): the variant builds a layer from its weights, and that layer takes its place among the
model's modules. *Experts* are many of them, behind a router that stays: the variant's
implementations run on the model's own weights, for the routing that the model decided.

Both are exact at the start, and verified as such on what reaches them in a run of the model,
against the model's own modules in float64. A layer that has been trained since is
verified against the sum that it stands for, over the experts that its router decides on. With
p = W_gate x, r = W_up x and h = silu(p) * r, in units of what rounding may do,

    dp = u |p| + e |W_gate| |x|,    dr = u |r| + e |W_up| |x|,    e = 8 s
    dh = 1.1 dp |r| + |silu(p)| dr + 3u |h|
    unit = sum over experts of gate * (sqrt(W_down^2 (dh^2 + (e h)^2)) + 3u |y|) + tiny

u is the rounding unit of the dtype and s that of sums (`attnkit.precision`), 1.1 bounds the slope
of silu. The errors of the terms of W_down h are independent, so their squares add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from attnkit.choice.front import choose
from attnkit.errors import UnsupportedError
from attnkit.hosts.answers import weights_of
from attnkit.hosts.parts import FeedforwardBuilder, Mixture, Routing, Weights
from attnkit.hosts.protocol import FeedforwardHost, Host, Passage
from attnkit.interface import Variant, load
from attnkit.operations.arguments import dtype_name
from attnkit.precision import accumulation, roundoff, smallest
from attnkit.problem import FeedforwardProblem
from attnkit.swaps.families import Assignment, Attempt, Measure, Standing, SwapFamily
from attnkit.swaps.obstacles import LENGTH, beyond_a_placement


class _Network(Standing):
    """What both kinds of mixers have in common."""

    takes: ClassVar[type] = Passage

    def own(self, request: Passage) -> Tensor:
        return request.own(request.x.dtype)

    def attempt(self, request: Passage, *, exact: bool) -> Tried:
        chosen, out = self.chosen(request), self(request)
        decided = None if exact else self.decided(request)
        if decided is None:
            return Tried(chosen, out, request, None, request.routing, request.weights())
        truth = definition(request.x.flatten(0, -2), decided[1], decided[0]).view(request.x.shape)
        return Tried(chosen, out, request, truth, *decided)

    def chosen(self, request: Passage) -> str:
        """Return which implementation takes a call, as ``variant.implementation``."""
        raise NotImplementedError  # a mixture's and a mixer's own

    def decided(self, request: Passage) -> tuple[Routing, Weights] | None:
        """Return what it computes in a call; None for what the model does."""
        return None


@dataclass(frozen=True)
class Layered(_Network):
    """A mixer that is a layer; an `attnkit.hosts.protocol.LayerMixer`."""

    layer: nn.Module
    variant: Variant
    implementation: str = "auto"
    fallback: tuple[str, ...] = ()

    def __call__(self, request: Passage) -> Tensor:
        """Answer a call, shaped as its x."""
        out: Tensor = self.layer(request.x)
        return out

    @property
    def brings(self) -> tuple[nn.Module, bool]:
        return self.layer, True

    def decided(self, request: Passage) -> tuple[Routing, Weights]:
        if not isinstance(self.layer, Mixture):
            raise UnsupportedError(
                f"weights: {type(self.layer).__name__} has no method 'decided', so that what "
                "training made of it cannot be verified; see attnkit.hosts.parts.Mixture"
            )
        return self.layer.decided(request.x.flatten(0, -2))

    def chosen(self, request: Passage) -> str:
        experts = getattr(getattr(self.layer, "config", None), "num_experts", 1)
        problem = _problem(request.x, experts, ())
        return choose(self.variant, problem, self.implementation, self.fallback).key


@dataclass(frozen=True)
class Expert(_Network):
    """A mixer that runs a model's own experts, for the routing that the model decided."""

    variant: Variant
    implementation: str = "auto"
    fallback: tuple[str, ...] = ()
    record: Callable[..., Weights] = field(init=False)

    def __post_init__(self) -> None:
        """Import what holds the weights, which no graph could do."""
        assert self.variant.placement is not None
        object.__setattr__(self, "record", load(self.variant.placement.weights or Weights))

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
        problem = _problem(request.x, len(request.weights().gate_up), ())
        return choose(self.variant, problem, self.implementation, self.fallback).key


@dataclass(eq=False)
class Tried(Attempt):
    """A network's answer to one call.

    Attributes:
        truth: What should come out, float64; None for what the model's own module gives.
        routing: What it is made of; None at a network that is no mixture.
        weights: Of all experts.
    """

    request: Passage
    truth: Tensor | None
    routing: Routing | None
    weights: Weights

    def measures(self) -> Iterator[Measure]:
        out, x = self.out, self.request.x.flatten(0, -2)
        kind = out.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else out.dtype
        size = unit(x, self.weights, self.routing, dtype).view(out.shape)
        truth = self.request.own(torch.float64) if self.truth is None else self.truth
        yield Measure(slice(None), truth, size, torch.ones_like(out[..., :1], dtype=torch.bool))


def _mixer(model: nn.Module, host: Host, assignment: Assignment) -> Layered | Expert:
    variant, options = assignment.variant, assignment.options
    if assignment.site.needs.num_experts is not None:
        return Expert(variant, options.implementation, options.fallback)
    if not isinstance(host, FeedforwardHost):
        raise UnsupportedError(
            f"weights: host {host.name!r} hands out none of {assignment.site.path}, so that no "
            "layer can be made from them; see attnkit.hosts.protocol.FeedforwardHost"
        )
    assert variant.placement is not None
    build: FeedforwardBuilder = load(variant.placement.build)
    weights = weights_of(host, model, assignment.site.path)
    layer = build(weights, options, variant=variant)
    return Layered(layer, variant, options.implementation, options.fallback)


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
    return total + smallest(dtype)


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
    u, sums = roundoff(dtype), 8 * accumulation(dtype)
    inner = x @ gate_up.T  # (T, 2F)
    inner_error = u * inner.abs() + sums * (x.abs() @ gate_up.abs().T)
    (gate, up), (d_gate, d_up) = inner.chunk(2, -1), inner_error.chunk(2, -1)
    hidden = silu(gate) * up  # (T, F)
    d_hidden = 1.1 * d_gate * up.abs() + silu(gate).abs() * d_up + 3 * u * hidden.abs()
    squares = d_hidden.square() + (sums * hidden).square()
    return (squares @ down.square().T).sqrt() + 3 * u * (hidden @ down.T).abs()


def _problem(x: Tensor, experts: int, weights: tuple[Tensor, ...]) -> FeedforwardProblem:
    tracked = any(each.requires_grad for each in (x, *weights))
    return FeedforwardProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        query_length=x.numel() // max(1, x.shape[-1]) or 1,
        experts=experts,
        width=x.shape[-1],
        gradients=torch.is_grad_enabled() and tracked,
        compiling=torch.compiler.is_compiling(),
    )


def _supposed(assignment: Assignment, training: bool) -> FeedforwardProblem:
    site = assignment.site
    asked = getattr(assignment.options, "num_experts", None)
    return FeedforwardProblem(
        device=site.device,
        dtype=site.dtype,
        query_length=LENGTH,
        experts=site.needs.num_experts or asked or 1,
        width=site.needs.embed_dim or 64,
    )


FAMILY = SwapFamily(obstacles=beyond_a_placement, supposed=_supposed, mixer=_mixer)
