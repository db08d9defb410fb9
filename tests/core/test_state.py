"""States are values: what was handed out never changes, whatever is done with it later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from attnkit.errors import StateError
from attnkit.state import KVCache, RecurrentState, Stateless, WindowCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

Cache = KVCache | WindowCache

B, HKV, E, EV = 2, 3, 4, 5


def tokens(length: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    key = torch.randn(B, HKV, length, E, generator=draw)
    value = torch.randn(B, HKV, length, EV, generator=draw)
    return key.to(dtype), value.to(dtype)


def empty(dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache.empty(B, HKV, E, EV, dtype=dtype, device="cpu")


def windowed(size: int, needed: int) -> WindowCache:
    key, value = tokens(0)
    return WindowCache(key, value, size=size, needed=needed)


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


GRAD = pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "grad"])


# a cache of all tokens


@GRAD
def test_a_cache_holds_all_that_was_appended_in_order(*, gradients: bool) -> None:
    key, value = tokens(200)
    cache = empty()
    with torch.set_grad_enabled(gradients):
        for at in (slice(0, 7), slice(7, 7), slice(7, 8), slice(8, 150), slice(150, 200)):
            cache = cache.append(key[:, :, at], value[:, :, at])
    assert cache.tokens == 200
    assert cache.batch_size == B
    assert torch.equal(cache.key, key)
    assert torch.equal(cache.value, value)


@GRAD
def test_two_continuations_of_one_cache_do_not_disturb_each_other(*, gradients: bool) -> None:
    start, left, right = tokens(5, 0), tokens(3, 1), tokens(3, 2)
    with torch.set_grad_enabled(gradients):
        shared = empty().append(*start)
        one, other = shared.append(*left), shared.append(*right)
    assert torch.equal(shared.key, start[0])
    assert torch.equal(one.key, torch.cat((start[0], left[0]), 2))
    assert torch.equal(other.key, torch.cat((start[0], right[0]), 2))
    assert torch.equal(other.value, torch.cat((start[1], right[1]), 2))


@GRAD
def test_a_cache_that_was_cut_back_and_continued_leaves_the_uncut_one(*, gradients: bool) -> None:
    first, second = tokens(6, 0), tokens(4, 1)
    with torch.set_grad_enabled(gradients):
        whole = empty().append(*first)
        again = whole.truncate(2).append(*second)
    assert torch.equal(whole.key, first[0])
    assert torch.equal(whole.value, first[1])
    assert torch.equal(again.key, torch.cat((first[0][:, :, :2], second[0]), 2))


@pytest.mark.usefixtures("no_grad")
def test_cutting_back_to_the_last_written_token_keeps_the_later_one() -> None:
    first, second, third = tokens(4, 0), tokens(1, 1), tokens(1, 2)
    short = empty().append(*first)
    longer = short.append(*second)
    assert torch.equal(longer.truncate(4).append(*third).key[:, :, 4:], third[0])
    assert torch.equal(longer.key[:, :, 4:], second[0])


@pytest.mark.usefixtures("no_grad")
def test_appending_without_gradients_copies_the_past_seldom() -> None:
    key, value = tokens(1)
    cache, moves = empty(), 0
    for _ in range(1000):
        before = cache.key.data_ptr()
        cache = cache.append(key, value)
        moves += cache.key.data_ptr() != before
    # room doubles from 64: 64, 130, 262, 526, 1054
    assert moves <= 5


def test_a_cache_takes_no_part_in_what_the_caller_does_to_its_input() -> None:
    key, value = tokens(3)
    with torch.no_grad():
        cache = empty().append(key, value)
    kept = cache.key.clone()
    key.zero_()
    assert torch.equal(cache.key, kept)


def test_gradients_reach_every_chunk_that_was_appended() -> None:
    chunks = [tokens(2, seed) for seed in range(3)]
    cache = empty()
    for key, value in chunks:
        cache = cache.append(key.requires_grad_(), value.requires_grad_())
    (cache.key.sum() + 2 * cache.value.sum()).backward()
    for key, value in chunks:
        torch.testing.assert_close(key.grad, torch.ones_like(key), rtol=0, atol=0)
        torch.testing.assert_close(value.grad, torch.full_like(value, 2.0), rtol=0, atol=0)


def test_a_graph_over_a_cache_outlives_the_next_token() -> None:
    # keys of a frozen model have no gradient of their own, the query has one
    query = torch.ones(B, HKV, 1, E, requires_grad=True)
    cache = empty().append(*tokens(5))
    loss = (query @ cache.key.mT).sum()
    cache.append(*tokens(1, 1))
    with torch.no_grad():
        cache.append(*tokens(1, 2))
    loss.backward()
    assert query.grad is not None
    torch.testing.assert_close(query.grad, cache.key.sum(2, keepdim=True))


def test_a_cache_made_under_inference_mode_continues_outside_of_it() -> None:
    first, second = tokens(3, 0), tokens(2, 1)
    with torch.inference_mode():
        cache = empty().append(*first)
    with torch.no_grad():
        longer = cache.append(*second)
    assert torch.equal(longer.key, torch.cat((first[0], second[0]), 2))
    assert torch.equal(cache.key, first[0])


@pytest.mark.usefixtures("no_grad")
def test_the_unwritten_tail_of_a_cache_is_zero() -> None:
    cache = empty().append(*tokens(3))
    stored = torch.empty(0).set_(cache.key.untyped_storage())
    assert stored.numel() > cache.key.numel()
    assert int(stored.count_nonzero()) == cache.key.numel()


@pytest.mark.usefixtures("no_grad")
def test_bytes_of_a_cache_include_its_room_to_grow() -> None:
    cache = empty().append(*tokens(3))
    stored = cache.key.untyped_storage().nbytes() + cache.value.untyped_storage().nbytes()
    assert cache.nbytes() == stored
    assert empty().nbytes() == 0


@pytest.mark.usefixtures("no_grad")
def test_a_narrower_dtype_is_widened_to_that_of_the_cache() -> None:
    key, value = tokens(3, dtype=torch.bfloat16)
    cache = empty().append(key, value)
    assert cache.key.dtype == torch.float32
    assert torch.equal(cache.key, key.float())


# a cache of a window


@pytest.mark.parametrize("steps", [[1] * 9, [9], [4, 5], [2, 6, 1]])
def test_a_window_cache_gives_every_token_its_window(steps: list[int]) -> None:
    needed = 3
    key, value = tokens(sum(steps))
    cache, at = windowed(needed, needed), 0
    for length in steps:
        new = slice(at, at + length)
        keys, values, cache = cache.append(key[:, :, new], value[:, :, new])
        at += length
        start = max(0, new.start - needed)
        assert torch.equal(keys, key[:, :, start:at])
        assert torch.equal(values, value[:, :, start:at])
    assert cache.tokens == at
    assert torch.equal(cache.key, key[:, :, at - needed :])


def test_a_window_cache_stays_as_small_as_its_window() -> None:
    cache = windowed(4, 4)
    _, _, cache = cache.append(*tokens(100))
    assert cache.nbytes() == B * HKV * 4 * (E + EV) * 4
    assert cache.key.untyped_storage().nbytes() == B * HKV * 4 * E * 4


def test_a_window_of_one_token_remembers_nothing() -> None:
    keys, _, cache = windowed(0, 0).append(*tokens(2))
    assert keys.shape[2] == 2
    assert cache.key.shape[2] == 0
    assert cache.tokens == 2


def test_two_continuations_of_one_window_do_not_disturb_each_other() -> None:
    _, _, shared = windowed(3, 3).append(*tokens(5))
    kept = shared.key.clone()
    one, _, _ = shared.append(*tokens(2, 1))
    other, _, _ = shared.append(*tokens(2, 2))
    assert torch.equal(shared.key, kept)
    assert torch.equal(one[:, :, 3:], tokens(2, 1)[0])
    assert torch.equal(other[:, :, 3:], tokens(2, 2)[0])


def test_a_window_with_spare_tokens_can_be_cut_back_by_as_many() -> None:
    key, value = tokens(10)
    _, _, cache = windowed(5, 3).append(key, value)
    cut = cache.truncate(8)
    assert cut.tokens == 8
    assert torch.equal(cut.key, key[:, :, 5:8])
    with pytest.raises(StateError, match=r"cannot truncate to 7 tokens: 10 seen, .* back to 8"):
        cache.truncate(7)


def test_a_window_cut_twice_remembers_how_far_back_it_goes() -> None:
    _, _, cache = windowed(5, 3).append(*tokens(10))
    with pytest.raises(StateError, match=r"cannot truncate to 7 tokens: 9 seen, .* back to 8"):
        cache.truncate(9).truncate(7)


def test_a_window_that_still_holds_everything_can_be_cut_anywhere() -> None:
    key, value = tokens(3)
    _, _, cache = windowed(5, 5).append(key, value)
    assert torch.equal(cache.truncate(1).key, key[:, :, :1])
    assert cache.truncate(0).tokens == 0


# sums, and nothing at all


def recurrent() -> RecurrentState:
    memory = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    return RecurrentState(memory, tokens=7, inputs=torch.arange(12.0).reshape(2, 3, 2))


def test_sums_cannot_be_unwound_by_a_single_token() -> None:
    state = recurrent()
    assert state.truncate(7) is state
    with pytest.raises(StateError, match=r"cannot truncate to 6 tokens: 7 seen, .* back to 7"):
        state.truncate(6)


def test_bytes_of_a_recurrent_state_count_sums_and_inputs() -> None:
    assert recurrent().nbytes() == 4 * (120 + 12)


def test_a_stateless_layer_counts_tokens_only() -> None:
    state = Stateless(batch_size=3, tokens=9)
    assert state.nbytes() == 0
    assert state.truncate(4) == Stateless(3, 4)
    assert state.reorder(torch.tensor([0, 0])) == Stateless(2, 9)


# every state


def states() -> list[Any]:
    with torch.no_grad():
        return [
            empty().append(*tokens(6)),
            windowed(4, 4).append(*tokens(6))[2],
            recurrent(),
        ]


def tensors(state: Any) -> list[Tensor]:
    found = [getattr(state, name, None) for name in ("key", "value", "memory", "inputs")]
    return [each for each in found if each is not None]


EVERY = pytest.mark.parametrize("state", states(), ids=lambda state: type(state).__name__)


@EVERY
@pytest.mark.parametrize("index", [[1, 0], [1, 1, 0], [0], []], ids=repr)
def test_reordering_picks_samples_and_may_repeat_or_drop_them(state: Any, index: list[int]) -> None:
    picked = state.reorder(torch.tensor(index, dtype=torch.int64))
    assert picked.batch_size == len(index)
    assert picked.tokens == state.tokens
    for new, old in zip(tensors(picked), tensors(state), strict=True):
        assert torch.equal(new, old[index])


@EVERY
def test_a_reordered_state_shares_nothing_with_its_origin(state: Any) -> None:
    kept = [each.clone() for each in tensors(state)]
    for tensor in tensors(state.reorder(torch.tensor([0, 1]))):
        tensor.zero_()
    assert all(map(torch.equal, tensors(state), kept))


@EVERY
@pytest.mark.parametrize("count", [-1, 99])
def test_a_state_cannot_be_cut_to_more_or_fewer_tokens_than_there_are(
    state: Any, count: int
) -> None:
    with pytest.raises(
        StateError, match=rf"cannot truncate to {count} tokens: {state.tokens} seen"
    ):
        state.truncate(count)


# what does not fit is refused, not broadcast and not rounded


def odd(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize("cache", [empty(), windowed(4, 4)], ids=["KVCache", "WindowCache"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (odd(1, 3, 2, 4), odd(1, 3, 2, 5), "state holds 2 samples, the call has 1; start with"),
        (
            odd(2, 1, 2, 4),
            odd(2, 1, 2, 5),
            "state holds a key of 3 heads of width 4, the call has 1 of width 4",
        ),
        (
            odd(2, 3, 2, 4),
            odd(2, 3, 2, 1),
            "state holds a value of 3 heads of width 5, the call has 3 of width 1",
        ),
        (
            odd(2, 3, 2, 4),
            odd(2, 3, 1, 5),
            "key and value must be of equal length, got 2 and 1 tokens",
        ),
        (
            odd(2, 3, 2, 4, dtype=torch.float64),
            odd(2, 3, 2, 5),
            r"state holds a key of torch\.float32, the call has torch\.float64",
        ),
    ],
    ids=["batch", "heads", "width", "length", "dtype"],
)
def test_tokens_that_do_not_fit_are_refused(
    cache: Cache, key: Tensor, value: Tensor, message: str
) -> None:
    with pytest.raises(StateError, match=message):
        cache.append(key, value)
