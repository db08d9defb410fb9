"""Masks taken apart for operators that take only text, numbers and tensors."""

from __future__ import annotations

import pytest
import torch

import attnkit
from attnkit.errors import MaskError
from attnkit.masks.codes import decode, encode
from attnkit.masks.constructors import Mask, Sizes

SIZES = Sizes(batch=2, heads=4, queries=5, keys=8)
CAUSAL, WINDOW = attnkit.causal(), attnkit.sliding_window(3)
ENDS, STARTS = attnkit.padding([8, 5]), attnkit.left_padding([0, 2])
DOCUMENTS = attnkit.documents(torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 1, 1]]))
DENSE = attnkit.dense(torch.arange(40).reshape(5, 8) % 3 != 0)
BLOCKS = attnkit.blocks(torch.tensor([[True, False], [True, True]]), 4)
PREFIX = attnkit.prefix_lm([3, 6])

MASKS = {
    "full": (attnkit.full(), "full"),
    "causal": (CAUSAL, "causal"),
    "window": (WINDOW, "window"),
    "padding": (ENDS, "padding"),
    "left padding": (STARTS, "left_padding"),
    "documents": (DOCUMENTS, "documents"),
    "dense": (DENSE, "dense"),
    "blocks": (BLOCKS, "blocks"),
    "prefix": (PREFIX, "prefix"),
    "three of them": (CAUSAL & ENDS & WINDOW, "causal window and padding and"),
    "either": (WINDOW | PREFIX, "window prefix or"),
    "either, nested": (
        ENDS & (DENSE | (DOCUMENTS & BLOCKS)),
        "padding dense documents blocks and or and",
    ),
}


@pytest.mark.parametrize(("mask", "words"), MASKS.values(), ids=MASKS)
def test_a_mask_that_was_taken_apart_is_the_same_mask(mask: Mask, words: str) -> None:
    code = encode(mask)
    again = decode(*code)
    assert code.words == words
    assert again.key == mask.key
    assert (again.parts, again.is_causal, again.window) == (
        mask.parts,
        mask.is_causal,
        mask.window,
    )
    cpu = torch.device("cpu")
    assert torch.equal(again.to_bool(SIZES, cpu), mask.to_bool(SIZES, cpu))


def test_a_mask_that_pads_on_both_sides_keeps_both() -> None:
    both = encode(ENDS & STARTS)
    assert both.words == "padding left_padding and"
    assert [given.tolist() for given in both.tensors] == [[8, 5], [0, 2]]


def test_a_mask_of_another_kind_is_refused_with_what_to_do() -> None:
    class Diagonal(Mask):
        pass

    with pytest.raises(MaskError, match=r"got Diagonal; give it as attnkit\.dense"):
        encode(Diagonal())
