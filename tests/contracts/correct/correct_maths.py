"""Attention that is no softmax, computed rightly: each maths plainly, and in another way.

`MATHS` lists them. Each takes what `correct_softmax.PROMISES` says but sinks, as `Maths.promises`
changes it, in any mask; the float64 reference is the plain way in float64. None shares a line with
a plugin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import correct_softmax
import torch
from torch.nn.functional import elu, logsigmoid, normalize, pad, relu, softplus

from attnkit.interface import Variant
from attnkit.masks.constructors import Mask, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    Attend = Callable[["Given"], Tensor]

NOTHING = float("-inf")
BLOCK = 16


@dataclass(frozen=True)
class Given:
    """A call: tensors in the dtype of sums, with key/value heads repeated.

    Attributes:
        query: (B, H, L, E).
        key: (B, H, S, E).
        value: (B, H, S, Ev).
        seen: (B, H, L, S), True where a key is visible.
        distance: How far keys lie behind queries, (L, S).
        mask: What ``seen`` was made of.
        bias: (B, H, L, S); None for none.
        scale: Multiplies the products.
        softcap: Caps them.
        groups: Hkv.
        dtype: Of the inputs.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    seen: Tensor
    distance: Tensor
    mask: Mask
    bias: Tensor | None
    scale: float
    softcap: float | None
    groups: int
    dtype: torch.dtype

    def logits(self) -> Tensor:
        """Scaled, capped, biased, (B, H, L, S); hidden ones are anything."""
        logits = self.scale * (self.query @ self.key.mT)
        logits = logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()
        return logits if self.bias is None else logits + self.bias


def given(query: Tensor, key: Tensor, value: Tensor, **rules: Any) -> Given:
    """Read the arguments of a call."""
    wide = torch.promote_types(query.dtype, torch.float32)
    shared = query.shape[1] // key.shape[1]
    mask, sizes = rules["mask"], Sizes(*query.shape[:3], key.shape[2])
    bias, keys = rules["bias"], torch.arange(sizes.keys)
    behind = torch.arange(sizes.queries)[:, None] + sizes.keys - sizes.queries - keys
    return Given(
        query.to(wide),
        key.repeat_interleave(shared, 1).to(wide),
        value.repeat_interleave(shared, 1).to(wide),
        mask.to_bool(sizes, query.device).expand(*sizes),
        behind,
        mask,
        None if bias is None else bias.to(wide).expand(*sizes),
        rules["scale"],
        rules["softcap"],
        key.shape[1],
        query.dtype,
    )


def softmax(logits: Tensor, seen: Tensor) -> Tensor:
    """A softmax of what is seen; 0 where nothing is."""
    shown = torch.where(seen, logits, NOTHING)
    largest = shown.detach().amax(-1, keepdim=True).clamp(min=-1e30)
    shares = (shown - largest).exp()
    return shares / shares.sum(-1, keepdim=True).clamp(min=1e-30)


def divided(shares: Tensor) -> Tensor:
    """Rows divided by their sums, which are not negative; a row of zeros stays one."""
    total = shares.sum(-1, keepdim=True)
    return shares / torch.where(total == 0, 1.0, total)


def count(seen: Tensor) -> Tensor:
    """How many keys each row sees, at least 1."""
    return seen.sum(-1, keepdim=True).clamp(min=1)


# what each does: weights, (B, H, L, S), times values


def halves(at: Given) -> tuple[Tensor, Tensor]:
    """The logits of the first and of the second half of the width."""
    both = []
    for part in (slice(None, None, 2), slice(1, None, 2)):
        half = replace(at, query=at.query[..., part], key=at.key[..., part])
        both.append(half.logits())
    return both[0], both[1]


def differential(at: Given) -> Tensor:
    """One softmax less 0.8 of another: Ye et al. 2024, arXiv:2410.05258."""
    one, other = halves(at)
    return (softmax(one, at.seen) - 0.8 * softmax(other, at.seen)) @ at.value


def differential_apart(at: Given) -> Tensor:
    one, other = halves(at)
    values = softmax(other, at.seen) @ at.value
    return softmax(one, at.seen) @ at.value - 0.8 * values


