"""More deliberately wrong recurrences: each does one thing before or after the right one.

`MUTANTS` says which check must catch it, and on which subject.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_recurrence import RIGHT, recur

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.interface import Variant

Pair = tuple["Tensor", "Tensor"]


def decay_to_base_two(*inputs: Tensor, log_decay: Tensor | None, **given: Any) -> Pair:
    log_decay = None if log_decay is None else log_decay * math.log(2)
    return recur(*inputs, log_decay=log_decay, **given)


def decay_of_first_channel(*inputs: Tensor, log_decay: Tensor | None, **given: Any) -> Pair:
    if log_decay is not None and log_decay.dim() == 4:
        log_decay = log_decay[..., :1].expand_as(log_decay)
    return recur(*inputs, log_decay=log_decay, **given)


def decay_one_token_late(*inputs: Tensor, log_decay: Tensor | None, **given: Any) -> Pair:
    log_decay = None if log_decay is None else log_decay.roll(1, 2)
    return recur(*inputs, log_decay=log_decay, **given)


def beta_twice(*inputs: Tensor, beta: Tensor | None, **given: Any) -> Pair:
    return recur(*inputs, beta=None if beta is None else beta * beta, **given)


def scale_ignored(*inputs: Tensor, scale: float, **given: Any) -> Pair:
    return recur(*inputs, scale=1.0, **given)


def initial_state_ignored(*inputs: Tensor, initial_state: Tensor, **given: Any) -> Pair:
    return recur(*inputs, initial_state=torch.zeros_like(initial_state), **given)


def initial_state_transposed(*inputs: Tensor, initial_state: Tensor, **given: Any) -> Pair:
    if initial_state.shape[2] == initial_state.shape[3]:
        initial_state = initial_state.mT
    return recur(*inputs, initial_state=initial_state, **given)


def final_state_early(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    """Returns the state before the last token."""
    out, state = recur(query, key, value, **given)
    return out, state - key[:, :, -1, :, None] * value[:, :, -1, None] * (key.shape[2] > 0)


def state_in_half_precision(*inputs: Tensor, **given: Any) -> Pair:
    out, state = recur(*inputs, **given)
    return out, state.bfloat16()


def state_rounded_to_inputs(query: Tensor, *inputs: Tensor, **given: Any) -> Pair:
    """The state is float32, and holds what bfloat16 holds."""
    out, state = recur(query, *inputs, **given)
    return out, state.to(query.dtype).to(state.dtype) if query.shape[2] else state


def decay_by_differences(
    *inputs: Tensor, log_decay: Tensor | None, options: Any, **given: Any
) -> Pair:
    """Sums of decays are taken from one another, which -inf does not survive."""
    if log_decay is not None:
        total = log_decay.double().cumsum(2)
        log_decay = total.diff(dim=2, prepend=torch.zeros_like(total[:, :, :1]))
    return recur(*inputs, log_decay=log_decay, options=options, **given)


def decay_of_at_least(*inputs: Tensor, log_decay: Tensor | None, **given: Any) -> Pair:
    """Nothing decays by more than e^-30, so nothing is wholly forgotten."""
    log_decay = None if log_decay is None else log_decay.clamp(min=-30.0)
    return recur(*inputs, log_decay=log_decay, **given)


def output_before_update(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    """A token does not see itself."""
    out, state = recur(query, key, value, **given)
    shared = value.shape[1] // key.shape[1]
    own = (query * key).sum(-1, keepdim=True).repeat_interleave(shared, 1) * value
    return out - given["scale"] * own, state


def normalised_over_heads(*inputs: Tensor, **given: Any) -> Pair:
    out, state = recur(*inputs, **given)
    return out / out.abs().sum(1, keepdim=True).clamp(min=1), state


def normalised_over_time(*inputs: Tensor, **given: Any) -> Pair:
    out, state = recur(*inputs, **given)
    return out / (1 + 1e-3 * out.detach().abs().sum(2, keepdim=True)), state


def tail_of_chunk_lost(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    """What is behind the last whole chunk of 64 is not added to."""
    whole = key.shape[2] // 64 * 64
    if whole and whole < key.shape[2]:
        key = torch.cat((key[:, :, :whole], 0 * key[:, :, whole:]), 2)
    return recur(query, key, value, **given)


def decay_overflows(*inputs: Tensor, log_decay: Tensor | None, **given: Any) -> Pair:
    """Divides by the decay so far, in place of subtracting its logarithm."""
    out, state = recur(*inputs, log_decay=log_decay, **given)
    if log_decay is None:
        return out, state
    sums = log_decay.to(state.dtype).cumsum(2)
    sums = sums if sums.dim() == 3 else sums.amin(-1)
    return out * (sums.exp() * (-sums).exp())[..., None].to(out.dtype), state


def products_rounded(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    """Outputs are summed in bfloat16."""
    out, state = recur(query, key, value, **given)
    return out.bfloat16().to(out.dtype), state


def gradient_of_state_lost(*inputs: Tensor, initial_state: Tensor, **given: Any) -> Pair:
    kept = initial_state.detach() + 0 * initial_state
    return recur(*inputs, initial_state=kept, **given)


def gradient_of_decay_halved(*inputs: Tensor, log_decay: Tensor | None, **given: Any) -> Pair:
    if log_decay is not None:
        log_decay = (log_decay + log_decay.detach()) / 2
    return recur(*inputs, log_decay=log_decay, **given)


def odd_widths_cut(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    even = query.shape[3] // 8 * 8
    if query.shape[3] > 8 and even < query.shape[3]:
        query = torch.cat((query[..., :even], 0 * query[..., even:]), -1)
    return recur(query, key, value, **given)


def samples_share_a_state(*inputs: Tensor, initial_state: Tensor, **given: Any) -> Pair:
    """Finds the state of a sample by its place among those of a chunk."""
    out, state = recur(*inputs, initial_state=initial_state, **given)
    return out, state[:1].expand_as(state).clone()


def _wrong(function: Callable[..., Pair], kills: str) -> tuple[Variant, str, str]:
    right, wrong = RIGHT.implementations
    return (
        replace(
            RIGHT,
            name=f"mutant_recurrence_{function.__name__}",
            implementations=(right, replace(wrong, function=function)),
        ),
        kills,
        "wrong",
    )


def gradient_halved_across_chunks(
    *inputs: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    initial_state: Tensor,
    **given: Any,
) -> Pair:
    """What goes from a chunk of 64 to the one before is halved on the way back."""
    state, outs = initial_state, []
    for start in range(0, max(1, inputs[2].shape[2]), 64):
        if start:
            state = 0.5 * state + 0.5 * state.detach()
        now = slice(start, start + 64)
        out, state = recur(
            *(each[:, :, now] for each in inputs),
            log_decay=None if log_decay is None else log_decay[:, :, now],
            beta=None if beta is None else beta[:, :, now],
            initial_state=state,
            **given,
        )
        outs.append(out)
    return torch.cat(outs, 2), state


MUTANTS = (
    _wrong(decay_to_base_two, "N1.recurrence"),
    _wrong(decay_of_first_channel, "N1.recurrence"),
    _wrong(decay_one_token_late, "N1.recurrence"),
    _wrong(beta_twice, "N1.recurrence"),
    _wrong(scale_ignored, "S10.recurrence_promised"),
    _wrong(initial_state_ignored, "T4.recurrent_state"),
    _wrong(initial_state_transposed, "T4.recurrent_state"),
    _wrong(final_state_early, "T3.chunks"),
    _wrong(state_in_half_precision, "T4.recurrent_state"),
    (*_wrong(state_rounded_to_inputs, "T4.state_kept"), "bfloat16"),
    _wrong(decay_by_differences, "A9.infinite_decay"),
    _wrong(decay_of_at_least, "A9.infinite_decay"),
    _wrong(output_before_update, "N1.recurrence"),
    _wrong(normalised_over_heads, "N1.recurrence"),
    _wrong(normalised_over_time, "T1.prefix"),
    _wrong(tail_of_chunk_lost, "S8.lengths"),
    _wrong(decay_overflows, "A9.extreme_decays"),
    _wrong(products_rounded, "N1.recurrence"),
    _wrong(gradient_of_state_lost, "N2.recurrence_backward"),
    _wrong(gradient_of_decay_halved, "N2.recurrence_backward"),
    _wrong(gradient_halved_across_chunks, "N2.recurrence_backward"),
    _wrong(odd_widths_cut, "S8.widths"),
    _wrong(samples_share_a_state, "T4.recurrent_state"),
)
