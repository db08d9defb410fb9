"""Which expert gets which token, at what share, and the two losses that keep this healthy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Router(nn.Linear):
    """Logits of the experts, (..., D) to (..., E)."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute in at least float32: half precision would reorder near ties."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return linear(input.to(wide), self.weight.to(wide))


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What the router decided for one call; R is float32, or float64 in a float64 layer.

    Attributes:
        logits: (B, L, E), R; 0 at padding.
        probabilities: (B, L, E), R, softmax of the logits; 0 at padding.
        experts: (B, L, k), int64, most probable first; -1 where dropped or padding.
        gates: (B, L, k), R, the experts' shares; 0 where dropped or padding.
        dropped: (), int64, how many token-expert pairs exceeded the capacity.
        load_balance_loss: (), R, E * sum_e f_e P_e; 1.0 for an even load.
        z_loss: (), R, the mean of logsumexp(logits) ** 2.
    """

    logits: Tensor
    probabilities: Tensor
    experts: Tensor
    gates: Tensor
    dropped: Tensor
    load_balance_loss: Tensor
    z_loss: Tensor


def route(
    logits: Tensor, keep: Tensor, *, top_k: int, renormalise: bool, capacity_factor: float | None
) -> Routing:
    """Choose each token's k most probable experts.

    Args:
        logits: (B, L, E), at least float32, finite at padding.
        keep: (B, L), bool, False at padding.
        top_k: Experts per token.
        renormalise: Divide the chosen probabilities by their sum.
        capacity_factor: An expert takes at most ceil(capacity_factor * n * k / E) of a sample's
            n tokens, the first ones; None for no bound.

    Source: Fedus et al. 2021, https://arxiv.org/abs/2101.03961, eq. 1 to 3. There k = 1 and the
    capacity is counted over the batch; here over a sample, whose output so depends on no other.
    """
    probabilities = logits.softmax(-1)  # (B, L, E)
    # a stable sort, as topk promises nothing about ties: the lowest index wins
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)  # (B, L, E)
    gates, experts = ranked[..., :top_k], order[..., :top_k]  # (B, L, k)
    if renormalise:
        gates = gates / gates.sum(-1, keepdim=True)
    real = keep[..., None]  # (B, L, 1)
    probabilities = probabilities * real
    # before any is dropped, as in the paper
    assigned = torch.zeros_like(logits, dtype=torch.int64).scatter(-1, experts, 1) * real
    served = real.expand_as(experts)  # (B, L, k)
    if capacity_factor is not None:
        fits = assigned.cumsum(1) <= _capacity(keep, assigned.shape[-1], top_k, capacity_factor)
        served = served & fits.gather(-1, experts)
    return Routing(
        logits=logits,
        probabilities=probabilities,
        experts=torch.where(served, experts, -1),
        gates=torch.where(served, gates, gates.new_zeros(())),
        dropped=(real & ~served).sum(),
        load_balance_loss=load_balance_loss(probabilities, assigned),
        z_loss=z_loss(logits, keep),
    )


def load_balance_loss(probabilities: Tensor, assigned: Tensor) -> Tensor:
    """Weigh each expert's load with its mean probability.

        E * sum_e f_e P_e

    f_e is the share of all assignments (tokens times k) that go to e, P_e the mean probability
    of e; the gradient is that of P. A uniform router gives 1.0, whatever k is.

    Args:
        probabilities: (B, L, E), 0 at padding.
        assigned: (B, L, E), 1 where a token is sent to an expert; 0 at padding.

    Source: Fedus et al. 2021, https://arxiv.org/abs/2101.03961, eq. 4 to 6, where k = 1.
    """
    load = assigned.sum((0, 1)).to(probabilities.dtype)  # (E,)
    mass = probabilities.sum((0, 1))  # (E,)
    tokens = (assigned.sum(-1) > 0).sum().clamp(min=1)
    share = load / load.sum().clamp(min=1)
    return len(share) * (share * mass / tokens).sum()


def z_loss(logits: Tensor, keep: Tensor) -> Tensor:
    """Return the mean of logsumexp(logits) ** 2 over the real tokens.

    Args:
        logits: (B, L, E).
        keep: (B, L), bool, False at padding.

    Source: Zoph et al. 2022, https://arxiv.org/abs/2202.08906, eq. 5.
    """
    return (logits.logsumexp(-1).square() * keep).sum() / keep.sum().clamp(min=1)


def _capacity(keep: Tensor, num_experts: int, top_k: int, factor: float) -> Tensor:
    """Return how many tokens each expert takes of each sample, (B, 1, 1)."""
    tokens = keep.sum(-1, dtype=torch.float64)[:, None, None]  # (B, 1, 1)
    return torch.ceil(factor * tokens * top_k / num_experts)
