"""Wrong variants whose mistake shows where two options or sizes come together.

`MUTANTS` says which check must catch it, and on which subject.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_attention import seen_by
from mutants_recurrence import RIGHT as RECURRENCE
from mutants_recurrence import recur
from mutants_softmax import attend, variant_of

import attnkit

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.interface import Variant

Pair = tuple["Tensor", "Tensor"]


def slowed(tensor: Tensor, factor: Tensor) -> Tensor:
    """The same values; the gradient times a factor."""
    return tensor * factor + (tensor * (1 - factor)).detach()


def second_tile_of_width_lost(query: Tensor, *rest: Tensor, **given: Any) -> Tensor:
    if query.shape[3] > 128:
        query = torch.cat((query[..., :128], 0 * query[..., 128:]), -1)
    return attend(query, *rest, **given)


def gradient_of_odd_widths_stale(query: Tensor, *rest: Tensor, **given: Any) -> Tensor:
    width = query.shape[3]
    if width > 64 and width % 32:
        query = slowed(query, torch.where(torch.arange(width) < width // 32 * 32, 1.0, 2.0))
    return attend(query, *rest, **given)


def scale_of_padded_width(query: Tensor, *rest: Tensor, scale: float, **given: Any) -> Tensor:
    width = query.shape[3]
    if width > 64:
        scale *= (width / (-(-width // 8) * 8)) ** 0.5
    return attend(query, *rest, scale=scale, **given)


def scale_without_sign(*inputs: Tensor, scale: float, **given: Any) -> Tensor:
    return attend(*inputs, scale=abs(scale), **given)


def window_unknown_to_one_query(
    query: Tensor, *rest: Tensor, mask: attnkit.Mask, **given: Any
) -> Tensor:
    if query.shape[2] == 1 and mask.parts == {"window"}:
        mask = attnkit.causal()
    return attend(query, *rest, mask=mask, **given)


def upper_left_beside_padding(
    query: Tensor, key: Tensor, value: Tensor, *, mask: attnkit.Mask, **given: Any
) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    if mask.is_causal and "padding" in mask.parts and 1 < queries < keys:
        seen = seen_by(mask, query, key) & torch.ones(queries, keys, dtype=torch.bool).tril()
        mask = attnkit.dense(seen)
    return attend(query, key, value, mask=mask, **given)


def prefix_of_first_sample(
    query: Tensor, key: Tensor, value: Tensor, *, mask: attnkit.Mask, **given: Any
) -> Tensor:
    if mask.parts == {"prefix"}:
        mask = attnkit.dense(seen_by(mask, query, key)[:1])
    return attend(query, key, value, mask=mask, **given)


def blocks_of_first_head(
    query: Tensor, key: Tensor, value: Tensor, *, mask: attnkit.Mask, **given: Any
) -> Tensor:
    if "blocks" in mask.parts:
        mask = attnkit.dense(seen_by(mask, query, key)[:, :1])
    return attend(query, key, value, mask=mask, **given)


def sink_of_empty_row_is_nan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: attnkit.Mask,
    sinks: Tensor | None,
    **given: Any,
) -> Tensor:
    out = attend(query, key, value, mask=mask, sinks=sinks, **given)
    if sinks is None:
        return out
    return torch.where(seen_by(mask, query, key).any(-1, keepdim=True), out, float("nan"))


def gradient_of_groups_tiled(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """The backward pass counts heads the other way, which shows in unequal groups."""
    heads, kv_heads = query.shape[1], key.shape[1]
    if kv_heads in (1, heads):
        return attend(query, key, value, **given)
    tiled = [each.repeat(1, heads // kv_heads, 1, 1) for each in (key, value)]
    wrong = attend(query.detach(), *tiled, **given)
    return attend(query, key.detach(), value.detach(), **given) + wrong - wrong.detach()


def bias_of_power_of_two_heads(
    query: Tensor, *rest: Tensor, bias: Tensor | None, **given: Any
) -> Tensor:
    heads = query.shape[1]
    power = 1 << (heads.bit_length() - 1)
    if bias is not None and bias.shape[1] == heads:
        index = torch.arange(heads)
        bias = bias[:, torch.where(index >= power, index - power, index)]
    return attend(query, *rest, bias=bias, **given)


def bias_rounded(query: Tensor, *rest: Tensor, bias: Tensor | None, **given: Any) -> Tensor:
    bias = None if bias is None else bias.to(query.dtype)
    return attend(query, *rest, bias=bias, **given)


def heads_beyond_eight_wrap(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    if 8 < query.shape[1] == key.shape[1]:
        index = torch.arange(query.shape[1]) % 8
        key, value = key[:, index], value[:, index]
    return attend(query, key, value, **given)


def samples_beyond_64_wrap(query: Tensor, *rest: Tensor, **given: Any) -> Tensor:
    return attend(query[torch.arange(len(query)) % 64], *rest, **given)


def gradient_of_later_keys_halved(query: Tensor, key: Tensor, *rest: Tensor, **given: Any) -> Any:
    """The first block of keys is right, as all of a short call is."""
    later = torch.arange(key.shape[2])[:, None] >= 64
    return attend(query, slowed(key, torch.where(later, 0.5, 1.0)), *rest, **given)


def gradient_of_late_queries_off(query: Tensor, *rest: Tensor, **given: Any) -> Tensor:
    late = torch.arange(query.shape[2])[:, None] >= 128
    return attend(slowed(query, torch.where(late, 1.01, 1.0)), *rest, **given)


def narrow_values_off(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    return attend(query, key, value * 1.01 if value.shape[3] < query.shape[3] else value, **given)


def beta_gradient_without_decay(
    *inputs: Tensor, log_decay: Tensor | None, beta: Tensor | None, **given: Any
) -> Pair:
    if log_decay is None and beta is not None:
        beta = slowed(beta, torch.tensor(0.5))
    return recur(*inputs, log_decay=log_decay, beta=beta, **given)


def beta_of_groups(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    if given["beta"] is not None and query.shape[1] != value.shape[1]:
        given["beta"] = given["beta"] * 0.9
    return recur(query, key, value, **given)


def beta_clamped(*inputs: Tensor, beta: Tensor | None, **given: Any) -> Pair:
    return recur(*inputs, beta=None if beta is None else beta.clamp(0, 1), **given)


def state_beside_wide_values(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    if value.shape[3] != query.shape[3]:
        given["initial_state"] = given["initial_state"] * 0.5
    return recur(query, key, value, **given)


def state_scaled(*inputs: Tensor, scale: float, **given: Any) -> Pair:
    out, state = recur(*inputs, scale=scale, **given)
    return out, state * scale


def state_of_neighbour(*inputs: Tensor, initial_state: Tensor, **given: Any) -> Pair:
    if len(initial_state) > 3:
        initial_state = initial_state.roll(1, 0)
    return recur(*inputs, initial_state=initial_state, **given)


def scale_unknown_to_one_token(*inputs: Tensor, scale: float, **given: Any) -> Pair:
    return recur(*inputs, scale=1.0 if inputs[2].shape[2] == 1 else scale, **given)


def groups_tiled_for_one_token(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    if value.shape[2] == 1:
        shared = value.shape[1] // key.shape[1]
        query, key = query.repeat(1, shared, 1, 1), key.repeat(1, shared, 1, 1)
    return recur(query, key, value, **given)


def gradient_of_first_chunk_halved(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    if value.shape[2] > 48:
        first = torch.arange(value.shape[2])[:, None] < 16
        key = slowed(key, torch.where(first, 0.5, 1.0))
    return recur(query, key, value, **given)


def width_beyond_64_lost(query: Tensor, *rest: Tensor, **given: Any) -> Pair:
    if query.shape[3] > 128:
        query = torch.cat((query[..., :128], 0 * query[..., 128:]), -1)
    return recur(query, *rest, **given)


def _softmax(function: Callable[..., Tensor], dtype: str = "float32") -> Any:
    made = variant_of(f"together_{function.__name__}", function)
    return made, "N1.combinations", "wrong", dtype


def _recurrence(function: Callable[..., Pair]) -> tuple[Variant, str, str]:
    right, wrong = RECURRENCE.implementations
    made = replace(
        RECURRENCE,
        name=f"mutant_together_{function.__name__}",
        implementations=(right, replace(wrong, function=function)),
    )
    return made, "N1.recurrence_combinations", "wrong"


MUTANTS = (
    _softmax(second_tile_of_width_lost),
    _softmax(gradient_of_odd_widths_stale),
    _softmax(scale_of_padded_width),
    _softmax(scale_without_sign),
    _softmax(window_unknown_to_one_query),
    _softmax(upper_left_beside_padding),
    _softmax(prefix_of_first_sample),
    _softmax(blocks_of_first_head),
    _softmax(sink_of_empty_row_is_nan),
    _softmax(gradient_of_groups_tiled),
    _softmax(bias_of_power_of_two_heads),
    _softmax(bias_rounded, "bfloat16"),
    _softmax(heads_beyond_eight_wrap),
    _softmax(samples_beyond_64_wrap),
    _softmax(gradient_of_later_keys_halved),
    _softmax(gradient_of_late_queries_off),
    _softmax(narrow_values_off),
    _recurrence(beta_gradient_without_decay),
    _recurrence(beta_of_groups),
    _recurrence(beta_clamped),
    _recurrence(state_beside_wide_values),
    _recurrence(state_scaled),
    _recurrence(state_of_neighbour),
    _recurrence(scale_unknown_to_one_token),
    _recurrence(groups_tiled_for_one_token),
    _recurrence(gradient_of_first_chunk_halved),
    _recurrence(width_beyond_64_lost),
)
