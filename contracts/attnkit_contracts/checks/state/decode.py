"""T, continued: prefixes, needles and long rolls of the state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.catalogue import (
    BrokenError,
    InconclusiveError,
    Measured,
    layer_check,
    mixing_check,
    softmax_check,
)
from attnkit_contracts.inputs import cuts
from attnkit_contracts.judging.outputs import agree, near, part, worst

if TYPE_CHECKING:
    from attnkit.state import State
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject
    from attnkit_contracts.subjects.softmax import SoftmaxOperation
    from attnkit_contracts.subjects.subject import Subject


@mixing_check(
    "T1.prefix",
    "F(x[:n]) = F(x)[:n] for every n: nothing depends on how many tokens follow.",
    applies=lambda promises: promises.causal,
    verdict="R",
)
def prefix(subject: Subject) -> Measured:
    """Cut the tokens off behind and before the edges of blocks."""
    length = 70
    call = subject.causal(subject.draw("T1", length=length))
    whole, limit = subject(call), subject.bound(call)
    found = []
    for tokens in (1, 2, 16, 17, 63, 64, 65):
        piece = cuts.tokens(call, 0, tokens)
        at = (..., slice(0, tokens), slice(None))
        found.append(agree(part(limit, at), whole[at], subject(piece), f"{tokens} of {length}"))
    return worst(found)


def _needles(subject: SoftmaxOperation, places: list[int], keys: int) -> Measured:
    """Give one query per sample, and one key that takes most of its weight."""
    mask = subject.mask(Sizes(len(places), subject.heads, 1, keys), wide=ALL_MASK_PARTS)
    call = subject.draw("T5", batch=len(places), length=1, keys=keys, width=8, mask=mask)
    key = call.tensors["key"].clone()
    for sample, place in enumerate(places):
        query = call.tensors["query"][sample, :, 0]
        # a logit of 20 among normal ones
        needle = 20 * 8**0.5 * query / query.square().sum(-1, keepdim=True)
        key[sample, :, place] = needle
    call = call.given(key=key)
    weights = subject.attend(call).weights
    for sample, place in enumerate(places):
        if not (weights[sample, :, 0, place] > 0.5).all():
            raise InconclusiveError(f"key {place} does not stand out, so the check proves nothing")
    return near(subject.bound(call), subject(call), f"needles at {places} of {keys}")


@softmax_check(
    "T5.needle",
    "A single query whose weight lies on one key returns that key's value, be it the first, the "
    "newest, or at the edge of a block.",
    applies=lambda promises: promises.cross,
    cases=lambda _: [{"keys": keys} for keys in (130, 257)],
    verdict="R",
)
def needle(subject: SoftmaxOperation, keys: int) -> Measured:
    """Decode against keys one of which matters."""
    places = {0, 1, 15, 16, 63, 64, keys // 2, keys - 65, keys - 2, keys - 1}
    return _needles(subject, sorted(places), keys)


@softmax_check(
    "T5.long_needle",
    "The same over thousands of keys, where a kernel that never reads the newest one would pass "
    "a comparison of random outputs.",
    applies=lambda promises: promises.cross,
    tier="standard",
    verdict="R",
)
def long_needle(subject: SoftmaxOperation) -> Measured:
    """Decode against 4097 keys one of which matters."""
    return _needles(subject, [0, 2048, 4095, 4096], 4097)


ROLLED = 512
"""Tokens of a long roll."""


@layer_check(
    "T6.long_roll",
    "512 tokens in steps and chunks, with the state kept, left for another continuation, cut back "
    "and reordered in between, give what one call gives.",
    applies=lambda promises: promises.state,
    tier="standard",
    verdict="R",
)
def long_roll(subject: LayerSubject) -> Measured:
    """Compare every output with those of one call over all tokens."""
    call, other = subject.draw_whole("T6", length=ROLLED), subject.draw_whole("T6 other", length=24)
    limit, whole = subject.bound(call, probes=4), subject(call)
    state, outputs, start, turn = subject.begin(2), [], 0, 0
    while start < ROLLED:
        # mostly single steps, some chunks, and past every edge of a block
        length = min((1, 1, 2, 13, 0, 1, 100)[turn % 7], ROLLED - start)
        out, following = subject.advance(call.tokens(start, start + length), state)
        outputs.append(out)
        if turn % 16 == 6:
            following = _astray(subject, other, following)
        if following.tokens != start + length:
            raise BrokenError(f"expected {start + length} tokens, got {following.tokens}")
        state, start, turn = following, start + length, turn + 1
    at = (slice(None), slice(0, ROLLED))
    return agree(part(limit, at), whole, torch.cat(outputs, 1), "512 tokens")


def _astray(subject: LayerSubject, other: Call, state: State) -> Any:
    """Go on with other tokens, and come back by every way that is promised."""
    _, strayed = subject.advance(other, state)
    if subject.promises.truncate:
        state = strayed.truncate(state.tokens)
    if subject.promises.reorder:
        swapped = torch.tensor([1, 0], device=subject.device)
        state = state.reorder(swapped).reorder(swapped)
    return state
