"""Masks that remember: equal to those that do not, and evaluated once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import attnkit
from attnkit.masks.constructors import Mask, Sizes

if TYPE_CHECKING:
    from torch import Tensor

CPU = torch.device("cpu")
SIZES = (
    Sizes(2, 3, 7, 7),
    Sizes(2, 3, 1, 7),
    Sizes(2, 3, 4, 9),
    Sizes(2, 1, 7, 7),
    Sizes(2, 3, 7, 9),
)
PER_HEAD = attnkit.blocks(torch.tensor([[[True]], [[False]], [[True]]])[None], 16)


@pytest.mark.parametrize(
    "mask",
    [
        attnkit.causal(),
        attnkit.causal() & attnkit.sliding_window(3),
        attnkit.causal() & attnkit.left_padding([2, 0]),
        attnkit.padding([5, 7]) | attnkit.causal(),
    ],
    ids=repr,
)
def test_remembering_mask_equals_the_mask_for_whatever_sizes(mask: Mask) -> None:
    memory = mask.remembering()
    for sizes in (*SIZES, *SIZES):
        assert torch.equal(memory.to_bool(sizes, CPU), mask.to_bool(sizes, CPU))
    assert (memory.key, memory.parts, memory.is_causal) == (mask.key, mask.parts, mask.is_causal)


def test_mask_by_heads_is_remembered_by_heads() -> None:
    memory = PER_HEAD.remembering()
    for heads in (3, 3):
        sizes = Sizes(1, heads, 4, 4)
        assert torch.equal(memory.to_bool(sizes, CPU), PER_HEAD.to_bool(sizes, CPU))


class Counted(Mask):
    """A causal mask that counts how often it is evaluated."""

    key = ("counted",)
    is_causal = True
    times = 0

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        Counted.times += 1
        return j <= i + (sizes.keys - sizes.queries)


def test_mask_is_evaluated_once_for_sizes_that_it_meets_again() -> None:
    memory = Counted().remembering()
    before = Counted.times
    for _ in range(3):
        memory.to_bool(SIZES[0], CPU)
    # the number of query heads does not matter where heads do not differ
    memory.to_bool(SIZES[3], CPU)
    assert Counted.times == before + 1


def test_mask_itself_does_not_begin_to_remember() -> None:
    mask = attnkit.causal() & attnkit.sliding_window(3)
    mask.remembering().to_bool(SIZES[0], CPU)
    assert mask.memory is None


def test_mask_that_hides_nothing_has_nothing_to_remember() -> None:
    assert attnkit.full().remembering() is attnkit.full()