def sigmoid(at: Given) -> Tensor:
    """Ramapuram et al. 2024, arXiv:2409.04431; b = -log of the number of keys that are seen."""
    logits = at.logits() - count(at.seen).log()
    return torch.where(at.seen, logits.sigmoid(), 0.0) @ at.value


def sigmoid_by_exponentials(at: Given) -> Tensor:
    logits = torch.where(at.seen, at.logits() - count(at.seen).log(), NOTHING)
    return 1 / (1 + (-logits).exp()) @ at.value


def features(tensor: Tensor) -> Tensor:
    return elu(tensor) + 1


def linear(at: Given) -> Tensor:
    """Katharopoulos et al. 2020, arXiv:2006.16236, by weights."""
    weights = features(at.query) @ features(at.key).mT
    return divided(torch.where(at.seen, weights, 0.0)) @ at.value


def linear_by_sums(at: Given) -> Tensor:
    """With running sums, for masks that hide later keys and padding alone."""
    queries, keys = at.seen.shape[2:]
    real = at.seen.any(2)[..., None]
    if keys == 0 or queries == 0:
        return at.query @ at.key.mT @ at.value
    key = torch.where(real, features(at.key), 0.0)
    outer = key[..., None] * pad(at.value, (0, 1), value=1.0)[..., None, :]  # (B, H, S, E, Ev + 1)
    if at.mask.is_causal:
        sums = pad(outer.cumsum(2), (0, 0, 0, 0, 1, 0))
        last = (torch.arange(queries, device=key.device) + keys - queries + 1).clamp(min=0)
        sums = sums[:, :, last]
    else:
        sums = outer.sum(2, keepdim=True)
    found = (features(at.query)[..., None, :] @ sums)[..., 0, :]
    total = found[..., -1:]
    empty = ~at.seen.any(-1, keepdim=True)
    return torch.where(empty, 0.0, found[..., :-1] / torch.where(empty, 1.0, total))


def exponential_features(at: Given) -> Tensor:
    """Zhang et al. 2024, arXiv:2402.04347: features exp(x) and exp(-x)."""
    weights = at.query.exp() @ at.key.exp().mT + (-at.query).exp() @ (-at.key).exp().mT
    return divided(torch.where(at.seen, weights, 0.0)) @ at.value


def exponential_features_joined(at: Given) -> Tensor:
    query = torch.cat((at.query, -at.query), -1).exp()
    key = torch.cat((at.key, -at.key), -1).exp()
    weights = (query @ key.mT) * at.seen
    return (weights @ at.value) / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def rectified(at: Given) -> Tensor:
    """Wortsman et al. 2023, arXiv:2309.08586: relu over the number of keys."""
    return torch.where(at.seen, relu(at.logits()), 0.0) / count(at.seen) @ at.value


def rectified_later(at: Given) -> Tensor:
    logits = at.logits()
    return (logits * ((logits > 0) & at.seen)) @ at.value / count(at.seen)


def squared(at: Given) -> Tensor:
    """Squared relu: Hua et al. 2022, arXiv:2202.10447."""
    return torch.where(at.seen, relu(at.logits()).square(), 0.0) / count(at.seen) @ at.value


def squared_by_keys(at: Given) -> Tensor:
    out = 0.0 * (at.query @ at.key.mT @ at.value)
    logits = torch.where(at.seen, at.logits(), 0.0).clamp(min=0)
    for weights, values in zip(logits.split(BLOCK, -1), at.value.split(BLOCK, 2), strict=True):
        out = out + weights**2 @ values
    return out / count(at.seen)


def off_by_one(at: Given) -> Tensor:
    """exp / (1 + sum of exp): Miller 2023."""
    shown = torch.where(at.seen, at.logits(), NOTHING)
    largest = shown.detach().amax(-1, keepdim=True).clamp(min=0)
    shares = (shown - largest).exp()
    return shares / ((-largest).exp() + shares.sum(-1, keepdim=True)) @ at.value


def off_by_one_padded(at: Given) -> Tensor:
    shown = pad(torch.where(at.seen, at.logits(), NOTHING), (0, 1))
    return shown.softmax(-1)[..., :-1] @ at.value


def quartic(at: Given) -> Tensor:
    """Kacham et al. 2023, arXiv:2310.01655: the fourth power of products, and 1 below."""
    shares = torch.where(at.seen, at.logits() ** 4, 0.0)
    return shares / (1 + shares.sum(-1, keepdim=True)) @ at.value


