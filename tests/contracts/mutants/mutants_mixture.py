"""Deliberately wrong mixtures of experts, and a right one.

Each is a real `attnkit.Variant` whose functions compute the definition but for one mistake.
`MUTANTS` says which check must catch it, and on which subject: ``wrong``, ``auto`` or ``layer``.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from attnkit_plugins.feedforward.moe import VARIANT as MOE

if TYPE_CHECKING:
    from attnkit.interface import Variant


def mix(
    x: torch.Tensor,
    experts: torch.Tensor,
    gates: torch.Tensor,
    *,
    weights: Any,
    mistake: str = "",
) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    tokens, y = x.to(wide), torch.zeros_like(x, dtype=wide)
    if mistake == "gates_cut_off":
        gates = gates.detach()
    if mistake == "gates_ignored":
        gates = torch.where(experts >= 0, 1 / experts.shape[1], 0.0)
    if mistake == "tokens_mixed":
        tokens = tokens + 1e-3 * tokens.mean(0)
    for expert in range(len(weights.down)):
        gate, up = (tokens @ weights.gate_up[expert].to(wide).mT).chunk(2, -1)
        answer = (torch.nn.functional.silu(gate) * up) @ weights.down[expert].to(wide).mT
        if mistake == "numbered_experts":
            answer = answer * (1 + 0.1 * expert)
        y = y + (gates * (experts == expert)).sum(-1, keepdim=True).to(wide) * answer
    if mistake == "all_experts_learn":
        y = y + 1e-3 * weights.down.to(wide).sum()
    if mistake == "padding_not_zero":
        y = y + 1e-2
    if mistake == "wrong_gradient":
        y = y + 0.01 * (y - y.detach())
    return y.to(x.dtype)


def _mixture(name: str) -> Variant:
    right = replace(MOE.implementations[1], name="reference", function=mix)
    wrong = replace(right, name="wrong", function=functools.partial(mix, mistake=name))
    return replace(MOE, name=f"mutant_mixture_{name}", implementations=(right, wrong))


RIGHT = _mixture("none")

MUTANTS = (
    (_mixture("gates_ignored"), "N1.mixture", "wrong"),
    (_mixture("wrong_gradient"), "N2.mixture", "wrong"),
    (_mixture("numbered_experts"), "F1.expert_permutation", "wrong"),
    (_mixture("all_experts_learn"), "F2.empty_experts", "wrong"),
    (_mixture("padding_not_zero"), "F3.padding", "wrong"),
    (_mixture("gates_cut_off"), "F4.router_gradient", "wrong"),
    (_mixture("tokens_mixed"), "F5.tokens_apart", "wrong"),
)
