"""The definitions in float64, one per family, plain enough to be checked by eye.

They share no code with any plugin. Who may look at what is the mask's own `Mask.allows`; the
checks of causality, windows and alignment compare with formulas of their own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from attnkit.masks.constructors import Sizes

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.masks.constructors import Mask


class Softmax(NamedTuple):
    """What `softmax` computed on the way.

    Attributes:
        out: (B, H, L, Ev).
        weights: (B, H, L, S), the probabilities; a row that sees no key is 0.
        sink: (B, H, L), the probability that goes to the sink; 0 without sinks.
        size: (B, H, L), a bound of the rounded terms of a row's logits; for error units.
    """

    out: Tensor
    weights: Tensor
    sink: Tensor
    size: Tensor


def softmax(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Softmax:
    """Attend by the definition; arguments as of `attnkit.attention`."""
    query, key, value = query.double(), key.double(), value.double()
    sizes = Sizes(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    shared = sizes.heads // key.shape[1]
    # query head h reads key/value head h // shared
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    seen = mask.to_bool(sizes, query.device).expand(*sizes)

    logits = factor * torch.einsum("bhle,bhse->bhls", query, key)
    size = abs(factor) * torch.einsum("bhle,bhse->bhls", query.detach().abs(), key.detach().abs())
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias.double()
        size = size + bias.detach().double().abs()
    logits = torch.where(seen, logits, float("-inf"))
    extra = torch.full_like(logits[..., :1], float("-inf"))
    if sinks is not None:
        extra = sinks.double()[:, None, None].expand_as(extra)  # (B, H, L, 1)
        # where it is the largest, all other logits are rounded when it is taken from them
        size = torch.maximum(size, extra.detach().abs())
    logits = torch.cat((logits, extra), -1)  # (B, H, L, S + 1)

    empty = (logits == float("-inf")).all(-1, keepdim=True)  # (B, H, L, 1)
    weights = torch.where(empty, 0.0, torch.where(empty, 0.0, logits).softmax(-1))
    weights, sink = weights[..., :-1], weights[..., -1]
    out = torch.einsum("bhls,bhsv->bhlv", weights, value)
    return Softmax(out, weights, sink, (size * seen).amax(-1) if sizes.keys else sink)


def recurrence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    log_decay: Tensor | None,
    beta: Tensor | None,
    scale: float,
    initial_state: Tensor,
    restart: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a recurrence token by token.

    Arguments as of `attnkit.interface.RecurrenceFunction`, and ``restart``, (B, L): True where
    the state is emptied before the token.

    Returns:
        The outputs (B, H, L, Ew) and the final state (B, H, E, Ew), in float64.
    """
    shared = value.shape[1] // key.shape[1]
    queries = scale * query.double().repeat_interleave(shared, 1)  # (B, H, L, E)
    keys = key.double().repeat_interleave(shared, 1)  # (B, H, L, E)
    # unbind, not an index per token: the gradient of each index would be as long as the whole
    rows = queries[..., None, :].unbind(2)  # (B, H, 1, E) each
    columns = keys[..., None].unbind(2)  # (B, H, E, 1) each
    values = value.double()[..., None, :].unbind(2)  # (B, H, 1, Ew) each
    decays: tuple[Tensor, ...] = ()
    if log_decay is not None:
        per_channel = log_decay if log_decay.dim() == 4 else log_decay[..., None]
        decays = per_channel.double().exp()[..., None].unbind(2)  # (B, H, E or 1, 1) each
    strengths = () if beta is None else beta.double()[..., None, None].unbind(2)  # (B, H, 1, 1)
    state, outputs = initial_state.double(), []  # (B, H, E, Ew)
    for t, (q, k, v) in enumerate(zip(rows, columns, values, strict=True)):
        if restart is not None:
            state = torch.where(restart[:, t, None, None, None], 0.0, state)
        if log_decay is not None:
            state = decays[t] * state
        if beta is not None:
            v = strengths[t] * (v - k.mT @ state)
        state = state + k * v
        outputs.append(q @ state)  # (B, H, 1, Ew)
    out = torch.cat(outputs, 2) if outputs else value.double() * 0.0  # (B, H, L, Ew)
    return out, state


def real_tokens(mask: Mask, batch: int, length: int, device: torch.device) -> Tensor:
    """Return which tokens are no padding, (B, L)."""
    keep = torch.ones(batch, length, dtype=torch.bool, device=device)
    for part in mask.conjuncts():
        if part.parts == {"padding"}:
            keep = keep & part.to_bool(Sizes(batch, 1, 1, length), device)[:, 0, 0]
    return keep


