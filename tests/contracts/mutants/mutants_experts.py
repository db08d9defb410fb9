"""More deliberately wrong mixtures of experts: of the experts' sum, and of the routing.

`MUTANTS` says which check must catch it, and on which subject.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_mixture import RIGHT, mix
from torch.nn.functional import gelu, silu

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.interface import Variant


def summed(
    x: Tensor, experts: Tensor, gates: Tensor, weights: Any, expert: Callable[..., Tensor]
) -> Tensor:
    """Sum ``expert(token, gate rows, up rows, down)`` over the chosen experts."""
    wide = torch.promote_types(x.dtype, torch.float32)
    tokens, y = x.to(wide), torch.zeros_like(x, dtype=wide)
    for e in range(len(weights.down)):
        rows, down = weights.gate_up[e].to(wide), weights.down[e].to(wide)
        share = (gates * (experts == e)).sum(-1, keepdim=True).to(wide)
        y = y + share * expert(tokens, *rows.chunk(2), down)
    return y.to(x.dtype)


def gate_and_up_swapped(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    def expert(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return ((x @ gate.mT) * silu(x @ up.mT)) @ down.mT

    return summed(x, experts, gates, weights, expert)


def another_activation(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    def expert(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return (gelu(x @ gate.mT) * (x @ up.mT)) @ down.mT

    return summed(x, experts, gates, weights, expert)


def first_choice_alone(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    return mix(x, experts[:, :1], gates[:, :1], weights=weights)


def crowded_out(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    """Drops what an expert gets beyond its eighth token, though nobody set a capacity."""
    return mix(x, first_of(experts, 8, weights), gates, weights=weights)


def first_of(experts: Tensor, most: int, weights: Any) -> Tensor:
    """Take experts away from all but the first tokens that chose them."""
    kept = experts.clone()
    for e in range(len(weights.down)):
        late = (experts == e).any(-1).nonzero()[most:, 0]
        kept[late] = torch.where(kept[late] == e, -1, kept[late])
    return kept


def gates_before_experts(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    """Multiplies what goes into an expert, not what comes out."""
    y = torch.zeros_like(x)
    for slot in range(experts.shape[1]):
        chosen, share = experts[:, slot : slot + 1], gates[:, slot : slot + 1]
        ones = torch.ones_like(share)
        y = y + mix(x * share.to(x.dtype), chosen, ones, weights=weights)
    return y


def last_expert_unread(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    last = len(weights.down) - 1
    return mix(x, torch.where(experts == last, 0, experts), gates, weights=weights)


def tokens_permuted_back_wrongly(
    x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any
) -> Tensor:
    order = experts[:, 0].argsort(stable=True)
    y = mix(x[order], experts[order], gates[order], weights=weights)
    return y[order]


def gates_for_other_experts(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    return mix(x, experts, gates.flip(-1), weights=weights)


def input_jittered(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    """Writes to its input."""
    y = mix(x, experts, gates, weights=weights)
    x.detach().mul_(1.01)
    return y


def gates_not_normalised(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    return mix(x, experts, gates.square(), weights=weights)


def wrong(
    function: Callable[..., Tensor], kills: str, kind: str = "mixture"
) -> tuple[Variant, str, str]:
    """Return a mutant whose implementation is this function, and the check that catches it."""
    right, one = RIGHT.implementations
    made = replace(
        RIGHT,
        name=f"mutant_{kind}_{function.__name__}",
        implementations=(right, replace(one, function=function)),
    )
    return made, kills, "wrong"


MUTANTS = (
    wrong(gate_and_up_swapped, "N1.mixture"),
    wrong(another_activation, "N1.mixture"),
    wrong(first_choice_alone, "N1.mixture"),
    wrong(crowded_out, "N1.mixture"),
    wrong(gates_before_experts, "N1.mixture"),
    wrong(last_expert_unread, "F1.expert_permutation"),
    wrong(tokens_permuted_back_wrongly, "F5.tokens_apart"),
    wrong(gates_for_other_experts, "N1.mixture"),
    wrong(gates_not_normalised, "N1.mixture"),
    wrong(input_jittered, "S2.inputs_unchanged"),
)
