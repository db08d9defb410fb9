"""T: what was computed at once equals what was computed in pieces, with state carried along."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

import attnkit
from attnkit.errors import StateError
from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.catalogue import (
    BrokenError,
    Measured,
    call_check,
    layer_check,
    recurrence_check,
)
from attnkit_contracts.foreign.functions import NO_LAYER
from attnkit_contracts.inputs import cuts
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject
    from attnkit_contracts.subjects.recurrence import RecurrenceOperation
    from attnkit_contracts.subjects.subject import Subject

PIECES = ((1, 16, 1, 2, 13, 7), (0, 5, 28, 0, 7), (2, 3, 34, 1))
"""Lengths of chunks, 40 tokens in all: single steps, odd ones, empty ones."""

LONG = (2, 0, 130, 1, 1)
"""Chunks that are longer than a tile, or need more room than a cache began with."""


def _goes_stepwise(promises: Promises) -> bool:
    return promises.state or (promises.causal and promises.cross)


@call_check(
    "T2.steps",
    "For every t: the step from the state after t tokens gives F(x)_t.",
    applies=_goes_stepwise,
    verdict="R",
)
def steps(subject: Subject) -> Measured:
    """Compare every step, not only the last; then the last steps of one sample alone."""
    call = subject.draw_whole("T", length=40)
    limit, whole = subject.bound(call), subject(call)
    found = [judge.agree(limit, whole, subject.pieces(call, (1,) * 40))]
    if not call.mask.per_batch:
        alone = call.samples(torch.tensor([0], device=subject.device))
        at = (slice(0, 1),)
        got = subject.pieces(alone, (36, 1, 1, 1, 1))
        found.append(judge.agree(judge.part(limit, at), whole[at], got, "one sample alone"))
    return judge.worst(found)


@call_check(
    "T3.chunks",
    "For every partition of the tokens: F chunk by chunk = F.",
    applies=_goes_stepwise,
    verdict="R",
)
def chunks(subject: Subject) -> Measured:
    """Compare some partitions, with chunks of one and of no tokens, and long ones, among them."""
    found = []
    for partitions in (PIECES, (LONG,)):
        call = subject.draw_whole("T", length=sum(partitions[0]))
        limit, whole = subject.bound(call, probes=2), subject(call)
        found += [
            judge.agree(limit, whole, subject.pieces(call, lengths), f"chunks {lengths}")
            for lengths in partitions
        ]
    return judge.worst(found)


@recurrence_check(
    "T3.chunk_size",
    "The size of the chunks that an implementation works in changes nothing.",
    verdict="R",
)
def chunk_size(subject: RecurrenceOperation) -> Measured:
    """Compare chunks of one token, of some, of as many as there are and of more."""
    options = subject.target.variant.options
    if "chunk_size" not in options.model_fields:
        return judge.exactly(0, "differences")
    call = subject.draw("T3 chunk size", length=40)
    limit = subject.bound(call)
    found = []
    for size in (1, 7, 40, 64):
        out, _ = subject.both(call, options.model_validate({"chunk_size": size}))
        found.append(judge.near(limit, out, f"chunk_size={size}"))
    return judge.worst(found)


@recurrence_check(
    "T4.recurrent_state",
    "F(x2; state(F(x1))) = F(x1 x2)_2; no tokens leave a state as it is, to the bit; a state given "
    "is not written to and shares no memory with the state returned; it moves with its sample, "
    "and stays as wide as it was given.",
    applies=lambda promises: promises.state,
    verdict="R",
    required=True,
)
def recurrent_state(subject: RecurrenceOperation) -> Measured:
    """Start from a state that is not empty."""
    call = subject.with_options(subject.draw_whole("T4", batch=3, length=17), "T4 state")
    given = call.tensors["initial_state"]
    before = given.clone()
    out, final = subject.both(call)
    judge.same_bits(before, given, "the state that was given")
    without = subject.exact(call.without("initial_state"))["out"]
    judge.must_differ(subject.exact(call)["out"], without, "an initial state, in the definition,")
    _expect_own_memory(given, final, "17 tokens")
    if final.shape != given.shape or final.dtype != given.dtype:
        raise BrokenError(
            f"the final state must be {tuple(given.shape)} {given.dtype}, "
            f"got {tuple(final.shape)} {final.dtype}"
        )
    _, kept = subject.both(cuts.tokens(call, 0, 0))
    judge.same_bits(before, kept, "the state after no tokens")
    _expect_own_memory(given, kept, "no tokens")
    order = torch.tensor([2, 0, 0], device=subject.device)
    moved_out, moved = subject.both(call.samples(order))
    limits = subject.bounds(call)
    return judge.worst(
        [
            judge.agree(
                judge.part(limits["out"], (order,)), out[order], moved_out, "samples reordered"
            ),
            judge.near(limits["state"], final, "the final state"),
            *_from_wider(subject, call, limits),
            judge.near(
                judge.part(limits["state"], (order,)), moved, "the final state, samples reordered"
            ),
        ]
    )


@recurrence_check(
    "T4.state_kept",
    "Tokens of padding leave a state as it is, to the bit: what inputs of half precision hand on "
    "is not rounded to theirs.",
    applies=lambda promises: promises.state and "padding" in promises.masks,
)
def state_kept(subject: RecurrenceOperation) -> Measured:
    """Go on over more tokens of padding than a chunk has."""
    nothing = attnkit.padding(torch.zeros(2, dtype=torch.int64, device=subject.device))
    mask = subject.mask(Sizes(2, 2, 20, 20), wide=ALL_MASK_PARTS) & nothing
    call = subject.draw("T4 kept", length=20, state=True, mask=mask)
    _, kept = subject.both(call)
    judge.same_bits(call.tensors["initial_state"], kept, "the state after tokens of padding")
    return judge.exactly(0, "changed elements")


def _from_wider(
    subject: RecurrenceOperation, call: Call, limits: Mapping[str, judge.Bound]
) -> list[Measured]:
    """Start from the same state in float64, which every function of a plugin must take."""
    if subject.target.variant.layer == NO_LAYER:
        return []
    out, state = subject.both(call.given(initial_state=call.tensors["initial_state"].double()))
    if state.dtype != torch.float64:
        raise BrokenError(f"the state that follows one of float64 is {state.dtype}")
    return [
        judge.near(limits["out"], out, "from a state of float64"),
        judge.near(limits["state"], state, "the state after one of float64"),
    ]


def _expect_own_memory(given: Tensor, returned: Tensor, what: str) -> None:
    if given.untyped_storage().data_ptr() == returned.untyped_storage().data_ptr():
        raise BrokenError(f"after {what}, the final state shares memory with the initial one")


@layer_check(
    "T4.layer_state",
    "A state is a value: going on from it twice gives the same, and going on changes neither it "
    "nor the states that came of it, nor does writing to what it was made of, with gradients "
    "enabled or not; it counts its tokens; "
    "reorder(index) commutes with going on, be some samples repeated, exchanged or left out, NaN "
    "in those left out.",
    applies=lambda promises: promises.state,
    verdict="R",
    required=True,
)
def layer_state(subject: LayerSubject) -> Measured:
    """Go on from one state with two continuations, with each of these, and again with the first."""
    call = subject.draw_whole("T4", batch=3, length=28)
    other = call.given(x=subject.normal("T4 other", *call.tensors["x"].shape))
    x, instead = call.tensors["x"], other.tensors["x"]
    spliced = call.given(x=torch.cat((x[:, :12], instead[:, 12:20], x[:, 20:]), 1))
    limits = subject.bound(call), subject.bound(spliced, probes=2)
    wanted = subject(call), subject(spliced)
    found = []
    # a decoder may write a step into what no graph holds
    for gradients, ends in ((True, (20,)), (False, (13, 20))):
        with torch.set_grad_enabled(gradients):
            got = _branched(subject, call, other, ends)
        for limit, whole, out, what in zip(limits, wanted, got, ("first", "second"), strict=True):
            at = (slice(None), slice(28 - out.shape[1], None))
            where = f"the {what} continuation of two"
            found.append(judge.agree(judge.part(limit, at), whole[at], out, where))
    if subject.promises.reorder:
        with torch.no_grad():
            found += _reordered(subject, call, limits[0], wanted[0])
    return judge.worst(found)


def _branched(
    subject: LayerSubject, call: Call, other: Call, ends: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return what follows token 12 of a call, and what token 20 where others were in between."""
    prompt = call.tokens(0, 12).map(lambda _, tensor: tensor.clone())
    _, state = subject.advance(prompt, subject.begin(3))
    # the caller's memory is the caller's, who may use it again
    prompt.tensors["x"].fill_(3.0)
    subject.watch.forget(prompt.tensors.values())
    if state.tokens != 12 or state.batch_size != 3:
        raise BrokenError(f"expected 12 of 3 samples, got {state.tokens} of {state.batch_size}")
    first, after = subject.advance(call.tokens(12, ends[0]), state)
    _, strayed = subject.advance(other.tokens(12, ends[0]), state)
    again, _ = subject.advance(call.tokens(12, ends[0]), state)
    judge.same_bits(first, again, "going on from one state for a second time")
    if state.tokens != 12 or after.tokens != ends[0]:
        raise BrokenError(
            f"expected 12 and {ends[0]} tokens, got {state.tokens} and {after.tokens}"
        )
    outputs = [first]
    for start, stop in itertools.pairwise((*ends, 28)):
        out, after = subject.advance(call.tokens(start, stop), after)
        outputs.append(out)
        if stop < 28:
            _, strayed = subject.advance(other.tokens(start, stop), strayed)
    elsewhere, _ = subject.advance(call.tokens(20, 28), strayed)
    return torch.cat(outputs, 1), elsewhere


