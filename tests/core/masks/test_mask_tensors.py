"""Mask tensors of torch are read once, by their contents, and are not kept alive."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
import torch

from attnkit.errors import MaskError, ShapeError
from attnkit.masks.constructors import Sizes
from attnkit.masks.reader import read_mask

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = Sizes(2, 3, 4, 5)
CPU = torch.device("cpu")


def seen() -> torch.Tensor:
    """Return (2, 1, 1, 5), the first sample padded."""
    tensor = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    tensor[0, ..., 3:] = False
    return tensor


def test_bool_tensor_shows_or_hides() -> None:
    shown = read_mask("mask", seen(), seen(), SIZES).mask
    hidden = read_mask("mask", ~seen(), ~seen(), SIZES, hides=True).mask
    assert set(shown.parts) == set(hidden.parts) == {"padding"}
    assert torch.equal(shown.to_bool(SIZES, CPU), hidden.to_bool(SIZES, CPU))
    assert torch.equal(shown.to_bool(SIZES, CPU)[:, :, :1], seen().expand(2, -1, 1, -1))


@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min])
def test_float_tensor_hides_by_its_lowest_number_and_adds_the_others(lowest: float) -> None:
    terms = torch.randn(2, 1, 1, 5, generator=torch.Generator().manual_seed(0))
    given = terms.masked_fill(~seen(), lowest)
    mask, bias = read_mask("mask", given, given, SIZES)
    assert set(mask.parts) == {"padding"}
    assert bias is not None
    assert torch.equal(bias, terms.masked_fill(~seen(), 0.0))


def test_float_tensor_of_a_mask_alone_leaves_no_bias() -> None:
    given = torch.zeros(2, 1, 1, 5).masked_fill(~seen(), -torch.inf)
    assert read_mask("mask", given, given, SIZES).bias is None


def floats() -> torch.Tensor:
    return torch.ones(2, 1, 1, 5)


def lowest() -> torch.Tensor:
    return torch.ones(2, 1, 1, 5).masked_fill(~seen(), -torch.inf)


@pytest.mark.parametrize("make", [seen, floats, lowest])
def test_tensor_that_was_read_is_let_go(make: Callable[[], torch.Tensor]) -> None:
    given = make()
    reference = weakref.ref(given)
    reading = read_mask("mask", given, given, SIZES)
    assert read_mask("mask", given, given, SIZES) is reading
    del given, reading
    gc.collect()
    assert reference() is None


def test_learned_tensor_is_read_anew_for_every_backward_pass() -> None:
    given = lowest().requires_grad_()
    for _ in range(2):
        bias = read_mask("mask", given, given, SIZES).bias
        assert bias is not None
        (gradient,) = torch.autograd.grad(bias.square().sum(), given)
        assert torch.equal(gradient, 2.0 * seen())


def test_tensor_without_a_version_is_read_anew() -> None:
    with torch.inference_mode():
        given = seen()
        first = read_mask("mask", given, given, SIZES).mask.to_bool(SIZES, CPU)
        given[1, ..., 2:] = False
        second = read_mask("mask", given, given, SIZES).mask.to_bool(SIZES, CPU)
    assert not torch.equal(first, second)


def test_what_is_no_mask_is_refused_by_name() -> None:
    given = torch.ones(2, 1, 1, 5, dtype=torch.int64)
    with pytest.raises(MaskError, match=r"padding must be a bool or a floating.*got torch.int64"):
        read_mask("padding", given, given, SIZES)
    with pytest.raises(ShapeError, match=r"padding \(2, 1, 1, 6\) does not fit .* \(2, 3, 4, 5\)"):
        read_mask("padding", torch.ones(2, 1, 1, 6), torch.ones(2, 1, 1, 6), SIZES)
