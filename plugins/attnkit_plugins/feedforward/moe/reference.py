"""The definition in float64: token by token, expert by expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import silu

if TYPE_CHECKING:
    from attnkit_plugins.feedforward.moe.weights import ExpertWeights


def feedforward(x: Tensor, experts: Tensor, gates: Tensor, *, weights: ExpertWeights) -> Tensor:
    """Compute one token after the other; see `attnkit_plugins.feedforward.moe`."""
    gate_up, down = weights.gate_up.double(), weights.down.double()
    # an empty sum over everything: what is not used has a zero gradient, not none
    nothing = gate_up[:0].sum() + down[:0].sum() + gates[:0].sum() + x[:0].sum()
    outputs = []
    for token, chosen, shares in zip(x.double(), experts.tolist(), gates.double(), strict=True):
        y = torch.zeros_like(token) + nothing  # (D,)
        for expert, share in zip(chosen, shares, strict=True):
            if expert >= 0:
                gate, up = (gate_up[expert] @ token).chunk(2)  # (F,), (F,)
                y = y + share * (down[expert] @ (silu(gate) * up))
        outputs.append(y)
    return torch.stack(outputs).to(x.dtype)  # (T, D)
