"""A lifted mask equals the tensor it came from, and names its parts where they can be proven."""

from __future__ import annotations

import itertools

import pytest
import torch

import attnkit
from attnkit.masks.constructors import Mask, Sizes
from attnkit.masks.recognition import lift

SIZES = [
    Sizes(2, 4, 9, 9),
    Sizes(2, 4, 3, 9),
    Sizes(2, 4, 1, 9),
    Sizes(2, 4, 9, 5),
    Sizes(2, 4, 1, 1),
    Sizes(1, 1, 9, 9),
]

BASES = {"full": attnkit.full(), "causal": attnkit.causal()}
WINDOWS = {"": attnkit.full(), "window": attnkit.sliding_window(3)}
PADDINGS = {
    "": lambda _: attnkit.full(),
    "left": lambda sizes: attnkit.left_padding([1, 0][: sizes.batch]),
    "right": lambda sizes: attnkit.padding([sizes.keys, 0][: sizes.batch]),
    "both": lambda sizes: (
        attnkit.left_padding([sizes.keys // 2, 0][: sizes.batch])
        & attnkit.padding([sizes.keys, 1][: sizes.batch])
    ),
}
COMPOSED = list(itertools.product(BASES, WINDOWS, PADDINGS))


def drawn(mask: Mask, sizes: Sizes) -> torch.Tensor:
    whole = mask.to_bool(sizes, torch.device("cpu"))
    return whole.expand(sizes.batch, 1, sizes.queries, sizes.keys)


@pytest.mark.parametrize(("base", "window", "pad"), COMPOSED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("hint", [None, 3, 4])
def test_lifted_mask_equals_its_tensor(
    base: str, window: str, pad: str, sizes: Sizes, hint: int | None
) -> None:
    seen = drawn(BASES[base] & WINDOWS[window] & PADDINGS[pad](sizes), sizes)
    assert torch.equal(drawn(lift(seen, sizes, hint), sizes), seen)


@pytest.mark.parametrize(("base", "window", "pad"), COMPOSED)
def test_composed_masks_are_taken_apart(base: str, window: str, pad: str) -> None:
    sizes = SIZES[0]
    lifted = lift(drawn(BASES[base] & WINDOWS[window] & PADDINGS[pad](sizes), sizes), sizes)
    expected = {name for name, given in (("window", window), ("padding", pad)) if given}
    assert (lifted.is_causal, set(lifted.parts)) == (base == "causal", expected)


def test_known_window_is_named_where_it_hides_nothing() -> None:
    sizes = Sizes(1, 1, 3, 4)
    lifted = lift(drawn(attnkit.causal(), sizes), sizes, window=4)
    assert (lifted.is_causal, lifted.window) == (True, 4)


def test_known_window_that_the_tensor_does_not_have_is_not_believed() -> None:
    sizes = Sizes(1, 1, 9, 9)
    assert lift(drawn(attnkit.causal(), sizes), sizes, window=4).window is None


@pytest.mark.parametrize("base", BASES)
def test_packed_documents_are_found(base: str) -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]])
    sizes = Sizes(1, 4, 9, 9)
    lifted = lift(drawn(BASES[base] & attnkit.documents(ids), sizes), sizes)
    assert (lifted.is_causal, set(lifted.parts)) == (base == "causal", {"documents"})


@pytest.mark.parametrize("seed", range(20))
def test_mask_without_structure_stays_what_it_is(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = SIZES[seed % len(SIZES)]
    seen = torch.rand(sizes.batch, 1, *sizes[2:], generator=generator) < 0.6
    assert torch.equal(drawn(lift(seen, sizes), sizes), seen)


def test_mask_that_differs_by_head_stays_dense() -> None:
    sizes = Sizes(1, 2, 3, 3)
    assert lift(torch.ones(1, 2, 3, 3, dtype=torch.bool), sizes).parts == {"dense"}


@pytest.mark.parametrize(("base", "window", "pad"), COMPOSED)
@pytest.mark.parametrize("sizes", SIZES[:3], ids=str)
def test_mask_that_remembers_has_the_forms_of_the_mask_itself(
    base: str, window: str, pad: str, sizes: Sizes
) -> None:
    seen = drawn(BASES[base] & WINDOWS[window] & PADDINGS[pad](sizes), sizes)
    mask, device = lift(seen, sizes), torch.device("cpu")
    known = mask.remembering((sizes, seen))
    for _ in range(2):
        assert torch.equal(drawn(known, sizes), seen)
        for dtype in (torch.float64, torch.float16):
            terms = known.to_additive(sizes, device, dtype)
            hidden = torch.zeros(terms.shape, dtype=dtype).masked_fill(~seen[:, :1], -torch.inf)
            assert torch.equal(*torch.broadcast_tensors(terms, hidden))
