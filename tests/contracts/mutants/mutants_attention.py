"""More deliberately wrong softmax operations: each does one thing before or after the right one.

`MUTANTS` says which check must catch it, on which subject, and in which dtype where not float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from mutants_softmax import Passing, attend, variant_of

import attnkit
from attnkit.masks.constructors import Sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BEYOND = 2**31


def seen_by(mask: Any, query: Tensor, key: Tensor) -> Tensor:
    """The mask written out, (B, H, L, S)."""
    sizes = Sizes(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return mask.to_bool(sizes, query.device).expand(*sizes).clone()


def tail_unwritten(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    out = attend(query, key, value, **given)
    buffer = torch.empty_like(out)
    buffer[:, :, : out.shape[2] // 4 * 4] = out[:, :, : out.shape[2] // 4 * 4]
    return buffer


class StrideBlind(Passing):
    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return torch.as_strided(grad, grad.shape, torch.empty(grad.shape).stride()).clone()


def grad_out_stride_blind(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    return StrideBlind.apply(attend(query, key, value, **given))


_masks: dict[object, Tensor] = {}


def mask_cached_by_length(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any
) -> Tensor:
    signature = (query.shape[:3], key.shape[2])
    if signature not in _masks:
        _masks[signature] = seen_by(mask, query, key)
    return attend(query, key, value, mask=attnkit.dense(_masks[signature]), **given)


def offset_of_32_bits(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    def narrow(x: Tensor) -> Tensor:
        strides = [stride % BEYOND for stride in x.stride()]
        return x.as_strided(x.shape, strides)

    return attend(narrow(query), narrow(key), narrow(value), **given)


def gradient_from_the_future(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    out = attend(query, key, value, **given)
    if query.shape[1] != value.shape[1] or query.shape[2] != value.shape[2]:
        return out
    leak = 1e-3 * value.mean(2, keepdim=True).expand(out.shape)
    return out + (leak - leak.detach())


def dense_added(query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any) -> Tensor:
    """A bool mask taken for an additive one: True adds 1, False adds 0."""
    if "dense" not in mask.parts:
        return attend(query, key, value, mask=mask, **given)
    seen = seen_by(mask, query, key).to(query.dtype)
    bias = given.pop("bias")
    bias = seen if bias is None else bias + seen
    return attend(query, key, value, mask=attnkit.full(), bias=bias, **given)


def first_bias_for_all(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, **given: Any
) -> Tensor:
    """Reads the bias of the first sample and head for every other one."""
    if bias is not None and bias.shape[2] > 1:
        bias = bias[:, :1]
    return attend(query, key, value, bias=bias, **given)


def packed_is_cooler(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, scale: float, **given: Any
) -> Tensor:
    scale = scale * 0.98 if "documents" in mask.parts else scale
    return attend(query, key, value, mask=mask, scale=scale, **given)


def later_keys_favoured(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, **given: Any
) -> Tensor:
    slope = 1e-3 * torch.arange(key.shape[2], device=key.device, dtype=query.dtype)
    slope = slope[None, None, None].expand(*query.shape[:3], -1)
    bias = slope if bias is None else bias + slope
    return attend(query, key, value, bias=bias, **given)


def logits_cut_off(
    query: Tensor, key: Tensor, value: Tensor, *, softcap: float | None, **given: Any
) -> Tensor:
    """A cap of 400 that nobody asked for: what is usual hardly notices."""
    return attend(query, key, value, softcap=400.0 if softcap is None else softcap, **given)


def bias_inside_the_cap(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None,
    softcap: float | None,
    **given: Any,
) -> Tensor:
    out = attend(query, key, value, bias=bias, softcap=softcap, **given)
    if bias is None or softcap is None:
        return out
    return attend(query, key, value, bias=softcap * torch.tanh(bias / softcap), softcap=softcap,
                  **given)  # fmt: skip


def sink_scaled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sinks: Tensor | None,
    scale: float,
    **given: Any,
) -> Tensor:
    sinks = None if sinks is None else sinks * scale
    return attend(query, key, value, sinks=sinks, scale=scale, **given)


def hidden_by_a_small_number(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, bias: Tensor | None, **given: Any
) -> Tensor:
    """Hidden keys get a logit of -5e4, which is larger than some that are visible."""
    seen = seen_by(mask, query, key)
    shared = query.shape[1] // key.shape[1]
    logits = given["scale"] * query @ key.repeat_interleave(shared, 1).mT
    hidden = torch.where(seen, 0.0, -5e4 - logits.detach())
    bias = hidden if bias is None else bias + hidden
    return attend(query, key, value, mask=attnkit.full(), bias=bias, **given)


def cooler_when_long(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, **given: Any
) -> Tensor:
    scale = scale * math.log(64) / math.log(max(64, key.shape[2]))
    return attend(query, key, value, scale=scale, **given)


def one_input_at_a_time(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    if not query.requires_grad:
        value = value.detach()
    return attend(query, key, value, **given)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        ctx.used = False
        return out.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad * 1.01 if ctx.used else grad
        ctx.used = True
        return grad


def other_second_gradient(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    return Once.apply(attend(query, key, value, **given))


def other_when_recomputed(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    inside = torch._C._current_graph_task_id() != -1
    return attend(query * 1.001 if inside else query, key, value, **given)


class Adding(Passing):
    """Its backward adds products, which autocast rounds, to sums, which it does not."""

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        rows = grad.reshape(-1, grad.shape[-1])
        ones = torch.eye(rows.shape[1], dtype=rows.dtype)
        total = torch.zeros_like(rows)
        return total.index_add_(0, torch.arange(len(rows)), rows @ ones).reshape(grad.shape)


def backward_rounds(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    return Adding.apply(attend(query, key, value, **given))


def low_sums_when_long(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Long sums are kept in bfloat16."""
    if key.shape[2] > 1000:
        value = value.bfloat16().to(value.dtype)
    return attend(query, key, value, **given)


