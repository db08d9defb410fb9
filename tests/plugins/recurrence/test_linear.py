"""Linear attention: the forms of the recurrence agree with each other and with the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.functional import elu

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Sizes
from attnkit_plugins.recurrence.linear import VARIANT, LinearOptions
from attnkit_plugins.recurrence.linear.features import MAPS, elu1

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("reference", "recurrent", "chunked")


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(
    length: int, groups: int = 2, heads: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and a state whose last column, a sum of features, is positive."""
    state = draw(2, heads, 6, 6, seed=4).abs()
    return (
        draw(2, groups, length, 6, seed=1).to(dtype),
        draw(2, groups, length, 6, seed=2).to(dtype),
        draw(2, heads, length, 5, seed=3).to(dtype),
        state.to(torch.promote_types(dtype, torch.float32)),
    )


def assert_close(got: Tensor, expected: Tensor, unit: torch.dtype) -> None:
    # a sum of n products errs by up to n units of its terms' sizes, in practice by about sqrt(n);
    # n is below 1000 here, and mistakes are 1e4 units and more
    limit = 64 * torch.finfo(unit).eps * max(1.0, expected.double().abs().max().item())
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=limit)


def run(
    given: tuple[Tensor, ...], name: str, options: LinearOptions, **arguments: Any
) -> tuple[Tensor, Tensor]:
    query, key, value, state = given
    return attnkit.recurrence(
        query,
        key,
        value,
        variant=VARIANT,
        initial_state=state,
        options=options,
        implementation=name,
        **arguments,
    )


def gradients(given: tuple[Tensor, ...], name: str, options: LinearOptions) -> list[Tensor]:
    leaves = tuple(tensor.clone().requires_grad_() for tensor in given)
    out, state = run(leaves, name, options)
    loss = (out * draw(*out.shape, seed=8)).sum() + (state * draw(*state.shape, seed=9)).sum()
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("feature_map", ["elu1", "relu"])
def test_it_is_attention_with_features_in_place_of_the_exponential(
    name: str, feature_map: str
) -> None:
    query, key, value, _ = inputs(70)
    phi = {"elu1": lambda x: elu(x) + 1, "relu": torch.relu}[feature_map]
    q, k = (phi(x).repeat_interleave(2, 1) for x in (query, key))
    weights = (q @ k.mT).tril()
    expected = (weights @ value) / weights.sum(-1, keepdim=True).clamp(min=1e-6)
    options = LinearOptions.model_validate({"feature_map": feature_map})
    out, _ = attnkit.recurrence(
        query, key, value, variant=VARIANT, options=options, implementation=name
    )
    assert_close(out, expected, torch.float64)


@pytest.mark.parametrize("chunk_size", [1, 3, 16, 64, 100])
@pytest.mark.parametrize("length", [1, 7, 64, 150])
def test_chunks_of_every_size_agree_with_the_reference(length: int, chunk_size: int) -> None:
    given, options = inputs(length), LinearOptions(chunk_size=chunk_size)
    for got, expected in zip(
        run(given, "chunked", options), run(given, "reference", options), strict=True
    ):
        assert_close(got, expected, torch.float64)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", ["recurrent", "chunked"])
def test_gradients_agree_with_those_of_the_reference(name: str, groups: int) -> None:
    given, options = inputs(23, groups), LinearOptions(chunk_size=5)
    for got, expected in zip(
        gradients(given, name, options), gradients(given, "reference", options), strict=True
    ):
        assert_close(got, expected, torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [0, 1, 4, 22, 23])
