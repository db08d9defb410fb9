"""Softmax attention computed rightly, in the ways that kernels compute it.

Each takes every argument of the family and every mask; none shares a line with a plugin.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from attnkit.interface import Implementation, LayerConfig, Variant
from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_DTYPES, ALL_MASK_PARTS, Promises
from attnkit_contracts.foreign.functions import NO_LAYER

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.promises import Relation

NOTHING = float("-inf")
BLOCK = 16

PROMISES = Promises(
    causal=True,
    bidirectional=True,
    cross=True,
    masks=ALL_MASK_PARTS,
    gqa=True,
    value_width=True,
    bias=True,
    scale=True,
    softcap=True,
    sinks=True,
    gradients=True,
    deterministic=True,
    dtypes=ALL_DTYPES,
    devices=("cpu",),
)


def variant_of(
    function: Callable[..., Tensor], relation: Relation = "exact", **update: Any
) -> Variant:
    """Return a variant whose ``own`` is a function; ``update`` changes its promises."""
    promises = PROMISES.model_copy(update=update)
    reference = Implementation(
        name="reference",
        function="attnkit.reference:softmax",
        summary="",
        promises=promises.model_copy(update={"dtypes": ALL_DTYPES}),
        cost=lambda _: 2.0,
    )
    own = Implementation(
        name="own", function=function, summary="", promises=promises, cost=lambda _: 1.0
    )
    return Variant(
        name=f"correct_{function.__name__}",
        family="softmax",
        summary="",
        source="",
        relation=relation,
        promises=promises,
        config=LayerConfig,
        layer=NO_LAYER,
        implementations=(reference, own),
    )


def _seen(query: Tensor, key: Tensor, mask: Any) -> Tensor:
    sizes = Sizes(*query.shape[:3], key.shape[2])
    seen: Tensor = mask.to_bool(sizes, query.device).expand(*sizes)
    return seen


def _logits(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """Return the logits, those of the sinks last, and the values of every head."""
    shared = query.shape[1] // key.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    seen = _seen(query, key, given["mask"])
    key, value = (each.repeat_interleave(shared, 1).to(wide) for each in (key, value))
    logits = given["scale"] * (query.to(wide) @ key.mT)  # (B, H, L, S)
    cap, bias, sinks = given["softcap"], given["bias"], given["sinks"]
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    logits = logits if bias is None else logits + bias.to(wide)
    logits = logits.masked_fill(~seen, NOTHING)
    last = torch.full_like(logits[..., :1], NOTHING)
    last = last if sinks is None else sinks.to(wide)[:, None, None].expand(*logits.shape[:3], 1)
    return torch.cat((logits, last), -1), torch.nn.functional.pad(value, (0, 0, 0, 1))


def by_the_largest(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Exponentials of distances to the largest logit, divided by their sum at the end."""
    logits, values = _logits(query, key, value, **given)
    largest = logits.detach().amax(-1, keepdim=True).clamp(min=-1e30)
    weights = (logits - largest).exp()
    return ((weights @ values) / weights.sum(-1, keepdim=True).clamp(min=1e-30)).to(query.dtype)


def in_log_space(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Exponentials of distances to the logarithm of their sum."""
    logits, values = _logits(query, key, value, **given)
    empty = (logits == NOTHING).all(-1, keepdim=True)
    sums = torch.where(empty, 0.0, logits).logsumexp(-1, keepdim=True)
    return (torch.where(empty, 0.0, (logits - sums).exp()) @ values).to(query.dtype)


def by_log_softmax(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    logits, values = _logits(query, key, value, **given)
    empty = (logits == NOTHING).all(-1, keepdim=True)
    weights = torch.where(empty, 0.0, logits).log_softmax(-1).exp()
    return (torch.where(empty, 0.0, weights) @ values).to(query.dtype)


def to_base_two(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    logits, values = _logits(query, key, value, **given)
    logits = logits * math.log2(math.e)
    largest = logits.detach().amax(-1, keepdim=True).clamp(min=-1e30)
    weights = torch.exp2(logits - largest)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    return (weights @ values).to(query.dtype)


def with_keys_split(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """A softmax of each block of keys, joined by the logarithms of their sums."""
    logits, values = _logits(query, key, value, **given)
    outs, sums = [], []
    for part, held in zip(logits.split(BLOCK, -1), values.split(BLOCK, 2), strict=True):
        empty = (part == NOTHING).all(-1, keepdim=True)
        total = torch.where(empty, 0.0, part).logsumexp(-1, keepdim=True)
        outs.append(torch.where(empty, 0.0, (part - total).exp()) @ held)
        sums.append(torch.where(empty, NOTHING, total))
    joined = torch.cat(sums, -1)
    empty = (joined == NOTHING).all(-1, keepdim=True)
    shares = torch.where(empty, 0.0, torch.where(empty, 0.0, joined).softmax(-1))
    return (torch.stack(outs, -1) * shares[..., None, :]).sum(-1).to(query.dtype)


def online(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """One pass over blocks of keys with a running largest logit, and sums that are rescaled."""
    logits, values = _logits(query, key, value, **given)
    largest = torch.full_like(logits[..., :1], -1e30)
    total, out = torch.zeros_like(largest), torch.zeros_like(largest)
    for part, held in zip(logits.split(BLOCK, -1), values.split(BLOCK, 2), strict=True):
        larger = torch.maximum(largest, part.detach().amax(-1, keepdim=True))
        weights, kept = (part - larger).exp(), (largest - larger).exp()
        total = total * kept + weights.sum(-1, keepdim=True)
        out, largest = out * kept + weights @ held, larger
    return (out / total.clamp(min=1e-30)).to(query.dtype)


def in_two_passes(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """The sum of exponentials first, the weights by it afterwards, and all of it in float64."""
    given = {n: t.double() if isinstance(t, torch.Tensor) else t for n, t in given.items()}
    out = in_log_space(query.double(), key.double(), value.double(), **given)
    return out.to(query.dtype)


def stopping_nan(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """No product of a weight of 0: what a key holds stays there."""
    seen, groups = _seen(query, key, given["mask"]), key.shape[1]
    used = seen.unflatten(1, (groups, -1)).flatten(2, 3).any(2)[..., None]  # (B, Hkv, S, 1)
    key, value = torch.where(used, key, 0.0), torch.where(used, value, 0.0)
    logits, values = _logits(query, key, value, **given)
    empty = (logits == NOTHING).all(-1, keepdim=True)
    weights = torch.where(empty, 0.0, torch.where(empty, 0.0, logits).softmax(-1))
    shown = torch.where(seen[..., None], weights[..., :-1, None] * values[:, :, None, :-1], 0.0)
    return shown.sum(-2).to(query.dtype)


def _forward(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    logits = (scale * query @ key.mT).masked_fill(~seen, NOTHING)
    return logits.softmax(-1) @ value


_compiled = torch.compile(_forward, backend="aot_eager", dynamic=True)


def compiled_ahead(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """A graph whose backward may run once, which is torch's default."""
    out: Tensor = _compiled(query, key, value, _seen(query, key, given["mask"]), given["scale"])
    return out


WAYS: tuple[Callable[..., Tensor], ...] = (
    by_the_largest,
    in_log_space,
    by_log_softmax,
    to_base_two,
    with_keys_split,
    online,
    in_two_passes,
)
