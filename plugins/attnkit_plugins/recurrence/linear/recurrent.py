"""The recurrence token by token: the cheap form for a single step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.interface import Options


def recur(
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
    """Run the recurrence; see `attnkit.interface.RecurrenceFunction`.

    Note:
        O(L) time, one step of Python for every token. Sums run in the state's dtype.
    """
    assert log_decay is None
    assert beta is None
    wide, (batch, heads) = initial_state.dtype, value.shape[:2]
    shared = heads // query.shape[1]
    queries = query.to(wide).mul(scale).repeat_interleave(shared, 1)  # (B, H, L, E)
    keys = key.to(wide).repeat_interleave(shared, 1)  # (B, H, L, E)
    # three dimensions, N = B H: in five, each step would cost torch twice as much
    tokens = zip(
        queries.flatten(0, 1)[:, :, None].unbind(1),  # (N, 1, E) each
        keys.flatten(0, 1)[..., None].unbind(1),  # (N, E, 1) each
        value.to(wide).flatten(0, 1)[:, :, None].unbind(1),  # (N, 1, Ev) each
        strict=True,
    )
    state, outs = initial_state.flatten(0, 1), []  # (N, E, Ev)
    for q, k, v in tokens:
        state = torch.addcmul(state, k, v)  # (N, E, Ev)
        outs.append(torch.bmm(q, state))  # (N, 1, Ev)
    out = torch.unflatten(torch.cat(outs, 1), 0, (batch, heads))  # (B, H, L, Ev)
    return out.to(value.dtype), torch.unflatten(state, 0, (batch, heads))
