"""A, continued: softmax attention knows no order of keys and no origin of logits; closed forms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.catalogue import Measured, softmax_check
from attnkit_contracts.judging.outputs import agree, must_differ, part, relative_error, worst

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.judging.outputs import Index
    from attnkit_contracts.subjects.softmax import SoftmaxOperation


def open_call(subject: SoftmaxOperation, label: str, keys: int) -> tuple[Call, tuple[Index, ...]]:
    """Return a call, and which of its rows see all keys."""
    causal = not subject.promises.bidirectional
    mask = subject.mask(Sizes(2, subject.heads, keys, keys), causal=causal, wide=ALL_MASK_PARTS)
    rows = slice(keys - 1, keys) if causal else slice(None)
    return subject.draw(label, length=keys, mask=mask), (slice(None), slice(None), rows)


@softmax_check(
    "A6.key_permutation",
    "Rows that see all keys: F(q, k[p], v[p]) = F(q, k, v) for every permutation p.",
    verdict="R",
)
def key_permutation(subject: SoftmaxOperation) -> Measured:
    """Shuffle and reverse the keys, over tails of blocks."""
    found = []
    for keys in (33, 70, 130):
        call, rows = open_call(subject, "A6", keys)
        limit, out = subject.bound(call), subject(call)
        shuffled = torch.randperm(keys, generator=subject.random("A6 order")).to(subject.device)
        for what, order in (("shuffled", shuffled), ("reversed", shuffled.sort().values.flip(0))):
            key, value = (call.tensors[name][:, :, order] for name in ("key", "value"))
            must_differ(key, call.tensors["key"], f"keys {what}")
            other = subject(call.given(key=key, value=value))
            found.append(agree(part(limit, rows), out[rows], other[rows], f"{keys} keys {what}"))
    return worst(found)


@softmax_check(
    "A7.score_shift",
    "F(q, k + c, v) = F(q, k, v): what is added to all logits of a row cancels.",
    verdict="R",
)
def score_shift(subject: SoftmaxOperation) -> Measured:
    """Add one vector to all keys; both have few digits, so that the sum is exact."""
    call, _ = open_call(subject, "A7", 50)
    key = (call.tensors["key"] * 8).round() / 8
    call = call.given(key=key.clamp(-4, 4))
    out, found = subject(call), []
    for size in (1.0, 8.0, -8.0):
        # |k + c| <= 12 in steps of 1/8: 7 binary digits
        shifted = call.given(key=call.tensors["key"] + size)
        other = subject(shifted)
        found.append(agree(subject.bound(shifted), out, other, f"all keys + {size}"))
    return worst(found)


def _closed(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield the terms whose closed form is known, one by one and together."""
    promised = [name for name in ("softcap", "bias", "sinks") if getattr(promises, name)]
    yield from ({"terms": name} for name in promised)
    if len(promised) > 1:
        yield {"terms": "+".join(promised)}


@softmax_check(
    "A8.closed_forms",
    "With S1 keys at logit a and value 1, S2 keys at logit 0 and value 0: "
    "o = S1 e^l / (S1 e^l + S2 + e^s), l = cap(a) + bias, cap(a) = c tanh(a / c), s the sink.",
    applies=lambda promises: promises.softcap or promises.bias or promises.sinks,
    cases=_closed,
    verdict="R",
)
def closed_forms(subject: SoftmaxOperation, terms: str) -> Measured:
    """Choose the numbers so that any other order of the terms gives another result."""
    keys, first, width = 11, 4, 16
    promised = terms.split("+")
    causal = not subject.promises.bidirectional
    mask = subject.mask(Sizes(1, subject.heads, keys, keys), causal=causal, wide=ALL_MASK_PARTS)
    call = subject.draw("A8", batch=1, length=keys, width=width, mask=mask)
    query, key, value = (torch.zeros_like(call.tensors[n]) for n in ("query", "key", "value"))
    # q.k = 8 and E^-0.5 = 1/4 make the logit a = 2
    query[..., 0], key[..., :first, 0], value[..., :first, :] = 4.0, 2.0, 1.0
    call, logit, sink = call.given(query=query, key=key, value=value), 2.0, 0.0
    if "softcap" in promised:
        call, logit = call.saying(softcap=1.5), 1.5 * math.tanh(2 / 1.5)
    if "bias" in promised:
        bias = torch.zeros(1, 1, keys, keys, dtype=subject.dtype, device=subject.device)
        bias[..., :first] = -0.75
        call, logit = call.given(bias=bias), logit - 0.75
    if "sinks" in promised:
        sinks = torch.full((subject.heads,), 1.25, dtype=subject.dtype, device=subject.device)
        call, sink = call.given(sinks=sinks), math.exp(1.25)
    mass = first * math.exp(logit)
    wanted = mass / (mass + keys - first + sink)
    return relative_error(subject.dtype, subject(call)[:, :, -1], wanted, 64, terms)
