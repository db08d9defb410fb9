"""The recurrence token by token: the cheap form for a single step.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t

`recur` is an implementation as it stands: a variant names it as
``"attnkit.kernels.stepwise:recur"``. It has no delta rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from attnkit.interface import RecurrenceRules


def recur(
    query: Tensor, key: Tensor, value: Tensor, **rules: Unpack[RecurrenceRules]
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; see `attnkit.interface.RecurrenceFunction`.

    Note:
        O(L) time, one step of Python for every token. Sums run in the state's dtype.
    """
    assert rules["beta"] is None
    log_decay, initial_state = rules["log_decay"], rules["initial_state"]
    wide, (batch, heads, length) = initial_state.dtype, value.shape[:3]
    shared = heads // query.shape[1]
    queries = query.to(wide).mul(rules["scale"]).repeat_interleave(shared, 1)  # (B, H, L, E)
    keys = key.to(wide).repeat_interleave(shared, 1)  # (B, H, L, E)
    decays: Sequence[Tensor | None] = (None,) * length
    if log_decay is not None:
        per_channel = log_decay if log_decay.dim() == 4 else log_decay[..., None]
        factors = per_channel.to(wide).exp()  # (B, H, L, E or 1)
        decays = factors.flatten(0, 1)[..., None].unbind(1)  # (N, E or 1, 1) each
    # three dimensions, N = B H: in five, each step would cost torch twice as much
    tokens = zip(
        queries.flatten(0, 1)[:, :, None].unbind(1),  # (N, 1, E) each
        keys.flatten(0, 1)[..., None].unbind(1),  # (N, E, 1) each
        value.to(wide).flatten(0, 1)[:, :, None].unbind(1),  # (N, 1, Ev) each
        decays,
        strict=True,
    )
    state, outs = initial_state.flatten(0, 1), []  # (N, E, Ev)
    for q, k, v, decay in tokens:
        # (N, E, Ev)
        state = torch.addcmul(state, k, v) if decay is None else torch.addcmul(k * v, state, decay)
        outs.append(torch.bmm(q, state))  # (N, 1, Ev)
    out = torch.unflatten(torch.cat(outs, 1), 0, (batch, heads))  # (B, H, L, Ev)
    return out.to(value.dtype), torch.unflatten(state, 0, (batch, heads))