def test_a_sequence_cut_in_two_is_the_whole(name: str, cut: int) -> None:
    (query, key, value, state), options = inputs(23), LinearOptions(chunk_size=4)
    whole, last = run((query, key, value, state), name, options)
    first, middle = run((*(x[:, :, :cut] for x in (query, key, value)), state), name, options)
    second, end = run((*(x[:, :, cut:] for x in (query, key, value)), middle), name, options)
    assert_close(torch.cat((first, second), 2), whole, torch.float64)
    assert_close(end, last, torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_rounds_the_output_and_nothing_else(name: str, dtype: torch.dtype) -> None:
    given, options = inputs(50, dtype=dtype), LinearOptions(chunk_size=16)
    out, state = run(given, name, options)
    wide = tuple(tensor.double() for tensor in given)
    expected, expected_state = run(wide, "reference", options)
    assert out.dtype == dtype
    assert state.dtype == torch.float32
    assert_close(state, expected_state, torch.float32)
    # half a unit of the output's dtype, and the float32 sums
    limit = torch.finfo(dtype).eps / 2 + 64 * torch.finfo(torch.float32).eps
    assert ((out.double() - expected).abs() <= limit * expected.abs().max()).all()


@pytest.mark.parametrize("name", ["recurrent", "chunked"])
def test_denominators_beyond_the_range_of_float16_are_no_harm(name: str) -> None:
    # 64 features of about 11 each: 64 * 11 * 11 * 10 > 65504
    tall = torch.full((1, 1, 10, 64), 10.0, dtype=torch.float16)
    value = torch.full((1, 1, 10, 3), 0.5, dtype=torch.float16)
    out, _ = attnkit.recurrence(tall, tall, value, variant=VARIANT, implementation=name)
    assert torch.equal(out, value)


def test_elu1_keeps_the_digits_of_small_features() -> None:
    x = torch.tensor([-60.0, -30.0, 0.0, 2.0])
    expected = torch.tensor([-60.0, -30.0, 0.0, 1.0986123]).exp()
    torch.testing.assert_close(elu1(x), expected, rtol=1e-6, atol=0)


def test_elu1_has_the_gradient_of_elu() -> None:
    x = torch.linspace(-3, 3, 14, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(elu(x).sum(), x)
    (got,) = torch.autograd.grad(MAPS["elu1"](x).sum(), x)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_query_without_features_gives_zero_and_finite_gradients(name: str) -> None:
    query, key, value, state = inputs(9)
    given = (-query.abs(), key, value, torch.zeros_like(state))
    options = LinearOptions(feature_map="relu", chunk_size=4)
    out, _ = run(given, name, options)
    assert torch.equal(out, torch.zeros_like(out))
    assert all(grad.isfinite().all() for grad in gradients(given, name, options))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"scale": 0.5}, "scale"),
        ({"log_decay": -torch.ones(2, 4, 5)}, "log_decay"),
        ({"log_decay": -torch.ones(2, 4, 5, 6)}, "log_decay"),
        ({"beta": torch.ones(2, 4, 5)}, "beta"),
        ({"mask": attnkit.sliding_window(2)}, "sliding_window"),
    ],
)
def test_what_it_does_not_promise_is_refused_by_name(arguments: Any, word: str) -> None:
    with pytest.raises(UnsupportedError, match=word):
        run(inputs(5), "auto", LinearOptions(), **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_the_initial_state_are_not_written_to(name: str) -> None:
    given = inputs(9)
    before = [tensor.clone() for tensor in given]
    _, state = run(given, name, LinearOptions(chunk_size=4))
    state.zero_()
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True))


@pytest.mark.parametrize("mask", [attnkit.padding([9, 4]), attnkit.left_padding([0, 5])])
@pytest.mark.parametrize("name", NAMES)
def test_padding_leaves_the_state_as_it_was(name: str, mask: attnkit.Mask) -> None:
    query, key, value, _ = inputs(9)
    keep = mask.to_bool(Sizes(2, 1, 9, 9), query.device)[:, 0, 0]  # (B, L)
    out, state = attnkit.recurrence(
        query, key, value, variant=VARIANT, mask=mask, implementation=name
    )
    for b in range(2):
        alone = (x[b : b + 1, :, keep[b]] for x in (query, key, value))
        expected, expected_state = attnkit.recurrence(*alone, variant=VARIANT, implementation=name)
        assert_close(out[b : b + 1, :, keep[b]], expected, torch.float64)
        assert_close(state[b : b + 1], expected_state, torch.float64)