ORDERS = ([2, 0, 0, 1], [1, 2, 0], [2, 0])
"""Samples by which states are reordered: one twice, all exchanged, one left out."""


def _reordered(
    subject: LayerSubject, call: Call, limit: judge.Bound, whole: Tensor
) -> list[Measured]:
    """Go on from states reordered; of one whose sample 1 holds NaN, without that sample."""
    found = []
    x = call.tensors["x"].clone()
    x[1, :12] = float("nan")
    for order in ORDERS:
        held = call if 1 in order else call.given(x=x)
        index = torch.tensor(order, device=subject.device)
        _, state = subject.advance(held.tokens(0, 12), subject.begin(3))
        moved = state.reorder(index)
        if moved.tokens != 12 or moved.batch_size != len(order):
            raise BrokenError(
                f"expected 12 tokens of {len(order)} samples after reorder({order}), "
                f"got {moved.tokens} of {moved.batch_size}"
            )
        for start, stop in ((12, 14), (14, 20)):
            at = (index, slice(start, stop))
            out, moved = subject.advance(call.samples(index).tokens(start, stop), moved)
            found.append(
                judge.agree(judge.part(limit, at), whole[at], out, f"samples reordered to {order}")
            )
        straight, _ = subject.advance(held.tokens(12, 20), state)
        rows = [each for each in range(3) if held is call or each != 1]
        kept = (rows, slice(12, 20))
        found.append(
            judge.agree(judge.part(limit, kept), whole[kept], straight[rows], "after a reorder")
        )
    return found


