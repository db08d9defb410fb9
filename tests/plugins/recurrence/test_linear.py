"""Linear attention: its definition, its features, its heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recurrence_cases import LINEAR, LINEAR_LAYER, NAMES, assert_close, draw
from torch.nn.functional import elu

import attnkit
from attnkit.errors import UnsupportedError
from attnkit_plugins.recurrence.linear import VARIANT, LinearOptions
from attnkit_plugins.recurrence.linear.features import MAPS, elu1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("feature_map", ["elu1", "relu"])
def test_it_is_attention_with_features_in_place_of_the_exponential(
    name: str, feature_map: str
) -> None:
    query, key, value, _ = LINEAR.inputs(70)
    phi = {"elu1": lambda x: elu(x) + 1, "relu": torch.relu}[feature_map]
    q, k = (phi(x).repeat_interleave(2, 1) for x in (query, key))
    weights = (q @ k.mT).tril()
    expected = (weights @ value) / weights.sum(-1, keepdim=True).clamp(min=1e-6)
    options = LinearOptions.model_validate({"feature_map": feature_map})
    out, _ = attnkit.recurrence(
        query, key, value, variant=VARIANT, options=options, implementation=name
    )
    assert_close(out, expected, torch.float64)


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
    query, key, value, state = LINEAR.inputs(9)
    given = (-query.abs(), key, value, torch.zeros_like(state))
    options = LinearOptions(feature_map="relu", chunk_size=4)
    out, _ = LINEAR.run(given, name, options=options)
    assert torch.equal(out, torch.zeros_like(out))
    assert all(grad.isfinite().all() for grad in LINEAR.gradients(given, name, options=options))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"scale": 0.5}, "scale"),
        ({"log_decay": -torch.ones(2, 4, 5)}, "log_decay"),
        ({"log_decay": -torch.ones(2, 4, 5, 6)}, "log_decay"),
    ],
)
def test_a_scale_and_decays_are_refused_by_name(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedError, match=word):
        LINEAR.run(LINEAR.inputs(5), "auto", **arguments)


def test_key_value_heads_are_shared_as_in_grouped_query_attention() -> None:
    shared, x = LINEAR_LAYER.layer(num_kv_heads=2), draw(2, 9, 12, seed=5)
    full = LINEAR_LAYER.layer()
    weights = dict(shared.state_dict())
    for name in ("k_proj.weight", "v_proj.weight"):
        weights[name] = weights[name].unflatten(0, (2, -1)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(weights)
    assert_close(full(x), shared(x), torch.float64)


def test_autocast_computes_in_half_precision_and_keeps_a_float32_state() -> None:
    built, x = LINEAR_LAYER.layer(torch.float32), draw(2, 5, 12, seed=5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = built(x, state=built.init_state(2))
    assert state.memory.dtype == torch.float32
    # the rounding of four projections, each a unit of bfloat16
    limit = 8 * torch.finfo(torch.bfloat16).eps * built(x).abs().max().item()
    torch.testing.assert_close(y.float(), built(x), rtol=0, atol=limit)
