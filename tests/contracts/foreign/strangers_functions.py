"""Softmax attention as strangers write it: right in some convention, or with mistakes."""

from __future__ import annotations

import math
from typing import Any

import torch

Tensor = torch.Tensor
INF = float("-inf")


def shared(key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    times = heads // key.shape[1]
    return key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)


def core(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None = None,
    *,
    scale: float | None = None,
    add: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Attend rightly; rows that see nothing are 0."""
    k, v = shared(k, v, q.shape[1])
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    logits = logits if add is None else logits + add
    logits = logits if seen is None else logits.masked_fill(~seen, INF)
    return logits.softmax(-1).nan_to_num(0.0) @ v


def lower(q: Tensor, k: Tensor, shift: int = 0) -> Tensor:
    ones = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
    return ones.tril(k.shape[-2] - q.shape[-2] + shift)


def upper(q: Tensor, k: Tensor) -> Tensor:
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()


# right, each in a convention of its own


def usual(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, scale: Any = None
) -> Tensor:
    return core(query, key, value, attn_mask, scale=scale)


def tokens_first(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return core(q, k, v, lower(q, k) if causal else None).transpose(1, 2)


def true_drops(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    return core(q, k, v, None if mask is None else ~mask)


def additive(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, scale: Any = None) -> Tensor:
    return core(q, k, v, scale=scale, add=mask)


def aligned_upper_left(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    return core(q, k, v, upper(q, k) if is_causal else None)


def causal_by_itself(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return core(q, k, v, lower(q, k))


def heads_first_out(q: Tensor, k: Tensor, v: Tensor, softmax_scale: Any = None) -> Tensor:
    return core(*(each.transpose(1, 2) for each in (q, k, v)), scale=softmax_scale)


def tokens_first_drops(
    q: Tensor, k: Tensor, v: Tensor, mask: Any = None, softcap: Any = None
) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return core(q, k, v, None if mask is None else ~mask, cap=softcap).transpose(1, 2)


# wrong with one mistake


def no_scale(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None) -> Tensor:
    return core(q, k, v, attn_mask, scale=1.0)


def tiled_heads(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    times = q.shape[1] // k.shape[1]
    k, v = (each.repeat(1, times, 1, 1) for each in (k, v))
    return core(q, k, v, lower(q, k) if is_causal else None)


def cap_after_bias(
    q: Tensor, k: Tensor, v: Tensor, bias: Any = None, softcap: Any = None
) -> Tensor:
    k, v = shared(k, v, q.shape[1])
    logits = q @ k.mT * q.shape[-1] ** -0.5
    logits = logits if bias is None else logits + bias
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return logits.softmax(-1) @ v


def one_ahead(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    return core(q, k, v, lower(q, k, 1) if causal else None)


def scale_of_width(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None) -> Tensor:
    return core(q, k, v, attn_mask, scale=1 / q.shape[-1])


def scale_ignored(q: Tensor, k: Tensor, v: Tensor, scale: Any = None) -> Tensor:
    return core(q, k, v)


def default_of_value_width(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    return core(q, k, v, scale=v.shape[-1] ** -0.5 if scale is None else scale)


def names_of_its_own(q: Tensor, k: Tensor, v: Tensor, m: Any = None, *, tri: Any = None) -> Tensor:
    return core(q, k, v)


def base_two(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None) -> Tensor:
    return core(q, k, v, attn_mask, scale=math.log(2) * q.shape[-1] ** -0.5)


def tokens_first_unscaled(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return core(q, k, v, lower(q, k) if causal else None, scale=1.0).transpose(1, 2)


def drops_and_tiles(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    times = q.shape[1] // k.shape[1]
    k, v = (each.repeat(1, times, 1, 1) for each in (k, v))
    return core(q, k, v, None if mask is None else ~mask)


def window_too_long(q: Tensor, k: Tensor, v: Tensor, window_size: Any = None) -> Tensor:
    i = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
    j = torch.arange(k.shape[2])
    seen = j <= i
    return core(q, k, v, seen if window_size is None else seen & (i - j <= window_size))


# wrong with two


def tiled_and_unscaled(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    times = q.shape[1] // k.shape[1]
    k, v = (each.repeat(1, times, 1, 1) for each in (k, v))
    return core(q, k, v, lower(q, k) if is_causal else None, scale=1.0)


def unscaled_one_ahead(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    return core(q, k, v, lower(q, k, 1) if causal else None, scale=1.0)


def base_two_bias_subtracted(q: Tensor, k: Tensor, v: Tensor, bias: Any = None) -> Tensor:
    k, v = shared(k, v, q.shape[1])
    logits = q @ k.mT * q.shape[-1] ** -0.5
    logits = logits if bias is None else logits - bias
    return (math.log(2) * logits).softmax(-1) @ v


# wrong, and nobody knows how


def values_turned(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None) -> Tensor:
    return core(q, k, v.flip(-1), attn_mask)


def noisy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return core(q, k, v) + 0.1


def odd_temperature(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None) -> Tensor:
    return core(q, k, v, attn_mask, scale=0.777 * q.shape[-1] ** -0.5)