@layer_check(
    "T4.truncate",
    "A state cut back to t tokens, 0 among them, goes on as the state after t tokens did, whatever "
    "is cut off; the longer state goes on as before.",
    applies=lambda promises: promises.state and promises.truncate,
    verdict="R",
)
def truncate(subject: LayerSubject) -> Measured:
    """Cut several tokens off, NaN among them, and go on otherwise; with gradients and without."""
    call = subject.draw_whole("T4 cut", length=20)
    other = subject.draw_whole("T4 instead", length=20)
    x, instead = call.tensors["x"], other.tensors["x"]
    limit = subject.bound(call)
    found = _cut(subject, call, other, limit)
    with torch.no_grad():
        found += _cut(subject, call, other, limit)
        # from the first token on, and behind one that is NaN
        held = call.given(x=torch.where(torch.arange(20)[:, None] < 12, x, float("nan")))
        _, state = subject.advance(held.tokens(0, 16), subject.begin(2))
        for tokens in (12, 1, 0):
            joined = other.given(x=torch.cat((x[:, :tokens], instead[:, tokens:]), 1))
            got, _ = subject.advance(joined.tokens(tokens, 20), state.truncate(tokens))
            at, where = (slice(None), slice(tokens, 20)), f"cut back from 16 to {tokens} tokens"
            near = judge.part(subject.bound(joined, probes=2), at)
            found.append(judge.agree(near, subject(joined)[at], got, where))
    return judge.worst(found)


def _cut(subject: LayerSubject, call: Call, other: Call, limit: judge.Bound) -> list[Measured]:
    _, state = subject.advance(call.tokens(0, 12), subject.begin(2))
    wanted, _ = subject.advance(other.tokens(12, 20), state)
    _, longer = subject.advance(call.tokens(12, 16), state)
    cut = longer.truncate(12)
    if cut.tokens != 12:
        raise BrokenError(f"expected 12 tokens after truncate(12), got {cut.tokens}")
    got, _ = subject.advance(other.tokens(12, 20), cut)
    after, _ = subject.advance(call.tokens(16, 20), longer)
    at, end = (slice(None), slice(12, 20)), (slice(None), slice(16, 20))
    x = torch.cat((call.tensors["x"][:, :12], other.tensors["x"][:, 12:]), 1)
    joined = subject.bound(other.given(x=x), probes=2)
    whole = subject(call)[end]
    return [
        judge.agree(judge.part(joined, at), wanted, got, "cut back from 16 to 12 tokens"),
        judge.agree(judge.part(limit, end), whole, after, "the longer state, after a cut"),
    ]


@layer_check(
    "T4.refuses_truncate",
    "A state that does not promise to be cut back raises StateError when it cannot.",
    applies=lambda promises: promises.state and not promises.truncate,
)
def refuses_truncate(subject: LayerSubject) -> Measured:
    """Cut, and accept the refusal by name; what is cut without one must go on rightly."""
    call = subject.draw_whole("T4 cut", length=20)
    _, state = subject.advance(call.tokens(0, 16), subject.begin(2))
    try:
        cut = state.truncate(2)
    except StateError:
        return judge.exactly(0, "silent cuts")
    got, _ = subject.advance(call.tokens(2, 8), cut)
    limit = judge.part(subject.bound(call), (slice(None), slice(2, 8)))
    found = judge.agree(limit, subject(call)[:, 2:8], got, "cut back without a refusal")
    if not found.value <= found.threshold:
        raise BrokenError("truncate is not promised, was not refused, and goes on wrongly")
    return judge.exactly(0, "silent cuts")
