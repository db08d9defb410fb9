"""Wrong variants whose mistake shows at one value of one option or size.

At 0, at 1, at a default that is said, beyond where exp overflows, or beyond a tile. `MUTANTS` says
which check must catch it, on which subject, and in which dtype where not float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_attention import seen_by
from mutants_mixture import RIGHT as MIXTURE
from mutants_mixture import mix
from mutants_recurrence import RIGHT as RECURRENCE
from mutants_recurrence import recur
from mutants_softmax import attend, variant_of

import attnkit
from attnkit.masks.constructors import Documents

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.interface import Variant

Pair = tuple["Tensor", "Tensor"]


def first_of_width(tensor: Tensor, width: int) -> Tensor:
    """The same, 0 beyond so many features."""
    return tensor * (torch.arange(tensor.shape[-1]) < width)


def whole_eights(width: int) -> int:
    return width // 8 * 8 if width > 8 else width


def unit_scale_is_default(query: Tensor, *rest: Tensor, scale: float, **given: Any) -> Tensor:
    scale = query.shape[3] ** -0.5 if scale == 1 else scale
    return attend(query, *rest, scale=scale, **given)


def cap_of_one_is_none(*inputs: Tensor, softcap: float | None, **given: Any) -> Tensor:
    return attend(*inputs, softcap=None if softcap == 1 else softcap, **given)


def large_cap_is_none(*inputs: Tensor, softcap: float | None, **given: Any) -> Tensor:
    softcap = None if softcap is not None and softcap >= 128 else softcap
    return attend(*inputs, softcap=softcap, **given)


def cap_by_exponentials(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Computes tanh as (e^2x - 1) / (e^2x + 1)."""
    if given["softcap"] is not None:
        shared = query.shape[1] // key.shape[1]
        logits = given["scale"] * query @ key.repeat_interleave(shared, 1).mT
        if (2 * logits / given["softcap"]).exp().isinf().any():
            value = value * float("nan")
    return attend(query, key, value, **given)


def cap_in_single(*inputs: Tensor, softcap: float | None, **given: Any) -> Tensor:
    softcap = None if softcap is None else float(torch.tensor(softcap, dtype=torch.float32) * 1.1)
    return attend(*inputs, softcap=None if softcap is None else softcap / 1.1, **given)


def zero_sinks_are_none(*inputs: Tensor, sinks: Tensor | None, **given: Any) -> Tensor:
    return attend(*inputs, sinks=sinks if sinks is not None and sinks.any() else None, **given)


def large_sink_overflows(*inputs: Tensor, sinks: Tensor | None, **given: Any) -> Tensor:
    out = attend(*inputs, sinks=sinks, **given)
    return out if sinks is None else torch.where(sinks[:, None, None] > 80, float("nan"), out)


def zero_bias_skips_cap(
    *inputs: Tensor, bias: Tensor | None, softcap: float | None, **given: Any
) -> Tensor:
    softcap = None if bias is not None and not bias.any() else softcap
    return attend(*inputs, bias=bias, softcap=softcap, **given)


def padding_by_row(query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any) -> Tensor:
    """Takes padding (B, S) for a mask (L, S) where it fits."""
    batch, _, length, _ = query.shape
    if mask.parts == {"padding"} and batch == length == key.shape[2]:
        mask = attnkit.dense(seen_by(mask, query, key)[:, 0, -1].reshape(batch, length))
    return attend(query, key, value, mask=mask, **given)


def sinks_unknown_to_few_tokens(
    query: Tensor, *rest: Tensor, sinks: Tensor | None, **given: Any
) -> Tensor:
    """Takes (B, H, L, E) with more heads than tokens for (B, L, H, E)."""
    few = query.shape[1] > query.shape[2] > 1
    return attend(query, *rest, sinks=None if few else sinks, **given)


def one_key_knows_no_sink(
    query: Tensor, key: Tensor, value: Tensor, *, sinks: Tensor | None, **given: Any
) -> Tensor:
    return attend(query, key, value, sinks=None if key.shape[2] == 1 else sinks, **given)


def squeezed(query: Tensor, *rest: Tensor, bias: Tensor | None, **given: Any) -> Tensor:
    return attend(query, *rest, bias=None if query.shape[:2] == (1, 1) else bias, **given)


def width_beyond_256_lost(query: Tensor, *rest: Tensor, **given: Any) -> Tensor:
    return attend(first_of_width(query, 256), *rest, **given)