def quartic_squared(at: Given) -> Tensor:
    shares = at.logits().square() * at.seen
    shares = shares * shares
    return (shares @ at.value) / (1 + shares.sum(-1, keepdim=True))


def cosine(at: Given) -> Tensor:
    """Liu et al. 2022, arXiv:2111.09883: temperature 0.1."""
    at = replace(at, query=10 * normalize(at.query, dim=-1), key=normalize(at.key, dim=-1))
    return softmax(at.logits(), at.seen) @ at.value


def cosine_later(at: Given) -> Tensor:
    def long(tensor: Tensor) -> Tensor:
        return tensor.square().sum(-1, keepdim=True).clamp(min=1e-24).sqrt()

    unscaled = (at.query @ at.key.mT) / (long(at.query) * long(at.key).mT)
    logits = 10 * at.scale * unscaled
    logits = logits if at.softcap is None else at.softcap * (logits / at.softcap).tanh()
    logits = logits if at.bias is None else logits + at.bias
    return softmax(logits, at.seen) @ at.value


def sparsemax(at: Given) -> Tensor:
    """Martins and Astudillo 2016, arXiv:1602.02068, by sorting."""
    logits = torch.where(at.seen, at.logits(), -1e4)
    ordered = logits.sort(-1, descending=True).values
    ranks = torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype)
    above = ordered.cumsum(-1) - 1
    size = (ranks * ordered > above).sum(-1, keepdim=True).clamp(min=1)
    threshold = above.gather(-1, size - 1) / size
    return torch.where(at.seen, relu(logits - threshold), 0.0) @ at.value


def sparsemax_by_trial(at: Given) -> Tensor:
    """Michelot's way: take out what is negative, until nothing is."""
    logits = at.logits()
    held = at.seen
    for _ in range(60):
        size = count(held)
        threshold = (torch.where(held, logits, 0.0).sum(-1, keepdim=True) - 1) / size
        left = held & (logits > threshold)
        if torch.equal(left, held):
            break
        held = left
    return torch.where(held, logits - threshold, 0.0) @ at.value


def top_8(at: Given) -> Tensor:
    """Gupta et al. 2021, arXiv:2106.06899: the 8 largest logits of a row."""
    logits = torch.where(at.seen, at.logits(), NOTHING)
    least = logits.detach().topk(min(8, logits.shape[-1]), -1).values[..., -1:]
    return softmax(logits, at.seen & (logits >= least)) @ at.value


def top_8_gathered(at: Given) -> Tensor:
    logits = torch.where(at.seen, at.logits(), NOTHING)
    best, at_key = logits.topk(min(8, logits.shape[-1]), -1)
    shares = softmax(best, best > NOTHING)
    rows = at.value[:, :, None].expand(*logits.shape[:3], -1, -1)
    chosen = rows.gather(3, at_key[..., None].expand(*at_key.shape, at.value.shape[3]))
    return (shares[..., None] * chosen).sum(-2)


def gaussian(at: Given) -> Tensor:
    """A softmax of negative squared distances: Kim et al. 2021, arXiv:2006.04710."""
    apart = (at.query[..., :, None, :] - at.key[..., None, :, :]).square().sum(-1)
    logits = -at.scale * apart
    return softmax(logits if at.bias is None else logits + at.bias, at.seen) @ at.value


def gaussian_expanded(at: Given) -> Tensor:
    """The square of the query cancels."""
    logits = at.scale * (2 * at.query @ at.key.mT - at.key.square().sum(-1)[..., None, :])
    return softmax(logits if at.bias is None else logits + at.bias, at.seen) @ at.value


def heavy_tailed(at: Given) -> Tensor:
    """Weights 1 / (1 + |q - k|^2), divided by their sum."""
    apart = (at.query[..., :, None, :] - at.key[..., None, :, :]).square().sum(-1)
    return divided(torch.where(at.seen, 1 / (1 + at.scale * apart), 0.0)) @ at.value


def heavy_tailed_in_logs(at: Given) -> Tensor:
    apart = (at.query[..., :, None, :] - at.key[..., None, :, :]).square().sum(-1)
    return softmax(-torch.log1p(at.scale * apart), at.seen) @ at.value


