"""State space: the layer agrees with itself and with that of transformers."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import conv1d
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

import attnkit
from attnkit.errors import DtypeError, ShapeError, StateError
from attnkit.operations.recurrence_run import Layout
from attnkit.state import KVCache
from attnkit_plugins.recurrence.state_space import VARIANT, StateSpaceConfig
from attnkit_plugins.recurrence.state_space.convolution import convolve
from attnkit_plugins.recurrence.state_space.layer import StateSpaceLayer

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("reference", "recurrent", "chunked")


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_close(got: Tensor, expected: Tensor, unit: torch.dtype) -> None:
    # a sum of n products errs by up to n units of its terms' sizes, in practice by about sqrt(n);
    # n is below 1000 here, and mistakes are 1e4 units and more
    limit = 64 * torch.finfo(unit).eps * max(1.0, expected.double().abs().max().item())
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=limit)


def layer(dtype: torch.dtype = torch.float64, **options: Any) -> StateSpaceLayer:
    torch.manual_seed(0)
    given = {"embed_dim": 12, "num_heads": 4, "state_size": 5, "num_groups": 2, "chunk_size": 4}
    config = StateSpaceConfig.model_validate({**given, **options})
    return StateSpaceLayer(config, variant=VARIANT, dtype=dtype)


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


def steps(
    built: StateSpaceLayer, x: Tensor, cuts: list[int], **arguments: Any
) -> tuple[Tensor, Any]:
    """Run the layer over consecutive pieces of these lengths."""
    state, ys, first = built.init_state(x.shape[0]), [], 0
    for count in cuts:
        masks = {
            name: make(x.shape[0], first + count) for name, make in arguments.items()
        }  # of all tokens so far
        y, state = built(x[:, first : first + count], state=state, **masks)
        ys.append(y)
        first += count
    return torch.cat(ys, 1), state


@pytest.mark.parametrize("conv_size", [1, 2, 4])
@pytest.mark.parametrize("cuts", [[13], [1] * 13, [5, 1, 0, 4, 3], [12, 1]])
def test_any_split_into_chunks_and_steps_is_the_whole(cuts: list[int], conv_size: int) -> None:
    built, x = layer(conv_size=conv_size), draw(3, 13, 12, seed=5)
    y, state = steps(built, x, cuts)
    assert_close(y, built(x), torch.float64)
    assert state.tokens == 13


def test_every_weight_gets_a_gradient() -> None:
    built = layer(projection_bias=True)
    built(draw(2, 9, 12, seed=5)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in built.parameters())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_nan_reaches_neither_real_tokens_nor_gradients(side: str) -> None:
    built, x = layer(projection_bias=True), draw(1, 6, 12, seed=5)
    nan = torch.full((1, 4, 12), float("nan"), dtype=x.dtype)
    padded = torch.cat((nan, x) if side == "left" else (x, nan), 1)
    mask = attnkit.left_padding([4]) if side == "left" else attnkit.padding([6])
    real = slice(4, 10) if side == "left" else slice(6)
    y = built(padded, mask=mask)
    assert_close(y[:, real], built(x), torch.float64)
    y[:, real].sum().backward()
    grads = [weight.grad for weight in built.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


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


@pytest.mark.parametrize("cuts", [[2, 3, 1, 4], [4, 6], [1] * 10, [10]])
def test_left_padding_holds_over_chunks_and_steps(cuts: list[int]) -> None:
    built, x = layer(projection_bias=True), draw(2, 10, 12, seed=5)
    y, _ = steps(built, x, cuts, mask=lambda _, seen: attnkit.left_padding([0, min(4, seen)]))
    assert_close(y[1:, 4:], built(x[1:, 4:]), torch.float64)
    assert_close(y[:1], built(x[:1]), torch.float64)


@pytest.mark.parametrize("cuts", [[10], [3, 1, 1, 5], [4, 6], [5, 5], [1] * 10])
def test_documents_see_each_other_neither_in_the_state_nor_in_the_convolution(
    cuts: list[int],
) -> None:
    built, x = layer(), draw(2, 10, 12, seed=5)
    ids = torch.tensor([[0] * 4 + [1] * 6, [5] * 7 + [6] * 2 + [7]])
    y, _ = steps(built, x, cuts, mask=lambda _, seen: attnkit.documents(ids[:, :seen]))
    for b, edges in ((0, (0, 4, 10)), (1, (0, 7, 9, 10))):
        for start, stop in pairwise(edges):
            alone = built(x[b : b + 1, start:stop])
            assert_close(y[b : b + 1, start:stop], alone, torch.float64)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    built, x = layer(torch.float32), draw(3, 9, 12, seed=5, dtype=torch.float32)
    other = torch.stack((x[0], torch.full_like(x[1], float("nan")), 9 * x[2]))
    assert torch.equal(built(x)[0], built(other)[0])


def test_no_token_sees_a_later_one() -> None:
    built, x = layer(torch.float32), draw(1, 9, 12, seed=5, dtype=torch.float32)
    other = torch.cat((x[:, :5], -x[:, 5:]), 1)
    assert torch.equal(built(x)[:, :5], built(other)[:, :5])


def test_a_state_is_reordered_with_its_samples_and_stays_as_it_was() -> None:
    built, x = layer(), draw(3, 8, 12, seed=5)
    _, state = built(x[:, :5], state=built.init_state(3))
    before = (state.memory.clone(), state.inputs.clone())
    index = torch.tensor([2, 0, 0])
    y, _ = built(x[index, 5:], state=state.reorder(index))
    assert_close(y, built(x)[index, 5:], torch.float64)
    assert torch.equal(state.memory, before[0])
    assert torch.equal(state.inputs, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layer_keeps_its_dtype_and_a_float32_state(dtype: torch.dtype) -> None:
    built = layer(dtype)
    y, state = built(draw(2, 5, 12, seed=5).to(dtype), state=built.init_state(2))
    assert y.dtype == dtype
    assert state.memory.dtype == torch.float32
    assert state.inputs.dtype == dtype


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


def test_wrong_inputs_and_states_are_named() -> None:
    built, x = layer(), draw(2, 5, 12, seed=5)
    with pytest.raises(ShapeError, match=r"D = 12, got \(2, 5, 11\)"):
        built(x[..., :11])
    with pytest.raises(DtypeError, match="float64, got float32"):
        built(x.float())
    with pytest.raises(StateError, match="3 samples, the call has 2"):
        built(x, state=built.init_state(3))
    with pytest.raises(StateError, match="RecurrentState"):
        built(x, state=KVCache.empty(2, 4, 3, 3, dtype=x.dtype, device="cpu"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": 5}, "2 \\* embed_dim must be a multiple of num_heads"),
        ({"num_groups": 3}, "num_heads must be a multiple of num_groups, got 4 and 3"),
        ({"conv_size": 0}, "greater than 0"),
    ],
)
def test_wrong_configurations_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StateSpaceConfig.model_validate({"embed_dim": 12, "num_heads": 4, **wrong})
