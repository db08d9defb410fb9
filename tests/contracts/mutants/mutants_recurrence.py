"""Deliberately wrong recurrences, and a right one.

Each is a real `attnkit.Variant` whose functions compute the definition but for one mistake.
`MUTANTS` says which check must catch it, and on which subject: ``wrong``, ``auto`` or ``layer``.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch

from attnkit.interface import Implementation, Variant
from attnkit_plugins.recurrence.gated_linear import VARIANT as GATED_LINEAR


def recur(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    log_decay: torch.Tensor | None,
    beta: torch.Tensor | None,
    scale: float,
    initial_state: torch.Tensor,
    options: Any,
    mistake: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    wide, heads = initial_state.dtype, value.shape[1]
    shared = heads // key.shape[1]
    if mistake == "groups_tiled":
        query, key = query.repeat(1, shared, 1, 1), key.repeat(1, shared, 1, 1)
    else:
        query, key = query.repeat_interleave(shared, 1), key.repeat_interleave(shared, 1)
    state, outs = initial_state, []
    if mistake == "state_not_carried":
        state = torch.zeros_like(state)
    for t in range(value.shape[2]):
        q, k, v = (each[:, :, t].to(wide) for each in (query, key, value))
        decay = torch.ones_like(k) if log_decay is None else log_decay[:, :, t].to(wide).exp()
        decay = decay if decay.dim() == 3 else decay[..., None].expand_as(k)
        if mistake == "chunk_boundary" and t and t % options.chunk_size == 0:
            decay = decay * 0.99
        if mistake != "decay_after_update":
            state = state * decay[..., None]
        if beta is not None and mistake != "beta_ignored":
            v = beta[:, :, t, None].to(wide) * (v - torch.einsum("bhev,bhe->bhv", state, k))
        state = state + k[..., None] * v[..., None, :]
        if mistake == "decay_after_update":
            state = state * decay[..., None]
        outs.append(scale * torch.einsum("bhev,bhe->bhv", state, q))
    out = torch.stack(outs, 2) if outs else value.to(wide)
    if mistake == "wrong_gradient":
        out = out + 0.01 * (out - out.detach())
    if mistake == "state_shared" and not state.requires_grad:
        state = initial_state.copy_(state)
    return out.to(value.dtype), state


PROMISES = GATED_LINEAR.promises.model_copy(
    update={
        "decay": ("none", "head", "channel"),
        "beta": True,
        "compile": False,
        "memory": "L*S",
        "time": "L*S",
    }
)


def _recurrence(name: str, **update: Any) -> Variant:
    right = Implementation(
        name="reference",
        function=recur,
        summary="",
        promises=PROMISES,
        cost=lambda _: 1.0,
    )
    wrong = functools.partial(recur, mistake=name)
    return replace(
        GATED_LINEAR,
        name=f"mutant_recurrence_{name}",
        promises=PROMISES.model_copy(update=update),
        implementations=(right, replace(right, name="wrong", function=wrong)),
    )


def _stopping_nan(name: str) -> Variant:
    """A variant that promises to stop NaN in all of its ways; of products of a chunk none does."""
    ways = tuple(
        replace(each, promises=each.promises.model_copy(update={"stops_nan": True}))
        for each in GATED_LINEAR.implementations
    )
    promises = GATED_LINEAR.promises.model_copy(update={"stops_nan": True})
    return replace(
        GATED_LINEAR,
        name=f"mutant_recurrence_{name}",
        promises=promises,
        implementations=ways,
        placement=None,
    )


RIGHT = _recurrence("none")

MUTANTS = (
    (_recurrence("decay_after_update"), "N1.recurrence", "wrong"),
    (_recurrence("wrong_gradient"), "N2.recurrence_backward", "wrong"),
    (_recurrence("state_not_carried"), "T2.steps", "wrong"),
    (_recurrence("state_shared"), "T4.recurrent_state", "wrong"),
    (_recurrence("chunk_boundary"), "T3.chunk_size", "wrong"),
    (_recurrence("groups_tiled"), "A2.head_map", "wrong"),
    (_stopping_nan("nan_within_a_chunk"), "M9.stops_nan", "chunked"),
    (_recurrence("beta_ignored"), "S10.recurrence_promised", "wrong"),
    (_recurrence("beta_in_silence", beta=False), "S10.recurrence_refused", "auto"),
    (_recurrence("decay_in_silence", decay=("head",)), "S10.decays", "auto"),
)