def soft_plus(at: Given) -> Tensor:
    """Weights softplus(x), divided by their sum: Zuo et al. 2025, arXiv:2501.13428."""
    return divided(torch.where(at.seen, softplus(at.logits()), 0.0)) @ at.value


def soft_plus_in_logs(at: Given) -> Tensor:
    logits = at.logits()
    weights = torch.logaddexp(logits, torch.zeros_like(logits)) * at.seen
    return weights @ at.value / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def slopes(at: Given) -> Tensor:
    heads = at.query.shape[1]
    return 2.0 ** -(torch.arange(1, heads + 1, device=at.query.device, dtype=at.query.dtype))


def with_slopes(at: Given) -> Tensor:
    """Press et al. 2022, arXiv:2108.12409."""
    away = slopes(at)[:, None, None] * at.distance.abs()
    return softmax(at.logits() - away, at.seen) @ at.value


def with_slopes_online(at: Given) -> Tensor:
    """One pass over blocks of keys, with a running largest logit."""
    away = slopes(at)[:, None, None] * at.distance.abs()
    logits = torch.where(at.seen, at.logits() - away, NOTHING)
    largest = torch.full_like(logits.detach()[..., :1].sum(-1, keepdim=True), -1e30)
    total, out = torch.zeros_like(largest), 0.0 * (at.query @ at.key.mT @ at.value)
    for part, held in zip(logits.split(BLOCK, -1), at.value.split(BLOCK, 2), strict=True):
        larger = torch.maximum(largest, part.detach().amax(-1, keepdim=True))
        shares, kept = (part - larger).exp(), (largest - larger).exp()
        total = total * kept + shares.sum(-1, keepdim=True)
        out, largest = out * kept + shares @ held, larger
    return out / total.clamp(min=1e-30)


def stick_breaking(at: Given) -> Tensor:
    """Tan et al. 2025, arXiv:2410.17980: each key, latest first, takes a share of what is left."""
    logits = torch.where(at.seen, at.logits(), NOTHING)
    left = torch.where(at.seen, logsigmoid(-at.logits()), 0.0)
    behind = left.flip(-1).cumsum(-1).flip(-1) - left
    return (logsigmoid(logits) + behind).exp() @ at.value


def stick_breaking_step_by_step(at: Given) -> Tensor:
    shares = torch.where(at.seen, at.logits().sigmoid(), 0.0)
    left, out = torch.ones_like(shares[..., :1]), 0.0 * (at.query @ at.key.mT @ at.value)
    for j in reversed(range(shares.shape[-1])):
        taken = shares[..., j, None]
        out = out + left * taken * at.value[:, :, None, j]
        left = left * (1 - taken)
    return out


def mixing(at: Given) -> Tensor:
    heads = at.query.shape[1]
    i = torch.arange(heads, device=at.query.device)
    return (torch.cos(1.0 * i[:, None] * (i + 1)) / heads).to(at.query.dtype)


def talking_heads(at: Given) -> Tensor:
    """Shazeer et al. 2020, arXiv:2003.02436: logits, and weights, mixed over heads."""
    logits = torch.einsum("gh,bhls->bgls", mixing(at), at.logits())
    weights = torch.einsum("gh,bhls->bgls", mixing(at), softmax(logits, at.seen))
    return torch.where(at.seen, weights, 0.0) @ at.value


def talking_heads_one_by_one(at: Given) -> Tensor:
    mix, logits = mixing(at), at.logits()
    heads = range(logits.shape[1])
    mixed = torch.stack([sum(mix[g, h] * logits[:, h] for h in heads) for g in heads], 1)
    shares = softmax(mixed, at.seen)
    again = torch.stack([sum(mix[g, h] * shares[:, h] for h in heads) for g in heads], 1)
    return again * at.seen @ at.value


def forgetting(at: Given) -> Tensor:
    """Lin et al. 2025, arXiv:2503.02130: what later keys' first channels forget comes off."""
    gates = torch.where(at.seen, logsigmoid(at.key[..., 0] + 2)[..., None, :], 0.0)
    behind = gates.flip(-1).cumsum(-1).flip(-1) - gates
    return softmax(at.logits() + behind, at.seen) @ at.value


