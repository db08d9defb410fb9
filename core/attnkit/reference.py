"""The definitions of the softmax and the recurrence family: float64, all at once, token by token.

Variants name these as their implementation ``reference``: what they promise is this, restricted
to the masks and arguments they take. Written to be checked by eye, not to be fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnkit.interface import Options
from attnkit.masks.constructors import Mask, Sizes


def softmax(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """Attend; see `attnkit.interface.SoftmaxFunction`. Takes no dropout.

    Note:
        O(L S) time and memory.
    """
    assert dropout_p == 0.0
    batch, heads, length, _ = query.shape
    sizes = Sizes(batch, heads, length, key.shape[2])
    per_kv_head = heads // key.shape[1]
    keys = key.double().repeat_interleave(per_kv_head, 1)  # (B, H, S, E)
    values = value.double().repeat_interleave(per_kv_head, 1)  # (B, H, S, Ev)

    logits = scale * (query.double() @ keys.mT)  # (B, H, L, S)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias.double()
    logits = logits.masked_fill(~mask.to_bool(sizes, query.device), float("-inf"))
    if sinks is not None:
        sink = sinks.double()[:, None, None].expand(batch, heads, length, 1)
        logits = torch.cat([logits, sink], -1)  # (B, H, L, S + 1)

    # softmax by hand: of a row that sees nothing, torch's makes NaN
    peak = logits.detach().amax(-1, keepdim=True)
    weights = torch.exp(logits - peak.masked_fill(peak == float("-inf"), 0.0))
    total = weights.sum(-1, keepdim=True)  # (B, H, L, 1)
    probabilities = weights / total.masked_fill(total == 0, 1.0)
    return (probabilities[..., : sizes.keys] @ values).to(query.dtype)  # (B, H, L, Ev)


def recurrence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    log_decay: Tensor | None,
    beta: Tensor | None,
    scale: float,
    initial_state: Tensor,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; see `attnkit.interface.RecurrenceFunction`."""
    per_group = value.shape[1] // query.shape[1]
    queries = scale * query.double().repeat_interleave(per_group, 1)  # (B, H, L, E)
    keys = key.double().repeat_interleave(per_group, 1)  # (B, H, L, E)
    # unbind, not an index per token: the gradient of each index would be as long as the whole
    rows = queries[..., None, :].unbind(2)  # (B, H, 1, E) each
    columns = keys[..., None].unbind(2)  # (B, H, E, 1) each
    values = value.double()[..., None, :].unbind(2)  # (B, H, 1, Ev) each
    decays: tuple[Tensor, ...] = ()
    if log_decay is not None:
        per_channel = log_decay if log_decay.dim() == 4 else log_decay[..., None]
        decays = per_channel.double().exp()[..., None].unbind(2)  # (B, H, E or 1, 1) each
    strengths = () if beta is None else beta.double()[..., None, None].unbind(2)  # (B, H, 1, 1)
    state, outs = initial_state.double(), []  # (B, H, E, Ev)
    for t, (q, k, v) in enumerate(zip(rows, columns, values, strict=True)):
        if log_decay is not None:
            state = decays[t] * state
        if beta is not None:
            v = strengths[t] * (v - k.mT @ state)
        state = state + k * v
        outs.append(q @ state)  # (B, H, 1, Ev)
    out = torch.cat(outs, 2).to(value.dtype)  # (B, H, L, Ev)
    return out, state.to(initial_state.dtype)