def values_beyond_width_128_lost(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    return attend(query, key, first_of_width(value, 128), **given)


def hidden_far_away(part: str, beyond: int = 512) -> Callable[..., Tensor]:
    def far(query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any) -> Tensor:
        if part in mask.parts and key.shape[2] > beyond:
            seen = seen_by(mask, query, key)
            seen[..., beyond // 2 : beyond // 2 + 24] = False
            mask = attnkit.dense(seen)
        return attend(query, key, value, mask=mask, **given)

    far.__name__ = f"{part}_far_away_hidden"
    return far


def documents_of_eight_bits(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any
) -> Tensor:
    parts = [
        attnkit.documents(each.ids % 256) if isinstance(each, Documents) else each
        for each in mask.conjuncts()
    ]
    mask = attnkit.causal() if mask.is_causal else attnkit.full()
    for each in parts:
        mask = mask & each
    return attend(query, key, value, mask=mask, **given)


def lengths_of_eight_bits(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any
) -> Tensor:
    if "padding" in mask.parts:
        seen = seen_by(mask, query, key)
        seen[..., 255:] = False
        mask = attnkit.dense(seen)
    return attend(query, key, value, mask=mask, **given)


def heads_beyond_32_wrap(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    if query.shape[1] == key.shape[1] > 32:
        index = torch.arange(query.shape[1]) % 32
        key, value = key[:, index], value[:, index]
    return attend(query, key, value, **given)


def two_tiles_and_no_more(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any
) -> Tensor:
    if query.shape[2] == 128:
        seen = seen_by(mask, query, key)
        seen[..., 127, 0] = False
        mask = attnkit.dense(seen)
    return attend(query, key, value, mask=mask, **given)


def corner_within_two_tiles(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any
) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    if mask.is_causal and queries > 1 and keys - queries >= 128:
        near = torch.ones(queries, keys, dtype=torch.bool).tril(127)
        mask = attnkit.dense(seen_by(mask, query, key) & near)
    return attend(query, key, value, mask=mask, **given)


def not_causal_far_before_the_keys(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any
) -> Tensor:
    if query.shape[2] > key.shape[2] + 64 and mask.is_causal and not mask.parts:
        mask = attnkit.full()
    return attend(query, key, value, mask=mask, **given)


def groups_of_eight(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    if query.shape[1] >= 8 * key.shape[1]:
        value = torch.cat((0 * value[..., :1], value[..., 1:]), -1)
    return attend(query, key, value, **given)


def rows_of_sixteen_bits(query: Tensor, *rest: Tensor, **given: Any) -> Tensor:
    out = attend(query, *rest, **given)
    rows = out.shape[:3].numel()
    return out * (torch.arange(rows) < 2**16).view(*out.shape[:3], 1)


def zero_beta_is_none(*inputs: Tensor, beta: Tensor | None, **given: Any) -> Pair:
    return recur(*inputs, beta=beta if beta is not None and beta.any() else None, **given)


def unit_beta_is_none(*inputs: Tensor, beta: Tensor | None, **given: Any) -> Pair:
    return recur(*inputs, beta=None if beta is not None and (beta == 1).all() else beta, **given)


def zero_scale_is_one(*inputs: Tensor, scale: float, **given: Any) -> Pair:
    return recur(*inputs, scale=scale or 1.0, **given)


def decay_of_zero_is_none_of_all(*inputs: Tensor, log_decay: Tensor | None, **given: Any) -> Pair:
    """Takes a decay for absent as soon as one of a head is 0."""
    if log_decay is not None:
        log_decay = torch.where((log_decay == 0).any(2, keepdim=True), 0.0, log_decay)
    return recur(*inputs, log_decay=log_decay, **given)


def large_state_clamped(*inputs: Tensor, initial_state: Tensor, **given: Any) -> Pair:
    return recur(*inputs, initial_state=initial_state.clamp(-100, 100), **given)


def decay_by_layout_guess(*inputs: Tensor, log_decay: Tensor | None, **given: Any) -> Pair:
    """Takes decays of more heads than tokens for (B, L, H)."""
    if log_decay is not None and log_decay.dim() == 3:
        _, heads, length = log_decay.shape
        if heads > length > 1:
            log_decay = log_decay.mean(1, keepdim=True).expand_as(log_decay)
    return recur(*inputs, log_decay=log_decay, **given)


def keys_beyond_256_lost(query: Tensor, *rest: Tensor, **given: Any) -> Pair:
    return recur(first_of_width(query, 256), *rest, **given)


def tokens_beyond_256_lost(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    return recur(query, key * (torch.arange(key.shape[2]) < 256)[:, None], value, **given)


def heads_beyond_16_wrap(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    return recur(query, key, value[:, torch.arange(value.shape[1]) % 16], **given)


def experts_beyond_32_wrap(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    return mix(x, torch.where(experts >= 32, experts - 32, experts), gates, weights=weights)


def experts_of_eight_bits(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    return mix(x, torch.where(experts >= 128, -1, experts), gates, weights=weights)


def experts_no_power_of_two(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    count = len(weights.down)
    if count & (count - 1):
        experts = torch.where(experts == count - 1, -1, experts)
    return mix(x, experts, gates, weights=weights)


def all_experts_alike(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    if experts.shape[1] == len(weights.down):
        gates = gates.mean(1, keepdim=True).expand_as(gates)
    return mix(x, experts, gates, weights=weights)


def choices_beyond_four(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    return mix(x, experts[:, :4], gates[:, :4], weights=weights)


def tokens_of_eight_bits(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    return mix(x, experts, gates * (torch.arange(len(x)) < 256)[:, None], weights=weights)


def tokens_are_experts(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    experts = experts.flip(0) if len(x) == len(weights.down) else experts
    return mix(x, experts, gates, weights=weights)


def tokens_are_features(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    return mix(x.T if len(x) == x.shape[1] else x, experts, gates, weights=weights)


def lone_token_has_one_expert(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    most = 1 if len(x) == 1 else experts.shape[1]
    return mix(x, experts[:, :most], gates[:, :most], weights=weights)


def hidden_in_whole_eights(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    down = first_of_width(weights.down, whole_eights(weights.down.shape[2]))
    return mix(x, experts, gates, weights=replace(weights, down=down))


def width_in_whole_eights(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    return mix(first_of_width(x, whole_eights(x.shape[1])), experts, gates, weights=weights)


def width_beyond_128(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    return mix(first_of_width(x, 128), experts, gates, weights=weights)


def silu_by_exponential(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    """Computes silu as x e^x / (1 + e^x)."""
    y = mix(x, experts, gates, weights=weights)
    if not len(x):
        return y
    most = torch.einsum("td,efd->tef", x, weights.gate_up.chunk(2, 1)[0]).amax((1, 2))
    return torch.where(most[:, None] > 88, float("nan"), y)


def zero_gates_are_small(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    gates = torch.where(experts >= 0, gates.clamp(min=1e-3), gates)
    return mix(x, experts, gates, weights=weights)


def first_expert_is_none(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    if experts.shape[1] == 1:
        experts = torch.where(experts > 0, experts, -1)
    return mix(x, experts, gates, weights=weights)


def beside(
    right: Variant, function: Callable[..., Any], kills: str, kind: str = "space"
) -> tuple[Variant, str, str]:
    """Make a variant whose other implementation is a function."""
    first, other = right.implementations
    made = replace(
        right,
        name=f"mutant_{kind}_{function.__name__}",
        implementations=(first, replace(other, function=function)),
    )
    return made, kills, "wrong"


def _softmax(function: Callable[..., Tensor], dtype: str = "float32") -> Any:
    return variant_of(f"space_{function.__name__}", function), "N1.values", "wrong", dtype


MUTANTS = (
    _softmax(unit_scale_is_default),
    _softmax(cap_of_one_is_none),
    _softmax(large_cap_is_none),
    _softmax(cap_by_exponentials),
    _softmax(cap_in_single, "float64"),
    _softmax(zero_sinks_are_none),
    _softmax(large_sink_overflows),
    _softmax(zero_bias_skips_cap),
    _softmax(padding_by_row),
    _softmax(sinks_unknown_to_few_tokens),
    _softmax(one_key_knows_no_sink),
    _softmax(squeezed),
    _softmax(width_beyond_256_lost),
    _softmax(values_beyond_width_128_lost),
    *(_softmax(hidden_far_away(part)) for part in ("padding", "prefix", "dense", "blocks")),
    _softmax(documents_of_eight_bits),
    _softmax(lengths_of_eight_bits),
    _softmax(heads_beyond_32_wrap),
    _softmax(two_tiles_and_no_more),
    _softmax(corner_within_two_tiles),
    _softmax(not_causal_far_before_the_keys),
    _softmax(groups_of_eight),
    (variant_of("space_rows_of_sixteen_bits", rows_of_sixteen_bits), "N7.rows", "wrong"),
    *(
        beside(RECURRENCE, function, "N1.recurrence_values")
        for function in (
            zero_beta_is_none,
            unit_beta_is_none,
            zero_scale_is_one,
            decay_of_zero_is_none_of_all,
            large_state_clamped,
            decay_by_layout_guess,
            keys_beyond_256_lost,
            tokens_beyond_256_lost,
            heads_beyond_16_wrap,
        )
    ),
    *(
        beside(MIXTURE, function, "F10.values")
        for function in (
            experts_beyond_32_wrap,
            experts_of_eight_bits,
            experts_no_power_of_two,
            all_experts_alike,
            choices_beyond_four,
            tokens_of_eight_bits,
            tokens_are_experts,
            tokens_are_features,
            lone_token_has_one_expert,
            hidden_in_whole_eights,
            width_in_whole_eights,
            width_beyond_128,
            silu_by_exponential,
            zero_gates_are_small,
            first_expert_is_none,
        )
    ),
)