def forgetting_by_a_product(at: Given) -> Tensor:
    gates = logsigmoid(at.key[..., 0] + 2)[..., None, :] * at.seen
    keys = torch.arange(at.seen.shape[3])
    behind = gates @ (keys[:, None] > keys).to(gates.dtype)
    return softmax(at.logits() + behind, at.seen) @ at.value


def hyperbolic(at: Given) -> Tensor:
    """tanh of logits, over the root of the number of keys."""
    return torch.where(at.seen, at.logits().tanh(), 0.0) / count(at.seen).sqrt() @ at.value


def hyperbolic_by_exponentials(at: Given) -> Tensor:
    """By what the exponential lacks of 1, which is exact for small logits, too."""
    lacking = torch.expm1(-2 * at.logits().abs())
    weights = at.logits().sign() * -lacking / (2 + lacking)
    return (weights * at.seen) @ at.value * count(at.seen).rsqrt()


def signed(at: Given) -> Tensor:
    """A softmax of sizes, with the signs of the logits."""
    logits = at.logits()
    return softmax(logits.abs(), at.seen) * logits.sign() @ at.value


def signed_apart(at: Given) -> Tensor:
    logits = at.logits()
    shares = softmax(logits.abs(), at.seen)
    positive, negative = (torch.where(s, shares, 0.0) for s in (logits > 0, logits < 0))
    return positive @ at.value - negative @ at.value


def of_unit_length(at: Given) -> Tensor:
    """Exponentials divided by the root of the sum of their squares."""
    shown = torch.where(at.seen, at.logits(), NOTHING)
    shares = (shown - shown.detach().amax(-1, keepdim=True).clamp(min=-1e30)).exp()
    return shares / shares.square().sum(-1, keepdim=True).clamp(min=1e-30).sqrt() @ at.value


def of_unit_length_in_logs(at: Given) -> Tensor:
    shown = torch.where(at.seen, at.logits(), NOTHING)
    empty = ~at.seen.any(-1, keepdim=True)
    size = torch.where(empty, 0.0, 2 * shown).logsumexp(-1, keepdim=True) / 2
    return torch.where(at.seen, (shown - size).exp(), 0.0) @ at.value


def twice(at: Given) -> Tensor:
    """A softmax of 4 times a softmax."""
    return softmax(4 * softmax(at.logits(), at.seen), at.seen) @ at.value


def twice_by_rows(at: Given) -> Tensor:
    outs = []
    for logits, seen in zip(at.logits().split(BLOCK, 2), at.seen.split(BLOCK, 2), strict=True):
        shares = (4 * softmax(logits, seen)).exp() * seen
        outs.append(shares @ at.value / shares.sum(-1, keepdim=True).clamp(min=1e-30))
    return torch.cat(outs, 2)


def decaying(at: Given) -> Tensor:
    """Sun et al. 2023, arXiv:2307.08621: products times powers of a decay."""
    powers = (1 - slopes(at)[:, None, None] / 4) ** at.distance.abs()
    return torch.where(at.seen, at.logits() * powers, 0.0) @ at.value


def decaying_in_logs(at: Given) -> Tensor:
    falls = torch.log1p(-slopes(at)[:, None, None] / 4) * at.distance.abs()
    return (at.logits() * at.seen * falls.exp()) @ at.value


def levels(at: Given) -> Tensor:
    """The whole part of log2(distance + 1), which is no float's to decide."""
    return (at.distance.abs()[..., None] + 1 >= 2 ** torch.arange(1, 20)).sum(-1).to(at.query.dtype)


def by_levels(at: Given) -> Tensor:
    """After Guo et al. 2025, arXiv:2506.04761: products, weighed by powers of two of distance."""
    weights = features(at.query) @ features(at.key).mT * 2.0 ** -levels(at)
    return torch.where(at.seen, weights, 0.0) @ at.value


def by_levels_one_by_one(at: Given) -> Tensor:
    away, out = at.distance.abs() + 1, 0.0 * (at.query @ at.key.mT @ at.value)
    key, query = features(at.key), features(at.query)
    for level in range(int(away.max()).bit_length() if away.numel() else 0):
        here = at.seen & (away >= 2**level) & (away < 2 ** (level + 1))
        out = out + 2.0**-level * (((query @ key.mT) * here) @ at.value)
    return out


