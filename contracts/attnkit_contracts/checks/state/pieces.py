"""T: what was computed at once equals what was computed in pieces, with state carried along."""

from __future__ import annotations

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
from attnkit_contracts.inputs import cuts
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject
    from attnkit_contracts.subjects.recurrence import RecurrenceOperation
    from attnkit_contracts.subjects.subject import Subject

PIECES = ((1, 16, 1, 2, 13, 7), (5, 28, 0, 7), (39, 1))
"""Lengths of chunks, 40 tokens in all: single steps, odd ones, an empty one."""


def _goes_stepwise(promises: Promises) -> bool:
    return promises.state or (promises.causal and promises.cross)


@call_check(
    "T2.steps",
    "For every t: the step from the state after t tokens gives F(x)_t.",
    applies=_goes_stepwise,
    verdict="R",
)
def steps(subject: Subject) -> Measured:
    """Compare every step, not only the last."""
    call = subject.draw_whole("T", length=40)
    return judge.agree(subject.bound(call), subject(call), subject.pieces(call, (1,) * 40))


@call_check(
    "T3.chunks",
    "For every partition of the tokens: F chunk by chunk = F.",
    applies=_goes_stepwise,
    verdict="R",
)
def chunks(subject: Subject) -> Measured:
    """Compare some partitions, with chunks of one and of no tokens among them."""
    call = subject.draw_whole("T", length=40)
    limit, whole = subject.bound(call), subject(call)
    return judge.worst(
        judge.agree(limit, whole, subject.pieces(call, lengths), f"chunks {lengths}")
        for lengths in PIECES
    )


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
    "is not written to and shares no memory with the state returned; it moves with its sample.",
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


def _expect_own_memory(given: Tensor, returned: Tensor, what: str) -> None:
    if given.untyped_storage().data_ptr() == returned.untyped_storage().data_ptr():
        raise BrokenError(f"after {what}, the final state shares memory with the initial one")


@layer_check(
    "T4.layer_state",
    "A state is a value: going on from it twice gives the same, and going on changes neither it "
    "nor the states that came of it; it counts its tokens; reorder(index) commutes with going on.",
    applies=lambda promises: promises.state,
    verdict="R",
    required=True,
)
def layer_state(subject: LayerSubject) -> Measured:
    """Go on from one state with two continuations, with each of these, and again with the first."""
    call = subject.draw_whole("T4", batch=3, length=28)
    other = call.given(x=subject.normal("T4 other", *call.tensors["x"].shape))
    _, state = subject.advance(call.tokens(0, 12), subject.begin(3))
    if state.tokens != 12 or state.batch_size != 3:
        raise BrokenError(f"expected 12 of 3 samples, got {state.tokens} of {state.batch_size}")
    one, after = subject.advance(call.tokens(12, 20), state)
    _, strayed = subject.advance(other.tokens(12, 20), state)
    later, _ = subject.advance(call.tokens(20, 28), after)
    elsewhere, _ = subject.advance(call.tokens(20, 28), strayed)
    again, _ = subject.advance(call.tokens(12, 20), state)
    judge.same_bits(one, again, "going on from one state for a second time")
    if state.tokens != 12 or after.tokens != 20:
        raise BrokenError(f"expected 12 and 20 tokens, got {state.tokens} and {after.tokens}")
    limit = judge.part(subject.bound(call), (slice(None), slice(12, 20)))
    x, instead = call.tensors["x"], other.tensors["x"]
    spliced = call.given(x=torch.cat((x[:, :12], instead[:, 12:20], x[:, 20:]), 1))
    found = [
        judge.agree(limit, subject(call)[:, 12:20], one, "whole against pieces"),
        _ending(subject, call, later, "the first continuation of two"),
        _ending(subject, spliced, elsewhere, "the second continuation of two"),
    ]
    if subject.promises.reorder:
        order = torch.tensor([2, 0, 0, 1], device=subject.device)
        out, _ = subject.advance(call.samples(order).tokens(12, 20), state.reorder(order))
        found.append(judge.agree(judge.part(limit, (order,)), one[order], out, "samples reordered"))
    return judge.worst(found)


def _ending(subject: LayerSubject, call: Call, got: Tensor, where: str) -> Measured:
    """Compare the outputs of a call's last tokens."""
    at = (slice(None), slice(-got.shape[1], None))
    return judge.agree(judge.part(subject.bound(call), at), subject(call)[at], got, where)


@layer_check(
    "T4.truncate",
    "A state cut back to t tokens goes on as the state after t tokens did.",
    applies=lambda promises: promises.state and promises.truncate,
    verdict="R",
)
def truncate(subject: LayerSubject) -> Measured:
    """Cut several tokens off, and go on otherwise."""
    call = subject.draw_whole("T4 cut", length=20)
    other = subject.draw_whole("T4 instead", length=20)
    _, state = subject.advance(call.tokens(0, 12), subject.begin(2))
    wanted, _ = subject.advance(other.tokens(12, 20), state)
    _, longer = subject.advance(call.tokens(12, 16), state)
    cut = longer.truncate(12)
    if cut.tokens != 12:
        raise BrokenError(f"expected 12 tokens after truncate(12), got {cut.tokens}")
    got, _ = subject.advance(other.tokens(12, 20), cut)
    joined = other.given(x=torch.cat((call.tensors["x"][:, :12], other.tensors["x"][:, 12:]), 1))
    limit = judge.part(subject.bound(joined), (slice(None), slice(12, 20)))
    return judge.agree(limit, wanted, got, "cut back from 16 to 12 tokens")


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
