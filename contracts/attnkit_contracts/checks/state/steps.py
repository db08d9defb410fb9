"""T, continued: pieces of a sequence that has a mask, and of layers with options."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import attnkit
from attnkit.errors import ConfigError, UnsupportedError
from attnkit_contracts.catalogue import Measured, layer_check
from attnkit_contracts.inputs.options import mixed_options, single_options
from attnkit_contracts.judging.outputs import agree, must_differ, part, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from attnkit.masks.constructors import Mask
    from attnkit_contracts.subjects.layers import LayerSubject

LENGTH = 32

PIECES = (9, 1, 1, 13, 0, 1, 7)
"""Lengths of chunks, `LENGTH` tokens in all: a prompt, steps, further chunks."""


class Hidden(NamedTuple):
    """What a mask hides of three samples.

    Attributes:
        what: In words.
        real: (B, L), False where it hides a token from all others.
        mask: The mask of the first tokens.
        held: What hidden tokens hold.
    """

    what: str
    real: Tensor
    mask: Callable[[int], Mask]
    held: float = float("nan")


@layer_check(
    "T7.masked_steps",
    "A prompt, then steps and chunks from its state, each under the mask of the tokens so far, "
    "give the real tokens what F gives them under the whole mask, for padding on the left and on "
    "both sides, for documents, for both, and for a dense mask that hides tokens between a prompt "
    "and the next; NaN in padding, 1e4 under a dense mask, changes nothing.",
    applies=lambda promises: (
        promises.state and bool({"documents", "padding", "dense"} & set(promises.masks))
    ),
    verdict="R",
)
def masked_steps(subject: LayerSubject) -> Measured:
    """Hide other tokens of three samples; padding and documents reach over several pieces."""
    call, found = subject.draw_whole("T7", batch=3, length=LENGTH), []
    plain = subject(call)
    for what, real, mask, held in _masks(subject):
        masked = call.masked(call.mask & mask(LENGTH))
        whole, limit = subject(masked), subject.bound(masked, probes=2)
        if not subject.tokenwise:
            must_differ(plain[real], whole[real], what)
        empty = call.given(x=torch.where(real[..., None], call.tensors["x"], held))
        try:
            got = subject.pieces(empty, PIECES, mask)
        except UnsupportedError:
            # a window that has moved on holds no places that a dense mask could speak of
            if "dense" in mask(LENGTH).parts:
                continue
            raise
        found.append(agree(part(limit, (real,)), whole[real], got[real], what))
    return worst(found)


def _masks(subject: LayerSubject) -> Iterator[Hidden]:
    masks = subject.promises.masks
    at = torch.arange(LENGTH, device=subject.device)

    def padded(what: str, ends: Tensor, counts: Tensor, ids: Tensor | None = None) -> Hidden:
        real = (at >= counts[:, None]) & (at < ends[:, None])  # (B, L)
        return Hidden(what, real, partial(_hidden, ends, counts, ids))

    whole = torch.tensor([LENGTH] * 3, device=subject.device)
    ends, counts = (torch.tensor(each, device=subject.device) for each in ((32, 30, 26), (0, 4, 8)))
    later = torch.tensor([0, 5, 12], device=subject.device)  # more than the prompt has, too
    cuts = torch.tensor([[9, 17], [3, 11], [10, 25]], device=subject.device)
    ids = (at[:, None] >= cuts[:, None]).sum(-1)  # (B, L)
    if "padding" in masks:
        yield padded("left padding", whole, later)
        yield padded("padding on both sides", ends, counts)
    if "documents" in masks:
        yield padded("documents", whole, whole * 0, ids)
    if {"documents", "padding"} <= set(masks):
        yield padded("documents behind left padding", whole, counts, ids)
    if "dense" in masks:
        first = torch.tensor([9, 7, 4], device=subject.device)[:, None]
        real = (at < first) | (at >= PIECES[0])
        yield Hidden("tokens behind the prompt", real, partial(_without, real), 1e4)


def _without(real: Tensor, tokens: int) -> Mask:
    return attnkit.dense(real[:, None, None, :tokens])


def _hidden(ends: Tensor, counts: Tensor, ids: Tensor | None, tokens: int) -> Mask:
    """Return the mask of the first tokens."""
    mask = attnkit.full() if ids is None else attnkit.documents(ids[:, :tokens])
    if counts.any():
        mask &= attnkit.left_padding(counts.clamp(max=tokens))
    if (ends < LENGTH).any():
        mask &= attnkit.padding(ends.clamp(max=tokens))
    return mask


@layer_check(
    "T7.padded_prompt",
    "Padding behind a prompt leaves the state of a recurrence as it is, whatever it holds: the "
    "tokens that follow give what they give behind the prompt alone.",
    families=("recurrence",),
    applies=lambda promises: promises.state and "padding" in promises.masks,
    verdict="R",
)
def padded_prompt(subject: LayerSubject) -> Measured:
    """Pad three prompts to the same length with NaN, and go on from the state of all three."""
    call, prompt, found = subject.draw_whole("T7 prompt", batch=3, length=16), 9, []
    x, lengths = call.tensors["x"], torch.tensor([9, 7, 1], device=subject.device)
    padded = torch.arange(16, device=subject.device) < prompt
    padded = padded & (torch.arange(16, device=subject.device) >= lengths[:, None])  # (B, L)
    held = call.given(x=torch.where(padded[..., None], float("nan"), x))
    hidden = attnkit.padding(lengths)
    _, state = subject.advance(held.tokens(0, prompt), subject.begin(3), hidden)
    one, state = subject.advance(held.tokens(prompt, prompt + 1), state)
    more, _ = subject.advance(held.tokens(prompt + 1, 16), state)
    got = torch.cat((one, more), 1)
    for sample, length in enumerate(lengths.tolist()):
        alone = call.given(x=torch.cat((x[[sample], :length], x[[sample], prompt:]), 1))
        at = (slice(None), slice(length, None))
        limit, wanted = part(subject.bound(alone, probes=2), at), subject(alone)[at]
        found.append(agree(limit, wanted, got[[sample]], f"behind a prompt of {length}"))
    return worst(found)


@layer_check(
    "T7.option_steps",
    "F in pieces, with its state, is F for every option of the layer, beside others.",
    applies=lambda promises: promises.state,
    verdict="R",
)
def option_steps(subject: LayerSubject) -> Measured:
    """Build a layer for few sets of options that have every single one; see `mixed_options`."""
    found, refused = [], 0
    for options in mixed_options(subject.config):
        measured = _in_pieces(subject, options)
        refused += measured is None
        found += [] if measured is None else [measured]
    if refused:
        # one that is refused hides those beside it
        alone = (_in_pieces(subject, options) for options in single_options(subject.config))
        found += [measured for measured in alone if measured is not None]
    return worst(found)


def _in_pieces(subject: LayerSubject, options: Mapping[str, Any]) -> Measured | None:
    """Measure the subject with options; None where they or a state with them are refused."""
    try:
        with_it = subject.remade(**options)
        call = with_it.draw_whole("T7 options", length=LENGTH)
        got = with_it.pieces(call, PIECES)
    except (ConfigError, UnsupportedError):
        return None
    where = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return agree(with_it.bound(call, probes=2), with_it(call), got, where)