def largest_sum(at: Given) -> Tensor:
    """Max-plus: the largest of logit plus value; 0 for a row that sees nothing."""
    sums = at.logits()[..., None] + at.value[:, :, None]
    sums = torch.where(at.seen[..., None], sums, NOTHING)
    empty = ~at.seen.any(-1)[..., None]
    return torch.where(empty, 0.0, pad(sums, (0, 0, 0, 1), value=-1e30).amax(-2))


def largest_sum_step_by_step(at: Given) -> Tensor:
    logits = torch.where(at.seen, at.logits(), NOTHING)
    out = torch.full_like(at.query @ at.key.mT @ at.value, -1e30)
    for j in range(logits.shape[-1]):
        out = torch.maximum(out, logits[..., j, None] + at.value[:, :, None, j])
    return torch.where(~at.seen.any(-1)[..., None], 0.0, out)


def gated(at: Given) -> Tensor:
    """A softmax whose output a sigmoid of the query gates: Qiu et al. 2025, arXiv:2505.06708."""
    return softmax(at.logits(), at.seen) @ at.value * at.query.mean(-1, keepdim=True).sigmoid()


def gated_before(at: Given) -> Tensor:
    gate = at.query.mean(-1, keepdim=True).sigmoid()
    return (softmax(at.logits(), at.seen) * gate) @ at.value


def selective(at: Given) -> Tensor:
    """Leviathan et al. 2025, arXiv:2410.02703: what one head selects, later queries forget."""
    logits = at.logits()
    picked = torch.where(at.seen[:, :1] & (at.distance > 0), relu(logits[:, :1]), 0.0)
    before = picked.cumsum(2) - picked
    return softmax(logits - before, at.seen) @ at.value


def selective_step_by_step(at: Given) -> Tensor:
    logits = at.logits()
    picked = relu(logits[:, 0]) * (at.seen[:, 0] & (at.distance > 0))
    taken, outs = torch.zeros_like(picked[:, 0]), []
    for i in range(logits.shape[2]):
        shares = softmax(logits[:, :, i] - taken[:, None], at.seen[:, :, i])
        outs.append((shares[..., None] * at.value).sum(2))
        taken = taken + picked[:, i]
    return torch.stack(outs, 2) if outs else at.query @ at.key.mT @ at.value


# ways to compute any of them


def in_tiles(attend: Attend) -> Attend:
    """Of 16 queries each, with no key behind the last that any of them sees."""

    def tiled(at: Given) -> Tensor:
        outs = []
        for start in range(0, max(1, at.query.shape[2]), BLOCK):
            rows = slice(start, start + BLOCK)
            used = at.seen[:, :, rows].flatten(0, 2).any(0).nonzero()
            keys = slice(int(used[-1]) + 1 if len(used) else 1)
            tile = replace(
                at,
                query=at.query[:, :, rows],
                key=at.key[:, :, keys],
                value=at.value[:, :, keys],
                seen=at.seen[:, :, rows, keys],
                distance=at.distance[rows, keys],
                bias=None if at.bias is None else at.bias[:, :, rows, keys],
            )
            outs.append(attend(tile))
        return torch.cat(outs, 2)

    return tiled


class Recomputed(torch.autograd.Function):
    """Keeps its inputs alone, and computes all else once more in the backward pass, in float64."""

    @staticmethod
    def forward(ctx: Any, attend: Attend, at: Given, *tensors: Tensor) -> Tensor:
        ctx.attend, ctx.at = attend, at
        ctx.save_for_backward(*tensors)
        return attend(_with(at, tensors))

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        leaves = [each.detach().double().requires_grad_() for each in ctx.saved_tensors]
        with torch.enable_grad():
            out = ctx.attend(_with(ctx.at, leaves))
            found = torch.autograd.grad(out, leaves, grad_out.double(), materialize_grads=True)
        return None, None, *(each.to(grad_out.dtype) for each in found)


def _with(at: Given, tensors: Sequence[Tensor]) -> Given:
    return replace(at, **dict(zip(("query", "key", "value", "bias"), tensors, strict=False)))


