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
    assert beta is None
    assert log_decay is not None
    wide, groups = initial_state.dtype, query.shape[1]
    state = torch.unflatten(initial_state, 1, (groups, -1))  # (B, G, H/G, E, Ev)
    decays = torch.unflatten(log_decay.to(wide).exp(), 1, (groups, -1))  # (B, G, H/G, L)
    values = torch.unflatten(value.to(wide), 1, (groups, -1))  # (B, G, H/G, L, Ev)
    tokens = zip(
        query.to(wide).mul(scale).unbind(2),
        key.to(wide).unbind(2),
        values.unbind(3),
        decays.unbind(3),
        strict=True,
    )
    outs = []
    for q, k, v, decay in tokens:
        added = k[:, :, None, :, None] * v[..., None, :]  # (B, G, H/G, E, Ev)
        state = torch.addcmul(added, state, decay[..., None, None])
        outs.append((q[:, :, None, None, :] @ state).squeeze(-2))  # (B, G, H/G, Ev)
    out = torch.stack(outs, 3).flatten(1, 2)  # (B, H, L, Ev)
    return out.to(value.dtype), state.flatten(1, 2)
