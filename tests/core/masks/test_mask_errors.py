"""Masks that are refused: when they are made, and when they meet a call they do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
from attnkit.errors import MaskError
from attnkit.masks.constructors import Mask, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# as a caller without a type checker
UNTYPED: Any = attnkit
ONE = Sizes(2, 3, 4, 6)


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def named(given: object) -> str:
    return repr(given) if isinstance(given, Mask) else "message"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: UNTYPED.sliding_window(0),
            r"window_size must be a positive int \(keys, self included\), got 0",
        ),
        (lambda: UNTYPED.sliding_window(True), "window_size must be .*, got True"),
        (lambda: UNTYPED.sliding_window(2.5), "window_size must be .*, got 2.5"),
        (
            lambda: UNTYPED.padding([1.5]),
            r"padding lengths must be integers \(B,\), got \(1,\) float32",
        ),
        (lambda: UNTYPED.padding("two"), r"padding lengths must be integers \(B,\), got 'two'"),
        (
            lambda: UNTYPED.left_padding(torch.zeros(2, 2, dtype=torch.int64)),
            r"left_padding counts must be integers \(B,\), got \(2, 2\) int64",
        ),
        (
            lambda: UNTYPED.prefix_lm(torch.tensor([True])),
            r"prefix_lm lengths must be integers \(B,\), got \(1,\) bool",
        ),
        (
            lambda: UNTYPED.documents(torch.zeros(2, 3)),
            r"documents ids must be an integer tensor \(B, S\), got \(2, 3\) float32",
        ),
        (
            lambda: UNTYPED.documents([[0, 1]]),
            r"documents ids must be an integer tensor \(B, S\), got \[\[0, 1\]\]",
        ),
        (
            lambda: UNTYPED.dense(torch.zeros(2, 3)),
            r"dense mask must be a bool tensor .*, got \(2, 3\) float32; give .* as bias",
        ),
        (
            lambda: UNTYPED.dense(ones(1, 1, 1, 1, 1)),
            r"at most 4 dimensions, .* got \(1, 1, 1, 1, 1\) bool",
        ),
        (
            lambda: UNTYPED.blocks(ones(3), 2),
            r"block_map must be a bool tensor .* of 2 to 4 dimensions, got \(3,\) bool",
        ),
        (
            lambda: UNTYPED.blocks(ones(3, 3), 0),
            r"block_size must be a positive int \(positions\), got 0",
        ),
        (
            lambda: UNTYPED.causal() & ones(3, 3),
            r"& takes two masks, got \(3, 3\) bool; wrap a bool tensor as attnkit.dense\(tensor\)",
        ),
        (lambda: UNTYPED.causal() | None, r"\| takes two masks, got None"),
    ],
)
def test_what_is_no_mask_is_refused_when_it_is_made(make: Callable[[], Mask], message: str) -> None:
    with pytest.raises(MaskError, match=message):
        make()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (attnkit.padding([1]), r"padding lengths must be \(B,\) = \(2,\), got \(1,\)"),
        (attnkit.padding([3, 7]), r"padding lengths must lie in 0\.\.S = 0\.\.6, got 3\.\.7"),
        (attnkit.left_padding([-1, 2]), r"counts must lie in 0\.\.S = 0\.\.6, got -1\.\.2"),
        (attnkit.prefix_lm([1, 2, 3]), r"prefix_lm lengths must be \(B,\) = \(2,\), got \(3,\)"),
        (
            attnkit.documents(torch.zeros(2, 4, dtype=torch.int64)),
            r"documents ids must be \(B, S\) = \(2, 6\), got \(2, 4\)",
        ),
        (
            attnkit.dense(ones(4, 5)),
            r"dense mask must broadcast to \(B, H, L, S\) = \(2, 3, 4, 6\), got \(1, 1, 4, 5\)",
        ),
        (
            attnkit.blocks(ones(2, 2), 2),
            r"block_map must be \(\.\.\., 3, 3\) for S=6 and block_size=2, got \(1, 1, 2, 2\)",
        ),
        (
            attnkit.blocks(ones(4, 3, 3), 2),
            r"block_map must broadcast over B=2 and H=3, got \(1, 4, 3, 3\)",
        ),
        (attnkit.causal() & attnkit.padding([1]), r"must be \(B,\) = \(2,\), got \(1,\)"),
        (attnkit.padding([1]) | attnkit.causal(), r"must be \(B,\) = \(2,\), got \(1,\)"),
        (attnkit.causal() | attnkit.padding([1]), r"must be \(B,\) = \(2,\), got \(1,\)"),
    ],
    ids=named,
)
def test_a_mask_that_does_not_fit_the_call_is_refused(mask: Mask, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        mask.check(ONE)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            attnkit.documents(torch.zeros(1, 3, dtype=torch.int64)),
            "documents need L <= S, got L=4 and S=3",
        ),
        (attnkit.blocks(ones(2, 2), 2), "blocks need L <= S, got L=4 and S=3"),
    ],
    ids=named,
)
def test_a_query_without_a_key_has_no_document_and_no_block(mask: Mask, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        mask.check(Sizes(1, 1, 4, 3))