def recomputed(attend: Attend) -> Attend:
    def run(at: Given) -> Tensor:
        tensors = (at.query, at.key, at.value, *(() if at.bias is None else (at.bias,)))
        out: Tensor = Recomputed.apply(attend, replace(at), *tensors)  # type: ignore[no-untyped-call]  # torch's own
        return out

    return run


class Maths(NamedTuple):
    """One maths.

    Attributes:
        plain: As it is defined.
        other: Computed otherwise.
        promises: What it promises beside, or less than, `PROMISES`.
    """

    plain: Attend
    other: Attend
    promises: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        """Of the plain way."""
        return self.plain.__name__


NO_LOGITS = {"bias": False, "scale": False, "softcap": False}
OF_ALL_HEADS = {"gqa": False}
OF_THE_PAST = {"bidirectional": False, "cross": False}

MATHS = (
    Maths(differential, differential_apart),
    Maths(sigmoid, sigmoid_by_exponentials),
    Maths(linear, linear_by_sums, {**NO_LOGITS, "masks": ("padding",)}),
    Maths(exponential_features, exponential_features_joined, NO_LOGITS),
    Maths(rectified, rectified_later),
    Maths(squared, squared_by_keys),
    Maths(off_by_one, off_by_one_padded),
    Maths(quartic, quartic_squared),
    Maths(cosine, cosine_later),
    Maths(sparsemax, sparsemax_by_trial),
    Maths(top_8, top_8_gathered),
    Maths(gaussian, gaussian_expanded, {"softcap": False}),
    Maths(heavy_tailed, heavy_tailed_in_logs, NO_LOGITS),
    Maths(soft_plus, soft_plus_in_logs),
    Maths(with_slopes, with_slopes_online),
    Maths(stick_breaking, stick_breaking_step_by_step),
    Maths(talking_heads, talking_heads_one_by_one, OF_ALL_HEADS),
    Maths(forgetting, forgetting_by_a_product),
    Maths(hyperbolic, hyperbolic_by_exponentials),
    Maths(signed, signed_apart),
    Maths(of_unit_length, of_unit_length_in_logs),
    Maths(twice, twice_by_rows),
    Maths(decaying, decaying_in_logs),
    Maths(by_levels, by_levels_one_by_one, NO_LOGITS),
    Maths(largest_sum, largest_sum_step_by_step),
    Maths(gated, gated_before),
    Maths(selective, selective_step_by_step, {**OF_ALL_HEADS, **OF_THE_PAST}),
)
"""All of them."""

NAMED = {each.name: each for each in MATHS}


def function_of(attend: Attend) -> Callable[..., Tensor]:
    """Return an implementation of the family; it computes half precision in float32."""

    def run(query: Tensor, key: Tensor, value: Tensor, **rules: Any) -> Tensor:
        return attend(given(query, key, value, **rules)).to(query.dtype)

    return run


def defined(attend: Attend) -> Callable[..., Tensor]:
    """Return a reference: the same in float64."""

    def run(query: Tensor, *rest: Tensor, **rules: Any) -> Tensor:
        tensors = (each.double() for each in (query, *rest))
        rules = {n: r.double() if isinstance(r, torch.Tensor) else r for n, r in rules.items()}
        return attend(given(*tensors, **rules)).to(query.dtype)

    return run


def variant_of(maths: Maths, name: str, function: Callable[..., Tensor]) -> Variant:
    """Return a variant of other maths whose ``own`` is a function."""
    promised = {"sinks": False, **maths.promises}
    made: Variant = correct_softmax.variant_of(function, "different", **promised)
    reference, own = made.implementations
    reference = replace(reference, function=defined(maths.plain))
    return replace(made, name=name, implementations=(reference, own))


def ways(maths: Maths) -> dict[str, Attend]:
    """Return every way to compute one, by name."""
    found = {"plain": maths.plain, "other": maths.other, "recomputed": recomputed(maths.plain)}
    return found if maths.name == "selective" else {**found, "in_tiles": in_tiles(maths.plain)}


RIGHT = {
    f"{maths.name}_{way}": variant_of(maths, f"right_{maths.name}_{way}", function_of(attend))
    for maths in MATHS
    for way, attend in ways(maths).items()
}
"""Every right variant, by name."""
