"""Deliberately wrong implementations of attention that is no softmax; see `correct_maths`.

`BEFORE` changes what the maths is given, `INSTEAD` what it makes of it; each stands for a mistake
of kernels. Some show in some place only: behind a tile, for odd heads, beside another option.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import correct_maths as right
import torch
from correct_maths import NAMED, Given, count, function_of, softmax, variant_of
from torch.nn.functional import gelu, logsigmoid, normalize, relu

from attnkit.masks.constructors import (
    Causal,
    Dense,
    Documents,
    Or,
    Padding,
    PrefixLM,
    Sizes,
    SlidingWindow,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.interface import Variant

    Change = Callable[[Given], Given]


def ranks(at: Given, axis: int) -> Tensor:
    """Indices along an axis of (B, H, L, S), to compare with."""
    shape = [1] * 4
    shape[axis] = -1
    return torch.arange(at.seen.shape[axis]).reshape(shape)


def shown(at: Given, also: Tensor) -> Given:
    """Show further keys."""
    return replace(at, seen=at.seen | also)


def lost(at: Given, keys: Tensor) -> Given:
    """Hide further keys."""
    return replace(at, seen=at.seen & ~keys)


def within(at: Given, size: int) -> Tensor:
    """Which keys lie in a window, later ones where the mask shows them."""
    near = at.distance.abs() < size
    return near & (at.distance >= 0) if at.mask.is_causal else near


def without(at: Given, *kinds: type) -> Tensor:
    """What is seen if parts of some kinds are overlooked."""
    found = torch.ones_like(at.seen)
    for part in at.mask.conjuncts():
        if not isinstance(part, kinds):
            found = found & part.to_bool(Sizes(*at.seen.shape), at.query.device)
    return found


# masks


def window_one_long(at: Given) -> Given:
    size = at.mask.window
    return at if size is None else shown(at, without(at, SlidingWindow) & within(at, size + 1))


def window_one_short(at: Given) -> Given:
    size = at.mask.window
    return at if size is None else lost(at, ~within(at, size - 1))


def window_unknown_to_later_tiles(at: Given) -> Given:
    return shown(at, without(at, SlidingWindow) & (ranks(at, 2) >= 32))


def window_unknown_beside_chunks(at: Given) -> Given:
    queries, keys = at.seen.shape[2:]
    return shown(at, without(at, SlidingWindow)) if queries < keys else at


def window_one_sided(at: Given) -> Given:
    if at.mask.window is None:
        return at
    return shown(at, without(at, SlidingWindow) & (at.distance < at.mask.window))


def causal_upper_left(at: Given) -> Given:
    queries, keys = at.seen.shape[2:]
    if not at.mask.is_causal or queries == keys:
        return at
    early = at.distance >= keys - queries
    if queries > keys:
        return shown(at, early & (at.distance < 0) & without(at, Causal))
    return replace(at, seen=at.seen & early)


def causal_ahead_in_later_tiles(at: Given) -> Given:
    one = (at.distance == -1) & (ranks(at, 2) >= 64)
    return shown(at, one & without(at, Causal)) if at.mask.is_causal else at


def causal_strict_for_odd_heads(at: Given) -> Given:
    if not at.mask.is_causal:
        return at
    return lost(at, (at.distance == 0) & (ranks(at, 1) % 2 == 1) & (ranks(at, 2) > 0))


def mask_unknown_to_odd_heads(at: Given) -> Given:
    return shown(at, ranks(at, 1) % 2 == 1)


def mask_unknown_to_last_row(at: Given) -> Given:
    return shown(at, ranks(at, 2) == at.seen.shape[2] - 1)


def mask_unknown_to_last_sample(at: Given) -> Given:
    return shown(at, (ranks(at, 0) > 0) & (ranks(at, 0) == len(at.seen) - 1))


def mask_of_first_sample(at: Given) -> Given:
    return replace(at, seen=at.seen[:1].expand_as(at.seen))


def mask_of_first_head(at: Given) -> Given:
    return replace(at, seen=at.seen[:, :1].expand_as(at.seen))


def padding_unknown(at: Given) -> Given:
    return shown(at, without(at, Padding))


def padding_one_long(at: Given) -> Given:
    """Shows the first padded key behind a sample."""
    whole = without(at, Padding)
    hidden = whole & ~at.seen
    first = hidden & ~hidden.roll(1, -1)
    return shown(at, first & (ranks(at, 3) > 0))


def documents_unknown_to_later_tiles(at: Given) -> Given:
    return shown(at, without(at, Documents) & (ranks(at, 2) >= 32))


def documents_unknown(at: Given) -> Given:
    return shown(at, without(at, Documents))


def prefix_unknown(at: Given) -> Given:
    return shown(at, without(at, PrefixLM))


def prefix_causal(at: Given) -> Given:
    prefixed = any(isinstance(part, PrefixLM) for part in at.mask.conjuncts())
    return lost(at, at.distance < 0) if prefixed else at


def dense_unknown_to_odd_heads(at: Given) -> Given:
    return shown(at, without(at, Dense) & (ranks(at, 1) % 2 == 1))


def dense_inverted(at: Given) -> Given:
    dense = any(isinstance(part, Dense) for part in at.mask.conjuncts())
    return replace(at, seen=without(at, Dense) & ~at.seen) if dense else at


def union_of_first(at: Given) -> Given:
    for part in at.mask.conjuncts():
        if isinstance(part, Or):
            return lost(at, ~part.left.to_bool(Sizes(*at.seen.shape), at.query.device))
    return at


def last_row_sees_one_more(at: Given) -> Given:
    """Where it does not see all keys."""
    keys = at.seen.shape[3]
    hidden = ~at.seen & (ranks(at, 2) == at.seen.shape[2] - 1)
    first = hidden & (hidden.cumsum(-1) == 1)
    return shown(at, first) if keys > 1 else at


# keys, values, heads


def keys_of_neighbour_behind_a_tile(at: Given) -> Given:
    later = torch.arange(at.key.shape[2])[:, None] >= 64
    return replace(at, key=torch.where(later, at.key.roll(1, 2), at.key))


def first_key_lost_in_chunks(at: Given) -> Given:
    queries, keys = at.seen.shape[2:]
    return lost(at, ranks(at, 3) == 0) if 1 < queries < keys else at


def newest_key_lost_in_steps(at: Given) -> Given:
    queries, keys = at.seen.shape[2:]
    return lost(at, ranks(at, 3) == keys - 1) if queries == 1 < keys else at


def tail_lost(at: Given) -> Given:
    keys = at.seen.shape[3]
    return lost(at, ranks(at, 3) >= keys // 32 * 32) if keys > 32 else at


def heads_of_neighbour(at: Given) -> Given:
    shared = at.key.shape[1] // max(1, at.groups)
    return replace(at, key=at.key.roll(shared, 1), value=at.value.roll(shared, 1))


def heads_tiled(at: Given) -> Given:
    shared = at.key.shape[1] // max(1, at.groups)

    def tiled(tensor: Tensor) -> Tensor:
        return tensor[:, ::shared].repeat(1, shared, 1, 1)

    return replace(at, key=tiled(at.key), value=tiled(at.value))


def heads_of_first(at: Given) -> Given:
    if at.groups == at.key.shape[1]:
        return at
    return replace(at, key=at.key[:, :1].expand_as(at.key))


def width_in_eights(at: Given) -> Given:
    width = max(8, at.query.shape[3] // 8 * 8)
    return replace(at, query=at.query[..., :width], key=at.key[..., :width])


# terms of logits


def scale_missing(at: Given) -> Given:
    return replace(at, scale=1.0)


def scale_twice(at: Given) -> Given:
    return replace(at, scale=at.scale**2)


def scale_unknown(at: Given) -> Given:
    return replace(at, scale=at.query.shape[3] ** -0.5)


def scale_of_value_width(at: Given) -> Given:
    return replace(at, scale=at.scale * (at.query.shape[3] / at.value.shape[3]) ** 0.5)


def scale_in_bias(at: Given) -> Given:
    return at if at.bias is None else replace(at, bias=at.bias * at.scale)


def bias_unknown_beside_causal(at: Given) -> Given:
    return replace(at, bias=None) if at.mask.is_causal and at.softcap is None else at


def bias_of_first_head(at: Given) -> Given:
    return at if at.bias is None else replace(at, bias=at.bias[:, :1].expand_as(at.bias))


def bias_of_first_row(at: Given) -> Given:
    return at if at.bias is None else replace(at, bias=at.bias[:, :, :1].expand_as(at.bias))


def bias_rounded(at: Given) -> Given:
    return at if at.bias is None else replace(at, bias=at.bias.bfloat16().to(at.bias.dtype))


def bias_unknown_to_later_tiles(at: Given) -> Given:
    if at.bias is None:
        return at
    return replace(at, bias=torch.where(ranks(at, 3) >= 32, 0.0, at.bias))


def cap_unknown(at: Given) -> Given:
    return replace(at, softcap=None)


def cap_unknown_beside_bias(at: Given) -> Given:
    return at if at.bias is None else replace(at, softcap=None)


def inputs_rounded(at: Given) -> Given:
    """As tensor cores round them."""
    return replace(at, query=at.query.bfloat16().to(at.query.dtype))


# gradients


def slowed(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """The same tensor, but its gradient is multiplied."""
    return tensor * factor + (tensor * (1 - factor)).detach()


def gradient_of_keys_halved_behind_a_tile(at: Given) -> Given:
    later = torch.arange(at.key.shape[2])[:, None] >= 32
    return replace(at, key=slowed(at.key, torch.where(later, 0.5, 1.0)))


def gradient_of_odd_heads_lost(at: Given) -> Given:
    odd = torch.arange(at.value.shape[1])[:, None, None] % 2
    return replace(at, value=slowed(at.value, torch.where(odd == 1, 0.0, 1.0)))


def gradient_of_bias_scaled(at: Given) -> Given:
    return at if at.bias is None else replace(at, bias=slowed(at.bias, at.scale))


def gradient_of_queries_off_beside_window(at: Given) -> Given:
    return at if at.mask.window is None else replace(at, query=slowed(at.query, 1.05))


def gradient_of_queries_off(at: Given) -> Given:
    return replace(at, query=slowed(at.query, 1.02))


CHANGES: tuple[tuple[Change, str, str], ...] = (
    (window_one_long, "sigmoid", "M15.windows"),
    (window_one_short, "top_8", "M15.windows"),
    (window_unknown_to_later_tiles, "differential", "M15.hidden_keys"),
    (window_unknown_beside_chunks, "rectified", "M15.windows"),
    (window_one_sided, "soft_plus", "M15.windows"),
    (causal_upper_left, "stick_breaking", "M15.hidden_keys"),
    (causal_ahead_in_later_tiles, "linear", "M15.hidden_keys"),
    (causal_strict_for_odd_heads, "squared", "M15.hidden_keys"),
    (mask_unknown_to_odd_heads, "gaussian", "M15.hidden_keys"),
    (mask_unknown_to_last_row, "cosine", "M15.hidden_keys"),
    (mask_unknown_to_last_sample, "signed", "M15.hidden_keys"),
    (mask_of_first_sample, "quartic", "M15.hidden_keys"),
    (mask_of_first_head, "of_unit_length", "M7.broadcast"),
    (padding_unknown, "linear", "M15.hidden_keys"),
    (padding_one_long, "soft_plus", "M15.hidden_keys"),
    (documents_unknown, "selective", "M15.hidden_keys"),
    (documents_unknown_to_later_tiles, "twice", "M15.hidden_keys"),
    (prefix_unknown, "forgetting", "M15.hidden_keys"),
    (prefix_causal, "largest_sum", "M15.hidden_keys"),
    (dense_unknown_to_odd_heads, "heavy_tailed", "M15.hidden_keys"),
    (dense_inverted, "gated", "M15.hidden_keys"),
    (union_of_first, "off_by_one", "M15.hidden_keys"),
    (last_row_sees_one_more, "sigmoid", "M15.hidden_keys"),
    (keys_of_neighbour_behind_a_tile, "cosine", "S8.lengths"),
    (first_key_lost_in_chunks, "gaussian", "S8.lengths"),
    (newest_key_lost_in_steps, "rectified", "S8.lengths"),
    (tail_lost, "hyperbolic", "S8.lengths"),
    (heads_of_neighbour, "differential", "A2.head_map"),
    (heads_tiled, "sparsemax", "A2.head_map"),
    (heads_of_first, "stick_breaking", "A2.head_map"),
    (width_in_eights, "exponential_features", "S8.widths"),
    (scale_missing, "heavy_tailed", "N1.forward"),
    (scale_twice, "signed", "N1.forward"),
    (scale_unknown, "largest_sum", "N1.forward"),
    (scale_of_value_width, "twice", "N1.forward"),
    (scale_in_bias, "top_8", "N1.forward"),
    (bias_unknown_beside_causal, "gated", "N1.forward"),
    (bias_of_first_head, "with_slopes", "N1.forward"),
    (bias_of_first_row, "soft_plus", "N1.forward"),
    (bias_rounded, "sigmoid", "N1.forward"),
    (bias_unknown_to_later_tiles, "selective", "N1.forward"),
    (cap_unknown, "decaying", "N1.forward"),
    (cap_unknown_beside_bias, "quartic", "N1.forward"),
    (inputs_rounded, "of_unit_length", "N1.forward"),
    (gradient_of_keys_halved_behind_a_tile, "linear", "N2.backward"),
    (gradient_of_odd_heads_lost, "talking_heads", "N2.backward"),
    (gradient_of_bias_scaled, "hyperbolic", "N2.backward"),
    (gradient_of_queries_off_beside_window, "squared", "M15.hidden_keys"),
    (gradient_of_queries_off, "gaussian", "N2.backward"),
)
"""What is changed before the maths, of which maths, and the check that is meant for it."""


# the maths itself


def differential_not_lambda(at: Given) -> Tensor:
    one, other = right.halves(at)
    return (softmax(one, at.seen) - 0.79 * softmax(other, at.seen)) @ at.value


def differential_never_negative(at: Given) -> Tensor:
    one, other = right.halves(at)
    return relu(softmax(one, at.seen) - 0.8 * softmax(other, at.seen)) @ at.value


def constant(at: Given) -> Tensor:
    return 0.0 * (at.query @ at.key.mT @ at.value)


def sigmoid_of_all_keys(at: Given) -> Tensor:
    """Counts hidden keys."""
    logits = at.logits() - torch.tensor(float(at.seen.shape[3])).log()
    return torch.where(at.seen, logits.sigmoid(), 0.0) @ at.value


def linear_by_sums_of_hidden(at: Given) -> Tensor:
    """The denominator sums over padding, too."""
    weights = right.features(at.query) @ right.features(at.key).mT
    total = (weights * without(at, Padding)).sum(-1, keepdim=True).clamp(min=1e-30)
    return torch.where(at.seen, weights, 0.0) / total @ at.value


def linear_with_eps(at: Given) -> Tensor:
    weights = torch.where(at.seen, right.features(at.query) @ right.features(at.key).mT, 0.0)
    return weights / (weights.sum(-1, keepdim=True) + 1e-2) @ at.value


def rectified_smoothly(at: Given) -> Tensor:
    return torch.where(at.seen, gelu(at.logits()), 0.0) / count(at.seen) @ at.value


def off_by_none(at: Given) -> Tensor:
    return softmax(at.logits(), at.seen) @ at.value


def off_by_one_unshifted(at: Given) -> Tensor:
    """The 1 is not taken relative to the largest logit."""
    logits = torch.where(at.seen, at.logits(), right.NOTHING)
    largest = logits.detach().amax(-1, keepdim=True).clamp(min=0)
    shares = (logits - largest).exp()
    return shares / (1 + shares.sum(-1, keepdim=True)) @ at.value


def cosine_of_one_epsilon(at: Given) -> Tensor:
    at = replace(at, query=10 * normalize(at.query, dim=-1, eps=1), key=normalize(at.key, dim=-1))
    return softmax(at.logits(), at.seen) @ at.value


def sparsemax_in_two_steps(at: Given) -> Tensor:
    """The search ends too soon."""
    logits, held = at.logits(), at.seen
    for _ in range(2):
        threshold = (torch.where(held, logits, 0.0).sum(-1, keepdim=True) - 1) / count(held)
        held = held & (logits > threshold)
    return torch.where(held, logits - threshold, 0.0) @ at.value


def top_7(at: Given) -> Tensor:
    logits = torch.where(at.seen, at.logits(), right.NOTHING)
    least = logits.topk(min(7, logits.shape[-1]), -1).values[..., -1:]
    return softmax(logits, at.seen & (logits >= least)) @ at.value


def top_8_of_each_tile(at: Given) -> Tensor:
    logits = torch.where(at.seen, at.logits(), right.NOTHING)
    kept = torch.cat(
        [
            part >= part.topk(min(8, part.shape[-1]), -1).values[..., -1:]
            for part in logits.split(64, -1)
        ],
        -1,
    )
    return softmax(logits, at.seen & kept) @ at.value


def gaussian_without_norms(at: Given) -> Tensor:
    logits = at.scale * 2 * at.query @ at.key.mT
    return softmax(logits if at.bias is None else logits + at.bias, at.seen) @ at.value


def slopes_from_the_first_key(at: Given) -> Tensor:
    queries, keys = at.seen.shape[2:]
    away = right.slopes(at)[:, None, None] * (at.distance - (keys - queries)).abs()
    return softmax(at.logits() - away, at.seen) @ at.value


def stick_breaking_from_the_oldest(at: Given) -> Tensor:
    shares = torch.where(at.seen, at.logits().sigmoid(), 0.0)
    return shares * (1 - shares).cumprod(-1) / (1 - shares) @ at.value


def talking_heads_mixed_once(at: Given) -> Tensor:
    logits = torch.einsum("gh,bhls->bgls", right.mixing(at), at.logits())
    return softmax(logits, at.seen) @ at.value


def hyperbolic_in_half(at: Given) -> Tensor:
    weights = torch.where(at.seen, at.logits().half().tanh().to(at.query.dtype), 0.0)
    return weights / count(at.seen).sqrt() @ at.value


def signed_by_softmax(at: Given) -> Tensor:
    return softmax(at.logits().abs(), at.seen) @ at.value


def unit_length_of_tiles(at: Given) -> Tensor:
    outs = []
    for logits, seen, values in zip(
        at.logits().split(64, -1), at.seen.split(64, -1), at.value.split(64, 2), strict=True
    ):
        shares = softmax(logits, seen)
        size = shares.square().sum(-1, keepdim=True).clamp(min=1e-30).sqrt()
        outs.append(shares / size @ values)
    return sum(outs, torch.zeros(())) / len(outs) ** 0.5 if outs else constant(at)


def decays_from_own(at: Given) -> Tensor:
    """One power too many."""
    powers = (1 - right.slopes(at)[:, None, None] / 4) ** (at.distance.abs() + 1)
    return torch.where(at.seen, at.logits() * powers, 0.0) @ at.value


def decays_upper_left(at: Given) -> Tensor:
    queries, keys = at.seen.shape[2:]
    away = (at.distance - (keys - queries)).abs()
    powers = (1 - right.slopes(at)[:, None, None] / 4) ** away
    return torch.where(at.seen, at.logits() * powers, 0.0) @ at.value


def levels_end(at: Given) -> Tensor:
    """Levels end at the fifth."""
    weights = right.features(at.query) @ right.features(at.key).mT
    weights = weights * 2.0 ** -right.levels(at).clamp(max=5)
    return torch.where(at.seen, weights, 0.0) @ at.value


def largest_of_padded(at: Given) -> Tensor:
    """Beside a last tile that is padded with zeros."""
    keys = at.seen.shape[3]
    out = right.largest_sum(at)
    return out if keys % 16 == 0 else out.clamp(min=0)


def gate_forgotten_by_one_query(at: Given) -> Tensor:
    out = softmax(at.logits(), at.seen) @ at.value
    return out if at.query.shape[2] == 1 else out * at.query.mean(-1, keepdim=True).sigmoid()


def selective_of_own(at: Given) -> Tensor:
    logits = at.logits()
    picked = torch.where(at.seen[:, :1], relu(logits[:, :1]), 0.0)
    return softmax(logits - (picked.cumsum(2) - picked), at.seen) @ at.value


def forgetting_in_half(at: Given) -> Tensor:
    """Running sums in the dtype of the inputs."""
    gates = torch.where(at.seen, logsigmoid(at.key[..., 0] + 2)[..., None, :], 0.0).to(at.dtype)
    behind = torch.zeros_like(gates)
    for j in reversed(range(gates.shape[-1] - 1)):
        behind[..., j] = behind[..., j + 1] + gates[..., j + 1]
    return softmax(at.logits() + behind, at.seen) @ at.value


def empty_rows_nan(at: Given) -> Tensor:
    shares = torch.where(at.seen, torch.nn.functional.softplus(at.logits()), 0.0)
    return shares / shares.sum(-1, keepdim=True) @ at.value


def hidden_keys_weigh_a_little(at: Given) -> Tensor:
    weights = torch.where(at.seen, at.logits().tanh(), 1e-9)
    return weights / count(at.seen).sqrt() @ at.value


def hidden_gradient(at: Given) -> Tensor:
    """The gradient of values is of weights that were not masked."""
    weights = at.logits().sigmoid() / count(at.seen)
    out = right.sigmoid(at)
    return out + (weights @ at.value - (weights @ at.value).detach()) * 1e-3


INSTEAD: tuple[tuple[right.Attend, str, str, str], ...] = (
    (differential_not_lambda, "differential", "N1.forward", "float32"),
    (differential_never_negative, "differential", "N1.forward", "float32"),
    (constant, "differential", "N1.forward", "float32"),
    (sigmoid_of_all_keys, "sigmoid", "N1.forward", "float32"),
    (linear_by_sums_of_hidden, "linear", "M15.hidden_keys", "float32"),
    (linear_with_eps, "linear", "N1.forward", "float32"),
    (rectified_smoothly, "rectified", "N1.forward", "float32"),
    (off_by_none, "off_by_one", "N1.forward", "float32"),
    (off_by_one_unshifted, "off_by_one", "N1.forward", "float32"),
    (cosine_of_one_epsilon, "cosine", "S8.widths", "float32"),
    (sparsemax_in_two_steps, "sparsemax", "N1.forward", "float32"),
    (top_7, "top_8", "N1.forward", "float32"),
    (top_8_of_each_tile, "top_8", "S8.lengths", "float32"),
    (gaussian_without_norms, "gaussian", "N1.forward", "float32"),
    (slopes_from_the_first_key, "with_slopes", "S8.lengths", "float32"),
    (stick_breaking_from_the_oldest, "stick_breaking", "N1.forward", "float32"),
    (talking_heads_mixed_once, "talking_heads", "N1.forward", "float32"),
    (hyperbolic_in_half, "hyperbolic", "N1.forward", "float32"),
    (signed_by_softmax, "signed", "N1.forward", "float32"),
    (unit_length_of_tiles, "of_unit_length", "S8.lengths", "float32"),
    (decays_from_own, "decaying", "N1.forward", "float32"),
    (decays_upper_left, "decaying", "S8.lengths", "float32"),
    (levels_end, "by_levels", "S8.lengths", "float32"),
    (largest_of_padded, "largest_sum", "S8.lengths", "float32"),
    (gate_forgotten_by_one_query, "gated", "S8.lengths", "float32"),
    (selective_of_own, "selective", "N1.forward", "float32"),
    (forgetting_in_half, "forgetting", "M7.broadcast", "bfloat16"),
    (empty_rows_nan, "soft_plus", "M15.hidden_keys", "float32"),
    (hidden_keys_weigh_a_little, "hyperbolic", "M15.hidden_keys", "float32"),
    (hidden_gradient, "sigmoid", "M15.hidden_keys", "float32"),
)
"""What is computed instead, of which maths, the check that is meant for it, and the dtype."""


def variant_with(maths: str, change: Change) -> Variant:
    """Return a variant of one maths that is given something else."""
    name = f"mutant_{maths}_{change.__name__}"
    return variant_of(NAMED[maths], name, function_of(lambda at: NAMED[maths].plain(change(at))))


NAMED_WRONG = {
    attend.__name__: variant_of(NAMED[maths], f"mutant_{attend.__name__}", function_of(attend))
    for attend, maths, _, _ in INSTEAD
}

MUTANTS = (
    *((variant_with(maths, change), kills, "own") for change, maths, kills in CHANGES),
    *((NAMED_WRONG[each.__name__], kills, "own", dtype) for each, _, kills, dtype in INSTEAD),
)
