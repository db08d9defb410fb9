"""A recurrence as it runs: what its mask says, piece by piece through one implementation.

`attnkit.operations.recurrence` checks what is given; inside a graph of ``torch.compile`` the
operator of `attnkit.operations.graph_operator` comes in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from attnkit.choice.front import choose
from attnkit.choice.outputs import check_outputs
from attnkit.choice.transforms import transforms
from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Causal, Documents, Mask, Padding, Sizes
from attnkit.masks.padded_tokens import zero_padding
from attnkit.operations import arguments as validation
from attnkit.problem import RecurrenceProblem

if TYPE_CHECKING:
    from attnkit.choice.decision import Chosen
    from attnkit.interface import Options, Variant


class Given(NamedTuple):
    """The tensors of a call of `attnkit.recurrence`, the state included; all are checked."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor | None
    beta: Tensor | None
    initial_state: Tensor


def run(
    variant: Variant,
    given: Given,
    *,
    scale: float | None,
    mask: Mask,
    seen: int,
    options: Options,
    implementation: str,
    fallback: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """Choose an implementation and run it; see `attnkit.recurrence`."""
    value = given.value
    # first of all: a mask that no recurrence takes is refused for what it is
    layout = layout_of(mask, value.shape[0], seen, value.shape[2])
    problem = problem_of_recurrence(given, scale, mask)
    chosen = choose(variant, problem, implementation, fallback)
    call = Run(chosen, 1.0 if scale is None else float(scale), options, layout)
    if torch.is_autocast_enabled(value.device.type):
        with torch.autocast(value.device.type, enabled=False):
            return _ran(call, given)
    return _ran(call, given)


class Layout(NamedTuple):
    """What a mask says about the last L tokens of a recurrence.

    Attributes:
        keep: (B, L), False at padding; None where there is none.
        starts: (B, L), True at the first token of a document that is not the first one ever;
            None where there is one document.
    """

    keep: Tensor | None
    starts: Tensor | None


def layout_of(mask: Mask, batch: int, seen: int, length: int) -> Layout:
    """Read padding and documents out of a mask over ``seen + length`` tokens.

    Raises:
        UnsupportedError: The mask hides anything else; a recurrence cannot.
        MaskError: It does not fit.
    """
    keep = starts = None
    sizes = Sizes(batch, 1, length, seen + length)
    for part in mask.conjuncts():
        part.check(sizes)
        if isinstance(part, Padding):
            real = part.keep(sizes)[:, seen:]
            keep = real if keep is None else keep & real
        elif isinstance(part, Documents):
            following = part.ids[:, 1:] != part.ids[:, :-1]
            first = torch.zeros_like(part.ids[:, :1], dtype=torch.bool)
            begins = torch.cat((first, following), 1)[:, seen:]  # (B, L)
            starts = begins if starts is None else starts | begins
        elif not isinstance(part, Causal):
            raise UnsupportedError(
                f"a recurrence cannot apply the mask {part!r}; it takes padding, left_padding "
                "and documents, and is causal by itself"
            )
    return Layout(keep, starts)


class Run(NamedTuple):
    """How a call runs."""

    chosen: Chosen
    scale: float
    options: Options
    layout: Layout


def _ran(call: Run, given: Given) -> tuple[Tensor, Tensor]:
    query, key, value, log_decay, beta, state = given
    # features may be wider than the inputs
    keep, dtype = call.layout.keep, value.dtype
    # before the features too: what padding holds may be NaN, and so would be its gradient
    query, key, value = (zero_padding(x, keep, axis=2) for x in (query, key, value))
    query, key, value = call.options.features(query, key, value)
    query, key, value = (zero_padding(x, keep, axis=2) for x in (query, key, value))
    log_decay = None if log_decay is None else zero_padding(log_decay, keep, axis=2)
    beta = None if beta is None else zero_padding(beta, keep, axis=2)
    outs = []
    for start, stop, resets in _segments(call.layout.starts, value.shape[2]):
        if resets is not None:
            state = torch.where(resets[:, None, None, None], state.new_zeros(()), state)
        at = slice(start, stop)
        piece = value[:, :, at]
        answer = call.chosen.function(
            query[:, :, at],
            key[:, :, at],
            piece,
            log_decay=None if log_decay is None else log_decay[:, :, at],
            beta=None if beta is None else beta[:, :, at],
            scale=call.scale,
            initial_state=state,
            options=call.options,
        )
        out, state = check_outputs(call.chosen.key, answer, piece, state)
        outs.append(out)
    if not outs:
        # no tokens: nothing to put out, and the state stays
        return call.options.finish(value).to(dtype), state.clone()
    joined = outs[0] if len(outs) == 1 else torch.cat(outs, 2)
    return call.options.finish(joined).to(dtype), state


def _segments(starts: Tensor | None, length: int) -> list[tuple[int, int, Tensor | None]]:
    """Cut where any sample begins a document: [start, stop) and which samples (B,) begin there."""
    if starts is None or not length:
        return [(0, length, None)] if length else []
    at = starts.any(0).nonzero()[:, 0].tolist()
    edges = [*dict.fromkeys([0, *at]), length]
    return [(start, stop, starts[:, start]) for start, stop in itertools.pairwise(edges)]


def problem_of_recurrence(given: Given, scale: float | None, mask: Mask) -> RecurrenceProblem:
    """Return the problem that `recurrence` solves with these arguments."""
    query, key, value, log_decay, beta, _ = given
    tracked = any(each is not None and each.requires_grad for each in given)
    return RecurrenceProblem(
        device=value.device.type,
        dtype=validation.dtype_name(value.dtype),
        batch=value.shape[0] or 1,
        heads=value.shape[1],
        groups=key.shape[1],
        query_length=value.shape[2] or 1,
        head_dim=query.shape[3],
        value_head_dim=value.shape[3],
        mask_parts=mask.parts,
        scale=scale is not None and scale != 1.0,
        decay="none" if log_decay is None else "head" if log_decay.dim() == 3 else "channel",
        beta=beta is not None,
        gradients=torch.is_grad_enabled() and tracked,
        compiling=torch.compiler.is_compiling(),
        transforms=transforms(),
    )
