"""T, continued: pieces of a sequence that has a mask, and of layers with options."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.errors import ConfigError, UnsupportedError
from attnkit_contracts.catalogue import Measured, layer_check
from attnkit_contracts.judging.outputs import agree, must_differ, part, worst
from attnkit_contracts.subjects.layers import further_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from attnkit.masks.constructors import Mask
    from attnkit_contracts.subjects.layers import LayerSubject

LENGTH = 32

PIECES = (9, 1, 1, 13, 0, 1, 7)
"""Lengths of chunks, `LENGTH` tokens in all: a prompt, steps, further chunks."""


@layer_check(
    "T7.masked_steps",
    "A prompt, then steps and chunks from its state, each under the mask of the tokens so far, "
    "give the real tokens what F gives them under the whole mask, for padding on the left and on "
    "both sides, for documents, and for both; NaN in padding changes nothing.",
    applies=lambda promises: (
        promises.state and bool({"documents", "padding"} & set(promises.masks))
    ),
    verdict="R",
)
def masked_steps(subject: LayerSubject) -> Measured:
    """Pad and cut three samples differently; padding and documents reach over several pieces."""
    call, found = subject.draw_whole("T7", batch=3, length=LENGTH), []
    plain = subject(call)
    for what, ends, counts, ids in _masks(subject):
        at = torch.arange(LENGTH, device=subject.device)
        real = (at >= counts[:, None]) & (at < ends[:, None])  # (B, L)
        masked = call.masked(call.mask & _hidden(ends, counts, ids, LENGTH))
        whole, limit = subject(masked), subject.bound(masked, probes=4)
        if not subject.tokenwise:
            must_differ(plain[real], whole[real], what)
        empty = call.given(x=torch.where(real[..., None], call.tensors["x"], float("nan")))
        got = subject.pieces(empty, PIECES, partial(_hidden, ends, counts, ids))
        found.append(agree(part(limit, (real,)), whole[real], got[real], what))
    return worst(found)


def _masks(subject: LayerSubject) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    """Yield what, where each sample ends and begins, (B,) twice, and its documents, (B, S)."""
    masks = subject.promises.masks
    whole = torch.tensor([LENGTH] * 3, device=subject.device)
    ends, counts = (torch.tensor(each, device=subject.device) for each in ((32, 30, 26), (0, 4, 8)))
    later = torch.tensor([0, 5, 12], device=subject.device)  # more than the prompt has, too
    cuts = torch.tensor([[9, 17], [3, 11], [10, 25]], device=subject.device)
    ids = (torch.arange(LENGTH, device=subject.device)[:, None] >= cuts[:, None]).sum(-1)
    if "padding" in masks:
        yield "left padding", whole, later, None
        yield "padding on both sides", ends, counts, None
    if "documents" in masks:
        yield "documents", whole, whole * 0, ids
    if {"documents", "padding"} <= set(masks):
        yield "documents behind left padding", whole, counts, ids


def _hidden(ends: Tensor, counts: Tensor, ids: Tensor | None, tokens: int) -> Mask:
    """Return the mask of the first tokens."""
    mask = attnkit.full() if ids is None else attnkit.documents(ids[:, :tokens])
    if counts.any():
        mask &= attnkit.left_padding(counts.clamp(max=tokens))
    if (ends < LENGTH).any():
        mask &= attnkit.padding(ends.clamp(max=tokens))
    return mask


@layer_check(
    "T7.option_steps",
    "F in pieces, with its state, is F for every option of the layer, alone and all together.",
    applies=lambda promises: promises.state,
    verdict="R",
)
def option_steps(subject: LayerSubject) -> Measured:
    """Build a layer for each switch, choice and known field of its configuration."""
    found, taken = [], dict[str, Any]()
    for options in [{}, *further_options(subject.config)]:
        measured = _in_pieces(subject, options)
        if measured is not None:
            found.append(measured)
            taken |= options
    together = _in_pieces(subject, taken)
    return worst([*found, together] if together is not None else found)


def _in_pieces(subject: LayerSubject, options: Mapping[str, Any]) -> Measured | None:
    """Measure the subject with options; None where they or a state with them are refused."""
    try:
        with_it = subject.remade(**options)
        call = with_it.draw_whole("T7 options", length=LENGTH)
        got = with_it.pieces(call, PIECES)
    except (ConfigError, UnsupportedError):
        return None
    where = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return agree(with_it.bound(call, probes=4), with_it(call), got, where)
