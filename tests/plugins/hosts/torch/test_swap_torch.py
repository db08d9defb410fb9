"""Variants in torch.nn's own layers, whose fused inference path must not go past them.

Where a test compares numbers itself, all is in float64: rounding is then about 1e-15 per
operation, and 1e-9 lies far above what it can add up to here and far below what a lost mask or a
lost bias does (1e-2 and more).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_models import CLOSE, furthest
from torch import nn
from torch_layers import DOUBLE, attention, encoder, later, normal, padding

import attnkit
from attnkit.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

# torch's own encoder makes nested tensors, and torch warns of it once per process
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def some(seed: int) -> torch.Tensor:
    """Return (8, 9, 9), True at random places of every sample and head, but not whole rows."""
    hidden = torch.rand(8, 9, 9, generator=torch.Generator().manual_seed(seed)) < 0.4
    hidden[:, torch.arange(9), torch.arange(9)] = False
    return hidden


def lowest(mask: torch.Tensor) -> torch.Tensor:
    """Return a bool mask, True for hidden, as terms of the logits."""
    return torch.zeros(mask.shape, dtype=DOUBLE).masked_fill(mask, -torch.inf)


MASKS: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "bool padding": lambda: {"key_padding_mask": padding()},
    "float padding": lambda: {"key_padding_mask": lowest(padding()) + normal(2, 9)},
    "bool causal": lambda: {"attn_mask": later()},
    "causal with its hint": lambda: {"attn_mask": later(), "is_causal": True},
    "float mask": lambda: {"attn_mask": normal(9, 9, seed=4)},
    "float causal and bool padding": lambda: {
        "attn_mask": lowest(later()),
        "key_padding_mask": lowest(padding()),
        "is_causal": True,
    },
    "bool of every head": lambda: {"attn_mask": some(5)},
    "float of every head": lambda: {"attn_mask": normal(8, 9, 9, seed=6)},
    "bool of every head and padding": lambda: {
        "attn_mask": some(7) & ~padding().any(0),
        "key_padding_mask": padding(),
    },
}


@pytest.mark.parametrize("weights", ["none", "averaged", "of every head"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", MASKS)
def test_swapped_attention_computes_what_torch_does(
    masks: str, batch_first: bool, weights: str
) -> None:
    layer = attention(batch_first=batch_first)
    x = normal(2, 9, 32) if batch_first else normal(9, 2, 32)
    options = {
        **MASKS[masks](),
        "need_weights": weights != "none",
        "average_attn_weights": weights != "of every head",
    }
    with torch.no_grad():
        before, weights_before = layer(x, x, x, **options)
        with attnkit.swap(layer, "multi_head"):
            after, weights_after = layer(x, x, x, **options)
    assert furthest(before, after) < CLOSE
    assert (weights_before is None) == (weights_after is None)
    if weights_before is not None:
        assert furthest(weights_before, weights_after) < CLOSE


@pytest.mark.parametrize("options", [{"kdim": 12, "vdim": 20}, {}, {"bias": False}], ids=str)
def test_cross_attention_to_more_keys_than_queries(options: dict[str, Any]) -> None:
    layer = attention(batch_first=True, **options)
    query, key = normal(2, 5, 32), normal(2, 9, options.get("kdim", 32), seed=1)
    value = normal(2, 9, options.get("vdim", 32), seed=2)
    with torch.no_grad():
        before, _ = layer(query, key, value, key_padding_mask=padding())
        with attnkit.swap(layer, "multi_head"):
            after, _ = layer(query, key, value, key_padding_mask=padding())
    assert furthest(before, after) < CLOSE


@pytest.mark.parametrize("keys", [5, 9])
def test_hint_of_a_causal_mask_keeps_its_upper_left_corner(keys: int) -> None:
    layer = attention(batch_first=True)
    query, key = normal(2, 7, 32), normal(2, keys, 32, seed=1)
    mask = torch.ones(7, keys, dtype=torch.bool).triu(1)
    options = {"attn_mask": mask, "is_causal": True, "need_weights": False}
    with torch.no_grad():
        before, _ = layer(query, key, key, **options)
        with attnkit.swap(layer, "multi_head"):
            after, _ = layer(query, key, key, **options)
    assert furthest(before, after) < CLOSE


@pytest.mark.parametrize("batch_first", [True, False])
def test_one_sample_without_a_batch_axis(batch_first: bool) -> None:
    layer = attention(batch_first=batch_first)
    x = normal(9, 32)
    options = {"key_padding_mask": padding()[0], "attn_mask": later()}
    with torch.no_grad():
        before, weights_before = layer(x, x, x, **options)
        with attnkit.swap(layer, "multi_head"):
            after, weights_after = layer(x, x, x, **options)
    assert furthest(before, after) < CLOSE
    assert furthest(weights_before, weights_after) < CLOSE


@pytest.mark.parametrize("variant", ["multi_head", "flash"])
@pytest.mark.parametrize(
    "model",
    [
        lambda **o: nn.MultiheadAttention(32, 4, **o),
        lambda **o: nn.TransformerEncoderLayer(32, 4, 48, **o),
        lambda **o: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, **o), 2),
        lambda **o: nn.TransformerDecoderLayer(32, 4, 48, **o),
        lambda **o: nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 48, **o), 2),
        lambda **o: nn.Transformer(32, 4, 1, 1, 48, **o),
        lambda **o: nn.MultiheadAttention(32, 4, kdim=12, vdim=20, **o),
    ],
    ids=["attention", "encoder layer", "encoder", "decoder layer", "decoder", "both", "cross"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_models_of_torch_pass_verification_on_a_generated_sample(
    model: Callable[..., Any], variant: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    made = model(batch_first=True, dtype=dtype).eval()
    sites = sum(isinstance(each, nn.MultiheadAttention) for each in made.modules())
    receipt = attnkit.swap(made, variant).receipt
    assert [site.calls > 0 for site in receipt.sites] == [True] * sites


@pytest.mark.parametrize("masks", MASKS)
def test_masks_are_verified_sample_by_sample(masks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnkit.swaps.softmax_site._ELEMENTS", 1)
    layer, x = attention(batch_first=True).float(), normal(2, 9, 32).float()
    sample = {"query": x, "key": x, "value": x, "need_weights": False}
    options = {
        name: mask.float() if mask is not True and mask.is_floating_point() else mask
        for name, mask in MASKS[masks]().items()
    }
    attnkit.swap(layer, "flash", sample={**sample, **options})


# the fused path


@pytest.mark.parametrize("masks", [{}, {"src_key_padding_mask": padding()}, {"mask": later()}])
def test_inference_without_gradients_runs_the_variant_in_every_layer(
    spy: Any, masks: dict[str, Any]
) -> None:
    model = encoder()
    with torch.no_grad(), attnkit.swap(model, "spy"):
        spy.calls.clear()
        model(normal(2, 9, 32), **masks)
    assert len(spy.calls) == 2


def test_inference_gives_what_the_fused_path_gives_padding_included() -> None:
    model, x = encoder(), normal(2, 9, 32)
    with torch.no_grad():
        before = model(x, src_key_padding_mask=padding())
        with attnkit.swap(model, "multi_head"):
            after = model(x, src_key_padding_mask=padding())
    assert float(before[0, -3:].abs().max()) == 0.0
    assert furthest(before, after) < CLOSE


def test_dropped_padding_reaches_the_variant_as_a_padding_mask(spy: Any) -> None:
    model = encoder()
    with torch.no_grad(), attnkit.swap(model, "spy"):
        spy.calls.clear()
        model(normal(2, 9, 32), src_key_padding_mask=padding())
    assert [call["mask"].parts for call in spy.calls] == [{"padding"}] * 2


def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the calls of torch's fused layer from now on."""
    fused, taken = torch._transformer_encoder_layer_fwd, []

    def noting(*args: Any) -> Any:
        taken.append(1)
        return fused(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", noting)
    return taken


def test_restored_layers_take_the_fused_path_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = encoder(), normal(2, 9, 32)
    attnkit.swap(model, "multi_head").restore()
    taken = fused_calls(monkeypatch)
    with torch.no_grad():
        model(x)
    assert len(taken) == 2


def test_layers_outside_the_plan_keep_the_fused_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = encoder(), normal(2, 9, 32)
    with torch.no_grad(), attnkit.swap(model, {"layers.1": "multi_head"}):
        taken = fused_calls(monkeypatch)
        model(x)
    assert len(taken) == 1


# masks and options


@pytest.mark.parametrize(
    ("masks", "causal", "parts"),
    [
        ("bool padding", False, {"padding"}),
        ("bool causal", True, set()),
        ("causal with its hint", True, set()),
        ("float causal and bool padding", True, {"padding"}),
        ("bool of every head", False, {"dense"}),
    ],
)
def test_masks_arrive_as_named_parts(spy: Any, masks: str, causal: bool, parts: set[str]) -> None:
    layer, x = attention(batch_first=True), normal(2, 9, 32)
    with attnkit.swap(layer, "spy"):
        spy.calls.clear()
        layer(x, x, x, **MASKS[masks](), need_weights=False)
    assert [(c["mask"].is_causal, set(c["mask"].parts)) for c in spy.calls] == [(causal, parts)]
    assert spy.calls[0]["bias"] is None


def test_one_mask_repeated_for_every_head_is_read_as_one(spy: Any) -> None:
    layer, x = attention(batch_first=True), normal(2, 9, 32)
    with attnkit.swap(layer, "spy"):
        spy.calls.clear()
        layer(x, x, x, attn_mask=later().repeat(8, 1, 1), need_weights=False)
    assert [(c["mask"].is_causal, set(c["mask"].parts)) for c in spy.calls] == [(True, set())]


def test_mask_changed_in_place_between_two_calls_is_read_again() -> None:
    layer, x, hidden = attention(batch_first=True), normal(2, 9, 32), padding()
    with torch.no_grad(), attnkit.swap(layer, "multi_head"):
        first, _ = layer(x, x, x, key_padding_mask=hidden)
        hidden[1, 2:] = True
        second, _ = layer(x, x, x, key_padding_mask=hidden)
    with torch.no_grad():
        own, _ = layer(x, x, x, key_padding_mask=hidden)
    assert furthest(second, own) < CLOSE
    assert furthest(first, second) > 1e-3


def test_dropout_is_on_in_training_and_off_in_eval(spy: Any) -> None:
    layer, x = attention(batch_first=True, dropout=0.25), normal(2, 9, 32)
    with attnkit.swap(layer, "spy"):
        spy.calls.clear()
        layer(x, x, x, need_weights=False)
        layer.train()
        layer(x, x, x, need_weights=False)
    assert [call["dropout_p"] for call in spy.calls] == [0.0, 0.25]


def test_learned_mask_gets_its_gradient_at_every_step() -> None:
    layer, x = attention(batch_first=True), normal(2, 9, 32)
    bias = normal(9, 9, seed=3).requires_grad_()

    def gradient() -> torch.Tensor:
        out, _ = layer(x, x, x, attn_mask=bias, need_weights=False)
        (found,) = torch.autograd.grad(out.square().sum(), bias)
        return found

    before = gradient()
    with attnkit.swap(layer, "multi_head"):
        assert furthest(gradient(), before) < CLOSE * float(before.abs().max())
        assert furthest(gradient(), before) < CLOSE * float(before.abs().max())


def test_gradients_of_all_parameters_are_those_of_torch() -> None:
    model, x = encoder(dropout=0.0), normal(2, 9, 32)
    model.train()

    def gradients() -> list[torch.Tensor]:
        out = model(x, mask=later(), src_key_padding_mask=padding())
        return list(torch.autograd.grad(out.square().mean(), list(model.parameters())))

    before = gradients()
    with attnkit.swap(model, "multi_head"):
        after = gradients()
    largest = max(float(each.abs().max()) for each in before)
    assert max(map(furthest, before, after)) < CLOSE * largest


def test_window_of_a_plan_narrows_self_attention_and_its_weights() -> None:
    layer, x = attention(batch_first=True), normal(2, 9, 32)
    plan = {"variant": "sliding_window", "window_size": 2}
    with torch.no_grad(), attnkit.swap(layer, plan, accept="different"):
        _, weights = layer(x, x, x, attn_mask=later(), need_weights=True)
    places = torch.arange(9)
    distance = places[:, None] - places
    assert bool((weights[:, (distance < 0) | (distance > 1)] == 0).all())
    assert float((weights.sum(-1) - 1).abs().max()) < CLOSE


def test_window_of_a_plan_is_refused_where_positions_of_keys_are_unknown() -> None:
    layer = attention(batch_first=True)
    plan = {"variant": "sliding_window", "window_size": 2}
    sample = {"query": normal(2, 5, 32), "key": normal(2, 9, 32), "value": normal(2, 9, 32)}
    with pytest.raises(UnsupportedError, match="window_size: needs to know where the queries"):
        attnkit.swap(layer, plan, sample=sample, accept="different")
