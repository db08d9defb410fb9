"""Padded tokens set to 0, wherever the tokens lie."""

from __future__ import annotations

import pytest
import torch

import attnkit
from attnkit.masks.padded_tokens import real_tokens, zero_padding


@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 3, 4), 1), ((2, 4, 3), 2), ((2, 4, 3, 5), 2), ((2, 3), 1)]
)
def test_padding_is_zeroed_along_its_axis_and_gives_no_gradient(
    shape: tuple[int, ...], axis: int
) -> None:
    keep = torch.tensor([[True, True, False], [False, True, True]])
    x = torch.ones(shape)
    x.movedim(axis, 1)[~keep] = float("nan")
    x.requires_grad_()
    found = zero_padding(x, keep, axis=axis)
    (grad,) = torch.autograd.grad((3 * found).square().sum(), x)
    for each in (found, grad / 18):
        by_token = each.movedim(axis, 1)
        assert (by_token[keep] == 1).all()
        assert (by_token[~keep] == 0).all()


def test_tokens_are_real_only_where_every_padding_says_so() -> None:
    mask = attnkit.causal() & attnkit.padding([3, 5]) & attnkit.left_padding([0, 4])
    keep = real_tokens(mask, 2, 2, 3)
    assert keep is not None
    assert keep.tolist() == [[True, False, False], [False, False, True]]


def test_padding_of_one_side_of_a_union_makes_no_token_padding() -> None:
    assert real_tokens(attnkit.causal() | attnkit.padding([2]), 1, 0, 4) is None