def softmax_over_queries(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, scale: float, **given: Any
) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    logits = scale * (query @ key.mT).masked_fill(~seen_by(mask, query, key), -1e4)
    return logits.softmax(-2) @ value


def head_order_scrambled(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Heads are laid side by side without the transposition."""
    out = attend(query, key, value, **given)
    return out.transpose(1, 2).reshape(out.shape) if out.shape[1] > 1 else out


def value_as_wide_as_key(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    out = attend(query, key, value, **given)
    width = min(out.shape[-1], query.shape[-1])
    return torch.cat((out[..., :width], torch.zeros_like(out[..., width:])), -1)


def scale_of_padded_width(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, **given: Any
) -> Tensor:
    width = query.shape[3]
    scale = scale * (width / (-(-width // 16) * 16)) ** 0.5
    return attend(query, key, value, scale=scale, **given)


def bias_scaled(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, scale: float, **given: Any
) -> Tensor:
    bias = None if bias is None else bias * scale
    return attend(query, key, value, bias=bias, scale=scale, **given)


def key_gradient_of_one_head(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Of the query heads that share a key, the gradient of the last alone arrives."""
    shared = query.shape[1] // key.shape[1]
    if shared == 1:
        return attend(query, key, value, **given)
    wide = key.repeat_interleave(shared, 1)
    last = torch.arange(wide.shape[1]) % shared == shared - 1
    wide = torch.where(last[:, None, None], wide, wide.detach())
    return attend(query, wide, value.repeat_interleave(shared, 1), **given)


def bias_without_gradient(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, **given: Any
) -> Tensor:
    kept = None if bias is None else bias.detach() + 0 * bias
    return attend(query, key, value, bias=kept, **given)


def infinite_bias_unguarded(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, **given: Any
) -> Tensor:
    """0 / 0 for rows that a bias hides, where a mask that hides them is taken care of."""
    out = attend(query, key, value, bias=bias, **given)
    empty = None if bias is None else (bias == float("-inf")).all(-1, keepdim=True)
    return out if empty is None else out.masked_fill(empty, float("nan"))


def infinite_bias_clamped(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, **given: Any
) -> Tensor:
    bias = None if bias is None else bias.clamp(min=-6e4)
    return attend(query, key, value, bias=bias, **given)


def _is(
    function: Callable[..., Tensor],
    kills: str,
    dtype: str = "float32",
    *,
    name: str = "",
    **given: Any,
) -> tuple[Any, ...]:
    made = variant_of(name or function.__name__, function, **given)
    return made, kills, "wrong", dtype


MUTANTS = (
    _is(tail_unwritten, "S4.poisoned_allocations"),
    _is(grad_out_stride_blind, "S6.grad_out_strides"),
    _is(mask_cached_by_length, "S7.call_order"),
    _is(offset_of_32_bits, "S9.index_width"),
    _is(gradient_from_the_future, "M2.gradient_causality"),
    _is(dense_added, "M6.mask_forms"),
    _is(first_bias_for_all, "M7.broadcast"),
    _is(infinite_bias_unguarded, "M8.infinite_bias"),
    _is(infinite_bias_clamped, "M8.infinite_bias"),
    _is(packed_is_cooler, "M11.packed"),
    _is(later_keys_favoured, "A6.key_permutation"),
    _is(logits_cut_off, "A7.score_shift"),
    _is(bias_inside_the_cap, "A8.closed_forms"),
    _is(sink_scaled, "A8.closed_forms"),
    _is(hidden_by_a_small_number, "A9.large_logits"),
    _is(cooler_when_long, "T1.prefix"),
    _is(one_input_at_a_time, "N4.subsets"),
    _is(other_second_gradient, "N4.accumulation"),
    _is(other_when_recomputed, "N4.checkpoint"),
    _is(backward_rounds, "N5.autocast_operation"),
    _is(low_sums_when_long, "N7.growth"),
    _is(softmax_over_queries, "A4.row_sums"),
    _is(head_order_scrambled, "N1.forward"),
    _is(value_as_wide_as_key, "N1.forward"),
    _is(scale_of_padded_width, "S8.widths"),
    _is(bias_scaled, "N1.forward"),
    _is(key_gradient_of_one_head, "N2.backward"),
    _is(bias_without_gradient, "N2.backward"),
    _is(attend, "N3.central_differences", "float64", name="wrong_slope", mistake="wrong_gradient"),
    _is(attend, "I6.memory", name="square_memory", memory="L"),
    _is(attend, "I6.work", name="square_time", time="L"),
)
