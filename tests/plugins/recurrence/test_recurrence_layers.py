"""What every layer of a recurrence does: it agrees with itself however it is cut and padded."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from recurrence_cases import (
    GATED_LAYERS,
    LAYERS,
    LINEAR_LAYER,
    STATE_SPACE_LAYER,
    Kind,
    assert_close,
    draw,
    steps,
)

import attnkit
from attnkit.errors import DtypeError, ShapeError, StateError
from attnkit.state import KVCache

every_layer = pytest.mark.parametrize("kind", LAYERS, ids=str)


@pytest.mark.parametrize(
    "kind",
    [
        LINEAR_LAYER.of(num_kv_heads=2),
        *(kind.of(num_groups=2) for kind in GATED_LAYERS),
        *(STATE_SPACE_LAYER.of(conv_size=size) for size in (1, 2, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("cuts", [[13], [1] * 13, [5, 1, 0, 4, 3], [12, 1]])
def test_any_split_into_chunks_and_steps_is_the_whole(cuts: list[int], kind: Kind) -> None:
    built, x = kind.layer(), draw(3, 13, 12, seed=5)
    y, state = steps(built, x, cuts)
    assert_close(y, built(x), torch.float64)
    assert state.tokens == 13


@pytest.mark.parametrize("kind", [*GATED_LAYERS, STATE_SPACE_LAYER], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_every_weight_gets_a_gradient(kind: Kind, bias: bool) -> None:
    built = kind.layer(projection_bias=bias)
    built(draw(2, 9, 12, seed=5)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in built.parameters())


@every_layer
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_nan_reaches_neither_real_tokens_nor_gradients(side: str, kind: Kind) -> None:
    built, x = kind.layer(projection_bias=True), draw(1, 6, 12, seed=5)
    nan = torch.full((1, 4, 12), float("nan"), dtype=x.dtype)
    padded = torch.cat((nan, x) if side == "left" else (x, nan), 1)
    mask = attnkit.left_padding([4]) if side == "left" else attnkit.padding([6])
    real = slice(4, 10) if side == "left" else slice(6)
    y = built(padded, mask=mask)
    assert_close(y[:, real], built(x), torch.float64)
    y[:, real].sum().backward()
    grads = [weight.grad for weight in built.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    "kind", [LINEAR_LAYER, GATED_LAYERS[0], STATE_SPACE_LAYER.of(projection_bias=True)], ids=str
)
@pytest.mark.parametrize("cuts", [[2, 3, 1, 4], [4, 6], [1] * 10, [10]])
def test_left_padding_holds_over_chunks_and_steps(cuts: list[int], kind: Kind) -> None:
    built, x = kind.layer(), draw(2, 10, 12, seed=5)
    y, _ = steps(built, x, cuts, lambda seen: attnkit.left_padding([0, min(4, seen)]))
    assert_close(y[1:, 4:], built(x[1:, 4:]), torch.float64)
    assert_close(y[:1], built(x[:1]), torch.float64)


@every_layer
@pytest.mark.parametrize("cuts", [[10], [3, 1, 1, 5], [4, 6], [5, 5], [1] * 10])
def test_documents_do_not_see_each_other(cuts: list[int], kind: Kind) -> None:
    built, x = kind.layer(), draw(2, 10, 12, seed=5)
    ids = torch.tensor([[0] * 4 + [1] * 6, [5] * 7 + [6] * 2 + [7]])
    y, _ = steps(built, x, cuts, lambda seen: attnkit.documents(ids[:, :seen]))
    for b, edges in ((0, (0, 4, 10)), (1, (0, 7, 9, 10))):
        for start, stop in pairwise(edges):
            alone = built(x[b : b + 1, start:stop])
            assert_close(y[b : b + 1, start:stop], alone, torch.float64)


@every_layer
def test_a_sample_does_not_depend_on_its_neighbours(kind: Kind) -> None:
    built, x = kind.layer(torch.float32), draw(3, 9, 12, seed=5, dtype=torch.float32)
    other = torch.stack((x[0], torch.full_like(x[1], float("nan")), 9 * x[2]))
    assert torch.equal(built(x)[0], built(other)[0])


@every_layer
def test_no_token_sees_a_later_one(kind: Kind) -> None:
    built, x = kind.layer(torch.float32), draw(1, 9, 12, seed=5, dtype=torch.float32)
    other = torch.cat((x[:, :5], -x[:, 5:]), 1)
    assert torch.equal(built(x)[:, :5], built(other)[:, :5])


@every_layer
def test_a_state_is_reordered_with_its_samples_and_stays_as_it_was(kind: Kind) -> None:
    built, x = kind.layer(), draw(3, 8, 12, seed=5)
    _, state = built(x[:, :5], state=built.init_state(3))
    before = (state.memory.clone(), state.inputs.clone())
    index = torch.tensor([2, 0, 0])
    y, _ = built(x[index, 5:], state=state.reorder(index))
    assert_close(y, built(x)[index, 5:], torch.float64)
    assert torch.equal(state.memory, before[0])
    assert torch.equal(state.inputs, before[1])


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layer_keeps_its_dtype_and_a_float32_state(dtype: torch.dtype, kind: Kind) -> None:
    built = kind.layer(dtype)
    y, state = built(draw(2, 5, 12, seed=5).to(dtype), state=built.init_state(2))
    assert y.dtype == dtype
    assert state.memory.dtype == torch.float32
    assert state.inputs.dtype == dtype


@every_layer
def test_wrong_inputs_and_states_are_named(kind: Kind) -> None:
    built, x = kind.layer(), draw(2, 5, 12, seed=5)
    with pytest.raises(ShapeError, match=r"D = 12, got \(2, 5, 11\)"):
        built(x[..., :11])
    with pytest.raises(DtypeError, match="float64, got float32"):
        built(x.float())
    with pytest.raises(StateError, match="3 samples, the call has 2"):
        built(x, state=built.init_state(3))
    with pytest.raises(StateError, match="RecurrentState"):
        built(x, state=KVCache.empty(2, 4, 3, 3, dtype=x.dtype, device="cpu"))


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (LINEAR_LAYER, {"num_heads": 5}, "embed_dim must be a multiple of num_heads"),
        (
            LINEAR_LAYER,
            {"num_kv_heads": 3},
            "num_heads must be a multiple of num_kv_heads, got 4 and 3",
        ),
        (LINEAR_LAYER, {"eps": 0.0}, "greater than 0"),
        (LINEAR_LAYER, {"feature_map": "exp"}, "elu1"),
        (GATED_LAYERS[0], {"num_heads": 5}, "embed_dim must be a multiple of num_heads"),
        (
            GATED_LAYERS[0],
            {"num_groups": 3},
            "num_heads must be a multiple of num_groups, got 4 and 3",
        ),
        (GATED_LAYERS[0], {"gate_temperature": 0.0}, "greater than 0"),
        (GATED_LAYERS[0], {"decay": "none"}, "channel"),
        (
            STATE_SPACE_LAYER.of(num_groups=1),
            {"num_heads": 5},
            r"2 \* embed_dim must be a multiple of num_heads",
        ),
        (
            STATE_SPACE_LAYER,
            {"num_groups": 3},
            "num_heads must be a multiple of num_groups, got 4 and 3",
        ),
        (STATE_SPACE_LAYER, {"conv_size": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_wrong_configurations_are_refused(kind: Kind, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.layer(**wrong)
