"""Gated linear attention: the layer agrees with itself however it is cut, padded and packed."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

import attnkit
from attnkit.errors import DtypeError, ShapeError, StateError
from attnkit.state import KVCache
from attnkit_plugins.recurrence.gated_linear import VARIANT, GatedLinearConfig
from attnkit_plugins.recurrence.gated_linear.layer import GatedLinearLayer

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("reference", "recurrent", "chunked")
FORMS = ("head", "channel")


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_close(got: Tensor, expected: Tensor, unit: torch.dtype) -> None:
    # a sum of n products errs by up to n units of its terms' sizes, in practice by about sqrt(n);
    # n is below 1000 here, and mistakes are 1e4 units and more
    limit = 64 * torch.finfo(unit).eps * max(1.0, expected.double().abs().max().item())
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=limit)


def layer(dtype: torch.dtype = torch.float64, **options: Any) -> GatedLinearLayer:
    torch.manual_seed(0)
    given = {"embed_dim": 12, "num_heads": 4, "chunk_size": 4, "gate_temperature": 2.0, **options}
    return GatedLinearLayer(GatedLinearConfig(**given), variant=VARIANT, dtype=dtype)


def steps(
    built: GatedLinearLayer, x: Tensor, cuts: list[int], **arguments: Any
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


@pytest.mark.parametrize("decay", ["channel", "head", "fixed"])
@pytest.mark.parametrize("cuts", [[13], [1] * 13, [5, 1, 0, 4, 3], [12, 1]])
def test_any_split_into_chunks_and_steps_is_the_whole(cuts: list[int], decay: str) -> None:
    built, x = layer(num_groups=2, decay=decay), draw(3, 13, 12, seed=5)
    y, state = steps(built, x, cuts)
    assert_close(y, built(x), torch.float64)
    assert state.tokens == 13


@pytest.mark.parametrize("decay", ["channel", "head", "fixed"])
def test_the_layer_is_its_definition(decay: str) -> None:
    built, x = layer(decay=decay, value_head_dim=5), draw(2, 9, 12, seed=5)
    q, k, v, gate = (
        project(x).unflatten(-1, (4, -1)).transpose(1, 2)
        for project in (built.q_proj, built.k_proj, built.v_proj, built.gate_proj)
    )
    state, outs = torch.zeros(2, 4, 3, 5, dtype=x.dtype), []
    for t in range(9):
        if decay == "fixed":
            alpha = (1 - 2.0 ** (-5 - torch.arange(4.0, dtype=x.dtype)))[:, None]  # (H, 1)
        else:
            assert built.decay_proj is not None
            alpha = built.decay_proj(x[:, t]).sigmoid().sqrt().unflatten(-1, (4, -1))  # (B, H, E)
        state = alpha[..., None] * state + k[:, :, t, :, None] * v[:, :, t, None]
        outs.append(3**-0.5 * torch.einsum("bhe,bhev->bhv", q[:, :, t], state))
    out = torch.stack(outs, 2)
    normed = out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    gated = normed * gate * gate.sigmoid()
    expected = built.out_proj(gated.transpose(1, 2).flatten(2))
    assert_close(built(x), expected, torch.float64)


@pytest.mark.parametrize("decay", ["channel", "head", "fixed"])
def test_every_weight_gets_a_gradient(decay: str) -> None:
    built = layer(decay=decay)
    built(draw(2, 9, 12, seed=5)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in built.parameters())


@pytest.mark.parametrize("decay", ["channel", "head"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_nan_reaches_neither_real_tokens_nor_gradients(side: str, decay: str) -> None:
    built, x = layer(projection_bias=True, decay=decay), draw(1, 6, 12, seed=5)
    nan = torch.full((1, 4, 12), float("nan"), dtype=x.dtype)
    padded = torch.cat((nan, x) if side == "left" else (x, nan), 1)
    mask = attnkit.left_padding([4]) if side == "left" else attnkit.padding([6])
    real = slice(4, 10) if side == "left" else slice(6)
    y = built(padded, mask=mask)
    assert_close(y[:, real], built(x), torch.float64)
    y[:, real].sum().backward()
    grads = [weight.grad for weight in built.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_left_padding_holds_over_chunks_and_steps() -> None:
    built, x = layer(), draw(2, 10, 12, seed=5)
    y, _ = steps(
        built, x, [2, 3, 1, 4], mask=lambda _, seen: attnkit.left_padding([0, min(4, seen)])
    )
    assert_close(y[1:, 4:], built(x[1:, 4:]), torch.float64)
    assert_close(y[:1], built(x[:1]), torch.float64)


@pytest.mark.parametrize("cuts", [[10], [3, 1, 1, 5], [4, 6]])
def test_documents_do_not_see_each_other(cuts: list[int]) -> None:
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


@pytest.mark.parametrize("decay", ["channel", "head"])
def test_no_token_sees_a_later_one(decay: str) -> None:
    built, x = layer(torch.float32, decay=decay), draw(1, 9, 12, seed=5, dtype=torch.float32)
    other = torch.cat((x[:, :5], -x[:, 5:]), 1)
    assert torch.equal(built(x)[:, :5], built(other)[:, :5])


def test_a_state_is_reordered_with_its_samples_and_stays_as_it_was() -> None:
    built, x = layer(), draw(3, 8, 12, seed=5)
    _, state = built(x[:, :5], state=built.init_state(3))
    before = state.memory.clone()
    index = torch.tensor([2, 0, 0])
    y, _ = built(x[index, 5:], state=state.reorder(index))
    assert_close(y, built(x)[index, 5:], torch.float64)
    assert torch.equal(state.memory, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layer_keeps_its_dtype_and_a_float32_state(dtype: torch.dtype) -> None:
    built = layer(dtype)
    y, state = built(draw(2, 5, 12, seed=5).to(dtype), state=built.init_state(2))
    assert y.dtype == dtype
    assert state.memory.dtype == torch.float32


def test_decays_are_computed_in_float32_also_in_half_precision_and_under_autocast() -> None:
    fixed = layer(torch.bfloat16, decay="fixed")
    decays = fixed.log_decay(draw(1, 2, 12, seed=5).bfloat16())
    assert decays.dtype == torch.float32
    exact = torch.log1p(-(2.0 ** -torch.arange(5.0, 9.0)))
    torch.testing.assert_close(decays[0, :, 0], exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(torch.float32)(
            draw(2, 5, 12, seed=5).float(), state=layer(torch.float32).init_state(2)
        )
    assert y.isfinite().all()
    assert state.memory.dtype == torch.float32


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
        ({"num_heads": 5}, "embed_dim must be a multiple of num_heads"),
        ({"num_groups": 3}, "num_heads must be a multiple of num_groups, got 4 and 3"),
        ({"gate_temperature": 0.0}, "greater than 0"),
        ({"decay": "none"}, "channel"),
    ],
)
def test_wrong_configurations_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GatedLinearConfig(**{"embed_dim": 12, "num_heads": 4, **wrong})
