"""One expert after the other, over the tokens that chose it. Touches no other expert's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from attnkit.kernels.onednn import fast

if TYPE_CHECKING:
    from attnkit_plugins.feedforward.moe.weights import ExpertWeights


def feedforward(x: Tensor, experts: Tensor, gates: Tensor, *, weights: ExpertWeights) -> Tensor:
    """Gather each expert's tokens, add its outputs to theirs; see `feedforward.moe`."""
    gate_up, down = _each(weights.gate_up), _each(weights.down)
    if x.shape[0] == 1 and bool((experts >= 0).all()):
        return _one_token(x, experts, gates, gate_up, down)
    order, counts = _sorted_slots(experts, len(weights.gate_up))
    token = order // experts.shape[1]  # (slots,)
    rows = x.index_select(0, token)  # (slots, D), expert after expert
    shares = gates.reshape(-1).index_select(0, order)[:, None]  # (slots, 1)
    # at least float32: a bfloat16 sum over the k experts loses half a digit
    y = x.new_zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32))  # (T, D)
    split = [torch.split(whole, counts) for whole in (token, rows, shares)]
    for expert, (to, tokens, share) in enumerate(zip(*split, strict=True)):
        # without any token, expert 0 runs on none: all get a zero gradient, not none
        if counts[expert] or (expert == 0 and not len(order)):
            output = fast(_expert, tokens, gate_up[expert], down[expert])
            # no index is repeated within one expert, so the sum has one order
            y = y.index_add_(0, to, (output * share).to(y.dtype))
    return y.to(x.dtype)


def _one_token(
    x: Tensor,
    experts: Tensor,
    gates: Tensor,
    gate_up: Sequence[Tensor] | Tensor,
    down: Sequence[Tensor] | Tensor,
) -> Tensor:
    """Compute a decoding step: k experts on one token, nothing sorted or gathered."""
    outputs = [_expert(x, gate_up[expert], down[expert]) for expert in experts[0].tolist()]
    return (torch.cat(outputs) * gates.T).sum(0, keepdim=True).to(x.dtype)  # (1, D)


def _expert(tokens: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = linear(tokens, gate_up).chunk(2, dim=-1)  # (n, F), (n, F)
    return linear(silu(gate) * up, down)  # (n, D)


def _each(stacked: Tensor) -> Sequence[Tensor] | Tensor:
    """Return the experts' matrices by index."""
    # unbind: one gradient for the stack; stacked[e] would make one of full size for every expert
    tracked = torch.is_grad_enabled() and stacked.requires_grad
    return stacked.unbind() if tracked else stacked


def _sorted_slots(experts: Tensor, num_experts: int) -> tuple[Tensor, list[int]]:
    """Return the used slots sorted by expert, (slots,), and how many each expert has."""
    flat = experts.reshape(-1)  # (T * k,)
    unused, *counts = torch.bincount(flat + 1, minlength=num_experts + 1).tolist()
    return flat.argsort(stable=True)[unused:], counts
