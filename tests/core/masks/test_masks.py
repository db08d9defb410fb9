"""Masks: each against a plain loop over its definition, and the forms it lowers to."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attnkit
from attnkit.masks.constructors import Mask, Sizes
from attnkit.masks.padded_tokens import hide_padding

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CPU = torch.device("cpu")
BATCH, HEADS = 2, 3
LENGTHS = [(5, 5), (3, 7), (1, 6), (6, 6), (7, 3)]  # (L, S)


class Case(NamedTuple):
    """A mask for B = 2, H = 3 and its definition: does query i, at key position p, see key j?"""

    mask: Mask
    sees: Callable[[int, int, int, int], bool]


def full(_: Sizes) -> Case:
    return Case(attnkit.full(), lambda _b, _h, _p, _j: True)


def causal(_: Sizes) -> Case:
    return Case(attnkit.causal(), lambda _b, _h, p, j: j <= p)


def window(_: Sizes) -> Case:
    return Case(attnkit.sliding_window(2), lambda _b, _h, p, j: abs(p - j) < 2)


def padding(sizes: Sizes) -> Case:
    lengths = [sizes.keys - 1, 0]
    return Case(attnkit.padding(lengths), lambda b, _h, _p, j: j < lengths[b])


def left_padding(sizes: Sizes) -> Case:
    counts = [2, sizes.keys]
    return Case(attnkit.left_padding(torch.tensor(counts)), lambda b, _h, _p, j: j >= counts[b])


def documents(sizes: Sizes) -> Case:
    ids = [[j // 2 for j in range(sizes.keys)], [j // 3 for j in range(sizes.keys)]]
    return Case(
        attnkit.documents(torch.tensor(ids)), lambda b, _h, p, j: ids[b][max(p, 0)] == ids[b][j]
    )


def prefix(sizes: Sizes) -> Case:
    lengths = [1, 3]
    return Case(attnkit.prefix_lm(lengths), lambda b, _h, p, j: j < lengths[b] or j <= p)


def dense(sizes: Sizes) -> Case:
    tensor = _bits(BATCH, HEADS, sizes.queries, sizes.keys)
    offset = sizes.keys - sizes.queries
    return Case(attnkit.dense(tensor), lambda b, h, p, j: bool(tensor[b, h, p - offset, j]))


def dense_of_keys(sizes: Sizes) -> Case:
    tensor = _bits(1, sizes.keys)
    return Case(attnkit.dense(tensor), lambda _b, _h, _p, j: bool(tensor[0, j]))


def dense_per_head(sizes: Sizes) -> Case:
    tensor = _bits(HEADS, 1, sizes.keys)
    return Case(attnkit.dense(tensor), lambda _b, h, _p, j: bool(tensor[h, 0, j]))


def blocks(sizes: Sizes) -> Case:
    count = -(-sizes.keys // 2)
    tensor = _bits(HEADS, count, count)
    return Case(attnkit.blocks(tensor, 2), lambda _b, h, p, j: bool(tensor[h, p // 2, j // 2]))


def conjunction(sizes: Sizes) -> Case:
    kept = padding(sizes)
    mask = attnkit.causal() & kept.mask & attnkit.sliding_window(3)
    return Case(mask, lambda b, h, p, j: 0 <= p - j < 3 and kept.sees(b, h, p, j))


def disjunction(sizes: Sizes) -> Case:
    near, far = window(sizes), prefix(sizes)
    mask = (attnkit.causal() & near.mask) | far.mask
    return Case(mask, lambda b, h, p, j: (j <= p and near.sees(b, h, p, j)) or far.sees(b, h, p, j))


MAKERS = [
    full,
    causal,
    window,
    padding,
    left_padding,
    documents,
    prefix,
    dense,
    dense_of_keys,
    dense_per_head,
    blocks,
    conjunction,
    disjunction,
]
NEED_KEYS = (documents, blocks)  # a query without a key of its own belongs to no document
CASES = [
    pytest.param(
        maker, Sizes(BATCH, HEADS, *lengths), id=f"{maker.__name__}-L{lengths[0]}S{lengths[1]}"
    )
    for maker, lengths in product(MAKERS, LENGTHS)
    if maker not in NEED_KEYS or lengths[0] <= lengths[1]
]


def _bits(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7)) < 0.5


def named(given: object) -> str:
    return repr(given) if isinstance(given, Mask) else "message"


def by_loop(case: Case, sizes: Sizes) -> Tensor:
    """Fill (B, H, L, S) entry by entry from the definition."""
    seen = torch.zeros(*sizes, dtype=torch.bool)
    for b, h, i, j in product(*map(range, sizes)):
        seen[b, h, i, j] = case.sees(b, h, i + sizes.keys - sizes.queries, j)
    return seen


@pytest.mark.parametrize(("maker", "sizes"), CASES)
def test_a_mask_is_its_definition_at_every_place(
    maker: Callable[[Sizes], Case], sizes: Sizes
) -> None:
    case = maker(sizes)
    case.mask.check(sizes)
    found = case.mask.to_bool(sizes, CPU).expand(*sizes)
    assert torch.equal(found, by_loop(case, sizes))


@pytest.mark.parametrize(("maker", "sizes"), CASES)
def test_every_tile_is_that_slice_of_the_whole(
    maker: Callable[[Sizes], Case], sizes: Sizes
) -> None:
    mask = maker(sizes).mask
    whole = mask.to_bool(sizes, CPU)
    for start, low in product(range(sizes.queries), range(sizes.keys)):
        rows, columns = (start, sizes.queries), (low, min(low + 2, sizes.keys))
        tile = mask.tile(rows, columns, sizes, CPU)
        assert torch.equal(tile, whole[:, :, slice(*rows), slice(*columns)])


@pytest.mark.parametrize(("maker", "sizes"), CASES)
def test_the_mask_mod_gives_flex_attention_the_same_mask(
    maker: Callable[[Sizes], Case], sizes: Sizes
) -> None:
    from torch.nn.attention.flex_attention import create_mask

    mask = maker(sizes).mask
    made = create_mask(mask.to_mask_mod(sizes), *sizes, device="cpu")
    assert torch.equal(made, mask.to_bool(sizes, CPU).expand(*sizes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("maker", MAKERS)
def test_the_additive_form_is_zero_where_visible_and_minus_infinity_elsewhere(
    maker: Callable[[Sizes], Case], dtype: torch.dtype
) -> None:
    sizes = Sizes(BATCH, HEADS, 3, 7)
    mask = maker(sizes).mask
    additive, seen = mask.to_additive(sizes, CPU, dtype), mask.to_bool(sizes, CPU)
    assert additive.dtype == dtype
    assert bool((additive[seen] == 0).all())
    assert bool((additive[~seen] == float("-inf")).all())


@st.composite
def masks_with_sizes(draw: st.DrawFn) -> tuple[Mask, Sizes]:
    """Draw an expression of up to three masks and sizes it fits, L > S included."""
    sizes = Sizes(BATCH, HEADS, draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    makers = [each for each in MAKERS if each not in NEED_KEYS or sizes.queries <= sizes.keys]
    lengths = st.lists(st.integers(0, sizes.keys), min_size=BATCH, max_size=BATCH)
    one = st.one_of(
        st.sampled_from(makers)
        .filter(lambda maker: maker is not left_padding)
        .map(lambda maker: maker(sizes).mask),
        st.integers(1, 10).map(attnkit.sliding_window),
        lengths.map(attnkit.left_padding),
        lengths.map(attnkit.prefix_lm),
    )
    mask = draw(one)
    for other in draw(st.lists(one, max_size=2)):
        mask = mask & other if draw(st.booleans()) else mask | other
    return mask, sizes


@settings(derandomize=True, max_examples=150, deadline=None)
@given(masks_with_sizes())
def test_the_reach_of_rows_holds_every_key_they_see(drawn: tuple[Mask, Sizes]) -> None:
    mask, sizes = drawn
    seen = mask.to_bool(sizes, CPU)
    for start in range(sizes.queries):
        for stop in range(start + 1, sizes.queries + 1):
            low, high = mask.reach(start, stop, sizes)
            assert 0 <= low <= high <= sizes.keys
            assert not seen[:, :, start:stop, :low].any()
            assert not seen[:, :, start:stop, high:].any()


@settings(derandomize=True, max_examples=150, deadline=None)
@given(masks_with_sizes())
def test_what_a_mask_says_of_itself_is_true(drawn: tuple[Mask, Sizes]) -> None:
    mask, sizes = drawn
    seen = mask.to_bool(sizes, CPU)
    assert seen.shape == (
        sizes.batch if mask.per_batch else 1,
        sizes.heads if mask.per_head else 1,
        sizes.queries,
        sizes.keys,
    )
    places = torch.arange(sizes.queries)[:, None] + sizes.keys - sizes.queries
    distance = places - torch.arange(sizes.keys)
    if mask.is_causal:
        assert not (seen & (distance < 0)).any()
    if mask.window is not None:
        assert not (seen & (distance.abs() >= mask.window)).any()


def test_the_window_bounds_the_reach_on_both_sides() -> None:
    sizes = Sizes(1, 1, 100, 100)
    assert attnkit.sliding_window(8).reach(50, 60, sizes) == (43, 67)
    assert (attnkit.causal() & attnkit.sliding_window(8)).reach(50, 60, sizes) == (43, 60)


def test_causal_with_a_window_leaves_the_window_size_self_included() -> None:
    sizes = Sizes(1, 1, 6, 10)
    seen = (attnkit.causal() & attnkit.sliding_window(3)).to_bool(sizes, CPU)
    assert seen.sum(-1).tolist() == [[[3] * 6]]


# the algebra


def test_and_drops_full_and_repetitions() -> None:
    causal = attnkit.causal()
    assert causal & attnkit.full() is causal
    assert causal & causal is causal
    assert attnkit.full() & attnkit.full() is attnkit.full()


def test_and_keeps_the_smallest_window() -> None:
    mask = attnkit.sliding_window(9) & attnkit.causal() & attnkit.sliding_window(4)
    assert repr(mask) == "attnkit.causal() & attnkit.sliding_window(4)"
    assert mask.window == 4
    assert mask.key == ("and", ("causal",), ("window", 4))


def test_the_order_of_causal_and_window_makes_no_other_structure() -> None:
    one = attnkit.causal() & attnkit.sliding_window(4)
    other = attnkit.sliding_window(4) & attnkit.causal()
    assert one.key == other.key


def test_equal_structures_share_a_key_whatever_their_tensors_hold() -> None:
    assert attnkit.padding([1, 2]).key == attnkit.padding([3, 0, 1]).key
    assert attnkit.padding([1, 2]).key != attnkit.left_padding([1, 2]).key
    assert attnkit.dense(_bits(2, 3, 4, 5)).key != attnkit.dense(_bits(4, 5)).key
    assert hash(attnkit.blocks(_bits(2, 2), 4).key) == hash(attnkit.blocks(~_bits(2, 2), 4).key)


def test_parts_name_the_kinds_and_a_union_is_one() -> None:
    both = attnkit.causal() & attnkit.padding([1]) & attnkit.sliding_window(2)
    assert both.parts == {"padding", "window"}
    either = attnkit.causal() | attnkit.prefix_lm([1])
    assert either.parts == {"prefix", "union"}
    assert not either.is_causal


def test_a_union_is_one_conjunct_and_a_conjunction_several() -> None:
    union = attnkit.causal() | attnkit.padding([1])
    assert union.conjuncts() == (union,)
    kept = attnkit.padding([1])
    assert (attnkit.causal() & kept).conjuncts() == (attnkit.causal(), kept)
    assert attnkit.full().conjuncts() == ()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (attnkit.full(), "attnkit.full()"),
        (attnkit.padding([1]), "attnkit.padding()"),
        (attnkit.left_padding([1]), "attnkit.left_padding()"),
        (attnkit.prefix_lm([1]), "attnkit.prefix_lm()"),
        (attnkit.dense(torch.ones(1, dtype=torch.bool)), "attnkit.dense()"),
        (attnkit.causal() | attnkit.padding([1]), "(attnkit.causal() | attnkit.padding())"),
    ],
    ids=named,
)
def test_a_mask_prints_as_the_call_that_makes_it(mask: Mask, expected: str) -> None:
    assert repr(mask) == expected


# padding that holds NaN


def test_hidden_padding_is_zeroed_and_nothing_else() -> None:
    key, value = torch.ones(2, 1, 4, 2), torch.ones(2, 1, 4, 3)
    key[0, :, 3], value[1, :, :2] = float("nan"), float("inf")
    mask = attnkit.padding([3, 4]) & attnkit.left_padding([0, 2]) & attnkit.causal()
    key, value = hide_padding(mask, key, value)
    real = torch.tensor([[1.0, 1, 1, 0], [0, 0, 1, 1]])
    assert torch.equal(key, real[:, None, :, None].expand(2, 1, 4, 2))
    assert torch.equal(value, real[:, None, :, None].expand(2, 1, 4, 3))


def test_padding_inside_a_union_is_left_alone() -> None:
    key, value = torch.ones(1, 1, 4, 2), torch.ones(1, 1, 4, 2)
    kept = hide_padding(attnkit.causal() | attnkit.padding([2]), key, value)
    assert kept[0] is key
    assert kept[1] is value
