"""Deliberately wrong routings: capacity, losses, ties, and what shows with other options.

`MUTANTS` says which check must catch it, and on which subject.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_experts import first_of, wrong
from mutants_mixture import mix
from torch import Tensor

import attnkit_plugins.feedforward.moe.router as right
from attnkit_plugins.feedforward.moe import VARIANT as MOE
from attnkit_plugins.feedforward.moe.layer import MoELayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit.interface import Variant
    from attnkit_plugins.feedforward.moe.router import Routing


class Rerouted(MoELayer):
    """A right layer whose routing can be decided otherwise."""

    def _route(self, x: Tensor, keep: Tensor) -> Routing:
        wide = torch.promote_types(x.dtype, torch.float32)
        logits = torch.nn.functional.linear(x.to(wide), self.router.weight.to(wide))
        return self.decide(logits, keep)

    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        config = self.config
        options: dict[str, Any] = {
            "top_k": config.top_k,
            "renormalise": config.renormalise,
            "capacity_factor": config.capacity_factor,
        }
        return right.route(logits, keep, **{**options, **other})


class CapacityIgnored(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        return super().decide(logits, keep, capacity_factor=None)


class CapacityDropsFirst(Rerouted):
    """Serves the last tokens instead of the first."""

    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits.flip(1), keep.flip(1))
        return replace(made, experts=made.experts.flip(1), gates=made.gates.flip(1))


class CapacityCountsPadding(Rerouted):
    """Padding takes places, and makes more of them."""

    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made, all_real = super().decide(logits, keep), super().decide(logits, keep | True)
        experts = torch.where(keep[..., None], all_real.experts, -1)
        gates = torch.where(keep[..., None], all_real.gates, 0.0)
        return replace(made, experts=experts, gates=gates)


class CapacityOverBatch(Rerouted):
    """All samples share the places of an expert."""

    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        flat = super().decide(logits.flatten(0, 1)[None], keep.flatten()[None])
        shape = made.experts.shape
        return replace(made, experts=flat.experts.reshape(shape), gates=flat.gates.reshape(shape))


class CapacityRenormalised(Rerouted):
    """Gives the share of a dropped expert to the one that is left."""

    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        total = made.gates.sum(-1, keepdim=True)
        return replace(made, gates=made.gates / total.where(total > 0, torch.ones_like(total)))


class DroppedMiscounted(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        return replace(made, dropped=(made.experts < 0).sum())


class LossesCountPadding(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made, all_real = super().decide(logits, keep), super().decide(logits, keep | True)
        return replace(made, load_balance_loss=all_real.load_balance_loss, z_loss=all_real.z_loss)


class LoadNotScaled(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        return replace(made, load_balance_loss=made.load_balance_loss / logits.shape[-1])


class LossesDetached(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        return replace(
            made,
            load_balance_loss=made.load_balance_loss.detach(),
            z_loss=made.z_loss.detach(),
        )


class ZLossOfProbabilities(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        return replace(made, z_loss=right.z_loss(made.probabilities, keep))


class ZLossHalfGradient(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        return replace(made, z_loss=(made.z_loss + made.z_loss.detach()) / 2)


class RouterInHalfPrecision(MoELayer):
    """The logits of a layer in bfloat16 are rounded to it."""

    def _route(self, x: Tensor, keep: Tensor) -> Routing:
        logits = torch.nn.functional.linear(x, self.router.weight).float()
        return right.route(
            logits,
            keep,
            top_k=self.config.top_k,
            renormalise=self.config.renormalise,
            capacity_factor=self.config.capacity_factor,
        )


class TiesTwice(Rerouted):
    """Sends a token whose experts are all alike to the first of them, k times."""

    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        tied = (logits == logits[..., :1]).all(-1, keepdim=True)
        return replace(made, experts=torch.where(tied & (made.experts > 0), 0, made.experts))


class TiesAtRandom(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        tied = (logits == logits[..., :1]).all(-1, keepdim=True)
        return super().decide(logits + 1e-6 * torch.rand_like(logits) * tied, keep)


class AlwaysRenormalised(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        return super().decide(logits, keep, renormalise=True)


class LogitsAsGates(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        if self.config.renormalise:
            return made
        return replace(made, gates=logits.gather(-1, made.experts.clamp(min=0)) * keep[..., None])


class OneGateCutOff(Rerouted):
    """With one expert per token the router learns nothing."""

    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        return replace(made, gates=made.gates.detach()) if self.config.top_k == 1 else made


class ThirdChoiceLost(Rerouted):
    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        slot = torch.arange(self.config.top_k)
        gates = torch.where(slot < 2, made.gates, 0.0)
        return replace(made, experts=torch.where(slot < 2, made.experts, -1), gates=gates)


class ExpertsWrapAround(Rerouted):
    """Beyond the sixteenth expert it starts again."""

    def decide(self, logits: Tensor, keep: Tensor, **other: Any) -> Routing:
        made = super().decide(logits, keep)
        return replace(made, experts=torch.where(made.experts >= 0, made.experts % 16, -1))


def crowd_unread(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    """Drops half of the tokens where all go to one expert."""
    if len(x) > 4 and (experts == experts[0, 0]).all():
        gates = gates * (torch.arange(len(x)) < len(x) // 2)[:, None]
    return mix(x, experts, gates, weights=weights)


def block_overrun(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    """Reads a block of 64 tokens per expert, not a second one."""
    return mix(x, first_of(experts, 64, weights), gates, weights=weights)


def crowd_steeper(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    """Has a wrong gradient where there are many tokens."""
    tokens = x + 0.5 * (x - x.detach()) if len(x) > 64 else x
    return mix(tokens, experts, gates, weights=weights)


def half_served(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    """Takes a token for padding as soon as one of its experts is missing."""
    whole = (experts >= 0).all(-1, keepdim=True)
    return mix(x, torch.where(whole, experts, -1), gates, weights=weights)


def _layer(layer: type[MoELayer], kills: str, dtype: str = "float32") -> tuple[Any, ...]:
    made = replace(MOE, name=f"mutant_routing_{layer.__name__.lower()}", layer=layer)
    return made, kills, "layer", dtype


def _function(function: Callable[..., Tensor], kills: str) -> tuple[Variant, str, str]:
    return wrong(function, kills, "routing")


def _silent() -> tuple[Variant, str, str]:
    promises = MOE.promises.model_copy(update={"capacity": False})
    return replace(MOE, name="mutant_routing_silent", promises=promises), "F6.capacity", "layer"


MUTANTS = (
    _layer(CapacityIgnored, "F6.capacity"),
    _layer(CapacityDropsFirst, "F6.capacity"),
    _layer(CapacityCountsPadding, "F6.capacity"),
    _layer(CapacityOverBatch, "F6.capacity"),
    _layer(CapacityRenormalised, "F6.capacity"),
    _layer(DroppedMiscounted, "F6.capacity"),
    _function(half_served, "F6.capacity"),
    _silent(),
    _layer(LossesCountPadding, "F7.losses"),
    _layer(LoadNotScaled, "F7.losses"),
    _layer(LossesDetached, "F7.losses"),
    _layer(ZLossOfProbabilities, "F7.losses"),
    _layer(ZLossHalfGradient, "F7.losses"),
    _layer(RouterInHalfPrecision, "F7.losses", "bfloat16"),
    _layer(AlwaysRenormalised, "F8.options"),
    _layer(LogitsAsGates, "F8.options"),
    _layer(OneGateCutOff, "F8.options"),
    _layer(ThirdChoiceLost, "F8.options"),
    _layer(ExpertsWrapAround, "F8.options"),
    _function(crowd_unread, "F8.options"),
    _function(block_overrun, "F8.options"),
    _function(crowd_steeper, "F8.options"),
    _layer(TiesTwice, "F9.ties"),
    _layer(TiesAtRandom, "F9.ties"),
)
