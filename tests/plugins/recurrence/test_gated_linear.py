"""Gated linear attention: the forms of the recurrence agree, and with the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Sizes
from attnkit_plugins.recurrence.gated_linear import VARIANT, GatedLinearOptions

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("reference", "recurrent", "chunked")
FORMS = ("head", "channel")


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(
    length: int,
    form: str,
    groups: int = 2,
    *,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    """Query, key, value, log_decay and state."""
    shape = (2, 4, length, 6) if form == "channel" else (2, 4, length)
    return (
        draw(2, groups, length, 6, seed=1).to(dtype),
        draw(2, groups, length, 6, seed=2).to(dtype),
        draw(2, 4, length, 5, seed=3).to(dtype),
        -strength * draw(*shape, seed=4).abs().to(dtype),
        draw(2, 4, 6, 5, seed=5).to(torch.promote_types(dtype, torch.float32)),
    )


def assert_close(got: Tensor, expected: Tensor, unit: torch.dtype) -> None:
    # a sum of n products errs by up to n units of its terms' sizes, in practice by about sqrt(n);
    # n is below 1000 here, and mistakes are 1e4 units and more
    limit = 64 * torch.finfo(unit).eps * max(1.0, expected.double().abs().max().item())
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=limit)


def run(
    given: tuple[Tensor, ...], name: str, chunk_size: int = 64, **arguments: Any
) -> tuple[Tensor, Tensor]:
    query, key, value, log_decay, state = given
    return attnkit.recurrence(
        query,
        key,
        value,
        variant=VARIANT,
        log_decay=log_decay,
        initial_state=state,
        options=GatedLinearOptions(chunk_size=chunk_size),
        implementation=name,
        **arguments,
    )


def gradients(given: tuple[Tensor, ...], name: str, chunk_size: int = 64) -> list[Tensor]:
    leaves = tuple(tensor.clone().requires_grad_() for tensor in given)
    out, state = run(leaves, name, chunk_size, scale=0.5)
    loss = (out * draw(*out.shape, seed=8)).sum() + (state * draw(*state.shape, seed=9)).sum()
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_score_decays_by_every_token_after_its_key(name: str, form: str) -> None:
    query, key, value, log_decay, _ = inputs(40, form)
    per_channel = log_decay if form == "channel" else log_decay[..., None].expand(-1, -1, -1, 6)
    sums = per_channel.cumsum(2)
    between = (sums[:, :, :, None] - sums[:, :, None]).clamp(max=0).exp()  # (B, H, L, L, E)
    q, k = (x.repeat_interleave(2, 1) for x in (query, key))
    scores = torch.einsum("bhie,bhje,bhije->bhij", q, k, between).tril()
    out, _ = attnkit.recurrence(
        query, key, value, variant=VARIANT, log_decay=log_decay, scale=0.5, implementation=name
    )
    assert_close(out, 0.5 * scores @ value, torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_decay_is_retention(name: str, form: str) -> None:
    query, key, value, log_decay, _ = inputs(30, form)
    gamma = 1 - 2.0 ** (-5 - torch.arange(4, dtype=torch.float64))  # (H,)
    fixed = gamma.log().reshape(1, 4, *[1] * (log_decay.dim() - 2)).expand_as(log_decay)
    distance = torch.arange(30)[:, None] - torch.arange(30)
    powers = (gamma[:, None, None] ** distance.clamp(min=0)).tril()  # (H, L, L)
    q, k = (x.repeat_interleave(2, 1) for x in (query, key))
    out, _ = attnkit.recurrence(
        query, key, value, variant=VARIANT, log_decay=fixed, implementation=name
    )
    assert_close(out, (q @ k.mT * powers) @ value, torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", [1, 3, 16, 64, 100])
@pytest.mark.parametrize("length", [1, 7, 64, 150])
def test_chunks_of_every_size_agree_with_the_reference(
    length: int, chunk_size: int, form: str
) -> None:
    given = inputs(length, form)
    for got, expected in zip(
        run(given, "chunked", chunk_size), run(given, "reference"), strict=True
    ):
        assert_close(got, expected, torch.float64)


def test_spans_of_many_chunks_agree_with_the_reference() -> None:
    given = inputs(75, "channel", dtype=torch.float32)
    for got, expected in zip(run(given, "chunked", 4), run(given, "reference"), strict=True):
        assert_close(got, expected, torch.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", ["recurrent", "chunked"])
def test_gradients_agree_with_those_of_the_reference(name: str, groups: int, form: str) -> None:
    given = inputs(23, form, groups)
    for got, expected in zip(gradients(given, name, 5), gradients(given, "reference"), strict=True):
        assert_close(got, expected, torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [0, 1, 4, 22, 23])
def test_a_sequence_cut_in_two_is_the_whole(name: str, cut: int, form: str) -> None:
    *tokens, state = inputs(23, form)
    whole, last = run((*tokens, state), name, 4)
    first, middle = run((*(x[:, :, :cut] for x in tokens), state), name, 4)
    second, end = run((*(x[:, :, cut:] for x in tokens), middle), name, 4)
    assert_close(torch.cat((first, second), 2), whole, torch.float64)
    assert_close(end, last, torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["recurrent", "chunked"])
@pytest.mark.parametrize("strength", [1e-4, 30.0, 1e4])
def test_weak_and_strong_decays_keep_full_precision(name: str, strength: float, form: str) -> None:
    given = inputs(150, form, strength=strength, dtype=torch.float32)
    # one strong decay, then weak ones: what comes after it must not lose digits
    given[3][:, :, 1::2] *= 1e-3
    wide = tuple(tensor.double() for tensor in given)
    for got, expected in zip(run(given, name), run(wide, "reference"), strict=True):
        assert_close(got, expected, torch.float32)
    for got, expected in zip(gradients(given, name), gradients(wide, "reference"), strict=True):
        assert_close(got, expected, torch.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_decay_to_nothing_forgets_the_past(name: str, form: str) -> None:
    query, key, value, log_decay, state = inputs(20, form)
    log_decay[:, :, [0, 11]] = float("-inf")
    given = (query, key, value, log_decay, state)
    out, last = run(given, name, 8)
    after = (*(x[:, :, 11:] for x in given[:4]), torch.zeros_like(state))
    expected, expected_last = run(after, name, 8)
    assert_close(out[:, :, 11:], expected, torch.float64)
    assert_close(last, expected_last, torch.float64)
    assert all(grad.isfinite().all() for grad in gradients(given, name, 8))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_rounds_the_output_and_nothing_else(
    name: str, dtype: torch.dtype, form: str
) -> None:
    given = inputs(50, form, dtype=dtype)
    out, state = run(given, name, 16)
    expected, expected_state = run(tuple(tensor.double() for tensor in given), "reference")
    assert out.dtype == dtype
    assert state.dtype == torch.float32
    assert_close(state, expected_state, torch.float32)
    # half a unit of the output's dtype, and the float32 sums
    limit = torch.finfo(dtype).eps / 2 + 64 * torch.finfo(torch.float32).eps
    assert ((out.double() - expected).abs() <= limit * expected.abs().max()).all()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"beta": torch.ones(2, 4, 5)}, "beta"),
        ({"mask": attnkit.sliding_window(2)}, "sliding_window"),
    ],
)
def test_what_it_does_not_promise_is_refused_by_name(arguments: Any, word: str) -> None:
    with pytest.raises(UnsupportedError, match=word):
        run(inputs(5, "head"), "auto", **arguments)


def test_a_call_without_decay_is_refused() -> None:
    query, key, value, *_ = inputs(5, "head")
    with pytest.raises(UnsupportedError, match="log_decay"):
        attnkit.recurrence(query, key, value, variant=VARIANT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_the_initial_state_are_not_written_to(name: str, form: str) -> None:
    given = inputs(9, form)
    before = [tensor.clone() for tensor in given]
    _, state = run(given, name, 4)
    state.zero_()
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", [attnkit.padding([9, 4]), attnkit.left_padding([0, 5])])
@pytest.mark.parametrize("name", NAMES)
def test_padding_leaves_the_state_as_it_was(name: str, mask: attnkit.Mask, form: str) -> None:
    *tokens, state = inputs(9, form)
    keep = mask.to_bool(Sizes(2, 1, 9, 9), state.device)[:, 0, 0]  # (B, L)
    out, last = run((*tokens, state), name, mask=mask)
    for b in range(2):
        alone = (*(x[b : b + 1, :, keep[b]] for x in tokens), state[b : b + 1])
        expected, expected_last = run(alone, name)
        assert_close(out[b : b + 1, :, keep[b]], expected, torch.float64)
        assert_close(last[b : b + 1], expected_last, torch.float64)
