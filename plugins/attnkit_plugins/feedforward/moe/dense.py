"""Every expert over all tokens, those of others as zeros. Traces in every dtype; E / k the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

if TYPE_CHECKING:
    from attnkit_plugins.feedforward.moe.weights import ExpertWeights


def feedforward(x: Tensor, experts: Tensor, gates: Tensor, *, weights: ExpertWeights) -> Tensor:
    """Run each expert on every token's row or on a row of zeros; see `feedforward.moe`."""
    y = x.new_zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32))  # (T, D)
    for expert, (gate_up, down) in enumerate(
        zip(weights.gate_up.unbind(), weights.down.unbind(), strict=True)
    ):
        chosen = experts == expert  # (T, k)
        share = torch.where(chosen, gates, gates.new_zeros(())).sum(-1, keepdim=True)  # (T, 1)
        # zeros, not a share of zero: what overflows in an expert that was not asked stays unseen
        rows = torch.where(chosen.any(-1, keepdim=True), x, x.new_zeros(()))  # (T, D)
        gate, up = linear(rows, gate_up).chunk(2, dim=-1)  # (T, F), (T, F)
        y = y + linear(silu(gate) * up, down) * share
    return y.to(x.dtype)
