"""State space: its convolution, and its layer against that of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from recurrence_cases import STATE_SPACE, STATE_SPACE_LAYER, assert_close, draw
from torch.nn.functional import conv1d
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.operations.recurrence_run import Layout
from attnkit_plugins.recurrence.state_space import VARIANT
from attnkit_plugins.recurrence.state_space.convolution import convolve
from attnkit_plugins.recurrence.state_space.layer import StateSpaceLayer

if TYPE_CHECKING:
    from torch import Tensor


def layer(dtype: torch.dtype = torch.float64, **options: Any) -> StateSpaceLayer:
    built = STATE_SPACE_LAYER.layer(dtype, **options)
    assert isinstance(built, StateSpaceLayer)
    return built


@pytest.mark.parametrize("log_decay", [None, -torch.ones(2, 4, 5, 6)])
def test_a_call_without_one_decay_per_head_is_refused(log_decay: Tensor | None) -> None:
    query, key, value, *_ = STATE_SPACE.inputs(5)
    with pytest.raises(UnsupportedError, match="log_decay"):
        attnkit.recurrence(query, key, value, variant=VARIANT, log_decay=log_decay)


# the convolution


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_the_convolution_is_the_causal_one_of_torch(taps: int) -> None:
    x, weight, bias = draw(2, 7, 3, seed=1), draw(3, taps, seed=2), draw(3, seed=3)
    past = torch.zeros(2, 3, taps - 1, dtype=x.dtype)
    y, _ = convolve(x, past, weight, bias, Layout(None, None))
    expected = conv1d(x.mT, weight[:, None], bias, padding=taps - 1, groups=3)[..., :7].mT
    assert_close(y, expected, torch.float64)


# the layer


def oracle(built: StateSpaceLayer) -> Mamba2Mixer:
    """Return the mixer of transformers with the same weights."""
    config = Mamba2Config(
        hidden_size=12,
        num_heads=4,
        head_dim=6,
        state_size=5,
        n_groups=2,
        expand=2,
        conv_kernel=4,
        chunk_size=8,
        num_hidden_layers=1,
        layer_norm_epsilon=1e-5,
    )
    mixer = Mamba2Mixer(config, 0)
    weights = built.state_dict()
    weights["conv1d.weight"] = weights.pop("conv_weight")[:, None]
    weights["conv1d.bias"] = weights.pop("conv_bias")
    weights["norm.weight"] = weights.pop("norm_weight")
    mixer.load_state_dict(weights)
    return mixer.eval()


@pytest.mark.parametrize("length", [1, 3, 8, 21])
def test_the_layer_is_that_of_transformers(length: int) -> None:
    built, x = layer(torch.float32), draw(2, length, 12, seed=5, dtype=torch.float32)
    assert_close(built(x), oracle(built)(x), torch.float32)


def test_gradients_are_those_of_transformers() -> None:
    built, x = layer(torch.float32), draw(2, 9, 12, seed=5, dtype=torch.float32)
    mixer = oracle(built)
    weight = draw(2, 9, 12, seed=6, dtype=torch.float32)
    (built(x) * weight).sum().backward()
    (mixer(x) * weight).sum().backward()
    for name in ("in_proj.weight", "A_log", "dt_bias", "D", "out_proj.weight"):
        got, expected = built.get_parameter(name).grad, mixer.get_parameter(name).grad
        assert got is not None
        assert expected is not None
        assert_close(got, expected, torch.float32)


def test_left_padding_is_that_of_transformers() -> None:
    built, x = layer(torch.float32), draw(2, 9, 12, seed=5, dtype=torch.float32)
    real = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    y = built(x, mask=attnkit.left_padding([0, 4]))
    expected = oracle(built)(x, attention_mask=real)
    assert_close(y[0], expected[0], torch.float32)
    assert_close(y[1, 4:], expected[1, 4:], torch.float32)


@pytest.mark.parametrize("lengths", [[9, 5], [9, 1], [9, 0]])
def test_right_padding_leaves_the_whole_state_as_it_was(lengths: list[int]) -> None:
    built, x = layer(projection_bias=True), draw(2, 9, 12, seed=5)
    _, before = built(draw(2, 3, 12, seed=6), state=built.init_state(2))
    mask = attnkit.padding([3 + count for count in lengths])
    _, state = built(x, state=before, mask=mask)
    for b, count in enumerate(lengths):
        alone = before.reorder(torch.tensor([b]))
        _, expected = built(x[b : b + 1, :count], state=alone)
        assert_close(state.memory[b], expected.memory[0], torch.float64)
        assert_close(state.inputs[b], expected.inputs[0], torch.float64)


def test_autocast_computes_in_half_precision_and_keeps_a_float32_state() -> None:
    built, x = layer(torch.float32), draw(2, 5, 12, seed=5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = built(x, state=built.init_state(2))
        y_next, _ = built(x, state=state)
    assert y.isfinite().all()
    assert y_next.isfinite().all()
    assert state.memory.dtype == torch.float32


def test_a_new_layer_has_decays_and_steps_in_the_ranges_of_mamba_2() -> None:
    built = layer(torch.float32, num_heads=12)
    a, dt = built.A_log.exp(), torch.nn.functional.softplus(built.dt_bias)
    assert ((a >= 1) & (a <= 16)).all()
    assert ((dt > 0.00099) & (dt < 0.101)).all()