def restarts(mask: Mask, batch: int, length: int, device: torch.device) -> Tensor:
    """Return where a document begins behind another, (B, L)."""
    first = torch.zeros(batch, length, dtype=torch.bool, device=device)
    for part in mask.conjuncts():
        if part.parts == {"documents"}:
            same = part.to_bool(Sizes(batch, 1, length, length), device)[:, 0]  # (B, L, L)
            first[:, 1:] |= ~same.diagonal(-1, 1, 2)
    return first


class Routed(NamedTuple):
    """What the router of a mixture of experts decides, in float64.

    Attributes:
        gates: (B, L, k), the experts' shares; 0 where dropped or padding.
        experts: (B, L, k), most probable first; -1 where dropped or padding.
        dropped: How many of the real tokens' pairs of token and expert exceed the capacity.
        load_balance_loss: (1), E * sum_e f_e P_e over the real tokens.
        z_loss: (1), mean of logsumexp(logits) ** 2 over the real tokens.
    """

    gates: Tensor
    experts: Tensor
    dropped: int
    load_balance_loss: Tensor
    z_loss: Tensor


def routing(
    x: Tensor,
    router: Tensor,
    *,
    top_k: int,
    renormalise: bool,
    capacity_factor: float | None = None,
    keep: Tensor | None = None,
) -> Routed:
    """Send each token to its ``top_k`` most probable experts.

        f_e = share of all pairs of token and expert, P_e = mean probability of e

    Args:
        x: (B, L, D).
        router: (E, D).
        top_k: Experts per token; equal probabilities rank by expert index.
        renormalise: Divide the chosen probabilities by their sum; what is dropped later is in it.
        capacity_factor: An expert serves the first ceil(capacity_factor * n * k / E) that choose
            it of a sample's n real tokens. The losses count those that it does not serve, too.
        keep: (B, L), False at padding.
    """
    count = len(router)
    keep = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if keep is None else keep
    logits = torch.einsum("bld,ed->ble", x.double(), router.double())
    probabilities = logits.softmax(-1)  # (B, L, E)
    gates, experts = probabilities.sort(dim=-1, descending=True, stable=True)
    gates, experts = gates[..., :top_k], experts[..., :top_k]  # (B, L, k)
    if renormalise:
        gates = gates / gates.sum(-1, keepdim=True)
    load = torch.bincount(experts[keep].flatten(), minlength=count) / (keep.sum() * top_k)
    served = keep[..., None].repeat(1, 1, top_k)  # (B, L, k)
    if capacity_factor is not None:
        for sample, real in enumerate(keep):
            room = math.ceil(capacity_factor * int(real.sum()) * top_k / count)
            for expert in range(count):
                asked = (experts[sample] == expert) & real[:, None]  # (L, k)
                late = asked.any(-1).nonzero()[room:, 0]
                served[sample, late] &= ~asked[late]
    return Routed(
        gates=torch.where(served, gates, 0.0),
        experts=torch.where(served, experts, -1),
        dropped=int((keep[..., None] & ~served).sum()),
        load_balance_loss=count * (load * probabilities[keep].mean(0)).sum()[None],
        z_loss=logits[keep].logsumexp(-1).square().mean()[None],
    )


def mixture(
    x: Tensor, routed: Routed, gate_up: Tensor, down: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Send each token to the SwiGLU experts that `routing` has chosen.

        y = sum_k gate_k * down_k (silu(gate_k x) * up_k x)

    Args:
        x: (B, L, D).
        routed: Its experts and gates.
        gate_up: (E, 2F, D), the gate's rows above those of up.
        down: (E, D, F).
        keep: (B, L), False at padding, which gives 0.
    """
    x, gate_up, down = x.double(), gate_up.double(), down.double()
    y = torch.zeros_like(x)
    for expert in sorted(set(routed.experts.flatten().tolist()) - {-1}):
        gate, up = torch.einsum("bld,fd->blf", x, gate_up[expert]).chunk(2, -1)  # (B, L, F) each
        answer = torch.einsum("blf,df->bld", torch.nn.functional.silu(gate) * up, down[expert])
        share = (routed.gates * (routed.experts == expert)).sum(-1, keepdim=True)  # (B, L, 1)
        y = y + share * answer
    return y if keep is None else torch.where(keep[..., None], y, 0.0)
