"""Named mistakes of mixtures of experts: the definition in steps, and the steps done wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import gelu, silu

from attnkit_contracts.definitions.mistakes.mistake import Mistake

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


class Setting(NamedTuple):
    """What a layer is configured to do.

    Attributes:
        top_k: Experts per token.
        renormalise: Whether the gates of a token sum to 1.
        keep: (B, L), False at padding.
    """

    top_k: int
    renormalise: bool
    keep: Tensor


class Routed(NamedTuple):
    """What the router decided: experts and gates, (B, L, k) each."""

    experts: Tensor
    gates: Tensor


def probabilities(logits: Tensor) -> Tensor:
    """Return the softmax over experts."""
    return logits.softmax(-1)


def chosen(shares: Tensor, setting: Setting, *, descending: bool = True) -> Routed:
    """Choose the k most probable experts; equal ones rank by index."""
    gates, experts = shares.sort(dim=-1, descending=descending, stable=True)
    return Routed(experts[..., : setting.top_k], gates[..., : setting.top_k])


def gated(routed: Routed, setting: Setting) -> Routed:
    """Renormalise the gates, if asked for."""
    if not setting.renormalise:
        return routed
    return routed._replace(gates=routed.gates / routed.gates.sum(-1, keepdim=True))


def unlimited(routed: Routed, setting: Setting, count: int) -> Routed:
    """Drop no token."""
    return routed


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    return silu(gate) * up


@dataclass(frozen=True)
class Plan:
    """The definition of a mixture of experts, step by step; a mistake replaces one."""

    probabilities: Callable[[Tensor], Tensor] = probabilities
    chosen: Callable[[Tensor, Setting], Routed] = chosen
    gated: Callable[[Routed, Setting], Routed] = gated
    limited: Callable[[Routed, Setting, int], Routed] = unlimited
    within: Callable[[Tensor, Tensor], Tensor] = swiglu
    padded: bool = False


RIGHT = Plan()


def mix(tensors: Mapping[str, Tensor], setting: Setting, plan: Plan = RIGHT) -> Tensor:
    """Mix by this plan, in float64; tensors as of `LayerSubject.mixture`."""
    given = {name: tensor.double() for name, tensor in tensors.items()}
    x, router = given["x"], given["router.weight"]
    shares = plan.probabilities(torch.einsum("bld,ed->ble", x, router))
    routed = plan.gated(plan.chosen(shares, setting), setting)
    routed = plan.limited(routed, setting, len(router))
    y = torch.zeros_like(x)
    for expert in range(len(router)):
        both = torch.einsum("bld,fd->blf", x, given["gate_up_proj"][expert])
        inner = plan.within(*both.chunk(2, -1))
        answer = torch.einsum("blf,df->bld", inner, given["down_proj"][expert])
        y = y + (routed.gates * (routed.experts == expert)).sum(-1, keepdim=True) * answer
    return y if plan.padded else torch.where(setting.keep[..., None], y, 0.0)


def _capacity(factor: float, *, over_batch: bool) -> Callable[[Routed, Setting, int], Routed]:
    """Return a bound of ceil(factor n k / E) tokens per expert, the first ones."""

    def limit(routed: Routed, setting: Setting, count: int) -> Routed:
        experts, gates = routed.experts, routed.gates
        sent = torch.zeros(*experts.shape[:2], count, dtype=torch.int64, device=experts.device)
        sent = sent.scatter(-1, experts, 1) * setting.keep[..., None]
        flat = sent.flatten(0, 1)[None] if over_batch else sent
        room = -(-factor * flat.shape[1] * experts.shape[-1] // count)
        fits = (flat.cumsum(1) <= room).reshape(sent.shape)
        return Routed(experts, gates * fits.gather(-1, experts))

    return limit


def _gates(of: Callable[[Routed, Setting], Tensor]) -> tuple[Plan, ...]:
    """Return the plan with other gates."""
    return (replace(RIGHT, gated=lambda routed, at: routed._replace(gates=of(routed, at))),)


def _top(count: Callable[[int, int], int]) -> tuple[Plan, ...]:
    """Return the plan with more, or fewer, experts than asked for of all there are."""

    def choose(shares: Tensor, at: Setting) -> Routed:
        return chosen(shares, at._replace(top_k=count(at.top_k, shares.shape[-1])))

    return (replace(RIGHT, chosen=choose),)


_TABLE: tuple[tuple[str, str, tuple[Plan, ...]], ...] = (
    ("gates_not_renormalised", "gates that are not renormalised over the chosen experts",
     _gates(lambda routed, _: routed.gates)),
    ("gates_renormalised_unasked",
     "gates renormalised unasked (a softmax over the chosen experts only)",
     _gates(lambda routed, at: gated(routed, at._replace(renormalise=True)).gates)),
    ("gates_even", "gates ignored, all chosen experts weighing the same",
     _gates(lambda routed, _: torch.full_like(routed.gates, 1 / routed.gates.shape[-1]))),
    ("gates_one", "gates ignored, the chosen experts simply added",
     _gates(lambda routed, _: torch.ones_like(routed.gates))),
    ("gates_softmax_twice", "a second softmax over the gates",
     _gates(lambda routed, at: gated(routed, at).gates.softmax(-1))),
    ("gates_swapped", "the gates of a token in the wrong order",
     _gates(lambda routed, at: gated(routed, at).gates.flip(-1))),
    ("sigmoid_router", "a sigmoid per expert in place of the softmax",
     (replace(RIGHT, probabilities=torch.sigmoid),)),
    ("top_k_one_more", "one expert more than top_k", _top(lambda k, most: min(k + 1, most))),
    ("top_k_one_less", "one expert less than top_k", _top(lambda k, _: max(1, k - 1))),
    ("top_k_least", "the least probable experts",
     (replace(RIGHT, chosen=lambda shares, at: chosen(shares, at, descending=False)),)),
    ("top_k_ignored", "all experts instead of top_k", _top(lambda _, most: most)),
    ("capacity_unasked", "a capacity applied unasked, which drops tokens",
     tuple(replace(RIGHT, limited=_capacity(factor, over_batch=over))
           for factor in (1.0, 1.25) for over in (False, True))),
    ("gate_up_swapped", "the gate's and the up projection swapped",
     (replace(RIGHT, within=lambda gate, up: silu(up) * gate),)),
    ("gelu", "a gelu in place of the silu",
     (replace(RIGHT, within=lambda gate, up: gelu(gate) * up),)),
    ("activation_missing", "no activation between an expert's matrices",
     (replace(RIGHT, within=lambda gate, up: gate * up),)),
    ("padding_not_zero", "padded tokens routed like real ones", (replace(RIGHT, padded=True),)),
)  # fmt: skip

MISTAKES: tuple[Mistake[Plan], ...] = tuple(Mistake(*each) for each in _TABLE)
"""All named mistakes of mixtures of experts."""
