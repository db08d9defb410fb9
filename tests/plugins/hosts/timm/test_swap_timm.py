"""Variants in timm's models: window attention, relative positions, and layers that cannot.

Where a test compares numbers itself, all is in float64, as in `test_swap_torch.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from timm_alone import timm
from tiny_models import furthest, lively

import attnkit
from attnkit.errors import SwapError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tiny_models import Exact

CLOSE = 1e-9


def vit(**options: Any) -> Any:
    sizes: Any = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return timm.models.VisionTransformer(**{**sizes, "num_classes": 5, **options})


def swin() -> Any:
    """Return a Swin whose second layer of each stage shifts its windows."""
    sizes: Any = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "window_size": 4}
    return timm.models.SwinTransformer(**sizes, depths=(2, 2), num_heads=(2, 4), num_classes=5)


def eva() -> Any:
    """Return a model with rotary positions."""
    sizes: Any = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return timm.models.Eva(**sizes, num_classes=5, use_rot_pos_emb=True)


def beit() -> Any:
    """Return a model with relative positions in every layer."""
    sizes: Any = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return timm.models.Beit(**sizes, num_classes=5, use_rel_pos_bias=True)


MODELS: dict[str, Callable[[], Any]] = {
    "vit": vit,
    "vit with normed keys": lambda: vit(qk_norm=True),
    "swin": swin,
    "eva": eva,
    "beit": beit,
}


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_exact_variant_passes_verification_in_every_layer(name: str, exact: Exact) -> None:
    receipt = attnkit.swap(lively(MODELS[name], exact.dtype), exact.variant).receipt
    assert [site.calls for site in receipt.sites] == [1] * (4 if name == "swin" else 2)


@pytest.mark.parametrize("name", MODELS)
def test_swapped_model_computes_what_it_did(name: str) -> None:
    model, x = lively(MODELS[name], torch.float64), images()
    with torch.no_grad():
        before = model(x)
        with attnkit.swap(model, "multi_head"):
            after = model(x)
    assert furthest(before, after) < CLOSE * float(before.abs().max())


def test_window_that_is_given_changes_what_a_model_computes() -> None:
    model, x = lively(vit, torch.float64), images()
    plan = {"variant": "sliding_window", "window_size": 2}
    with torch.no_grad():
        before = model(x)
        with attnkit.swap(model, plan, accept="different"):
            assert furthest(model(x), before) > 1e-3
        assert torch.equal(model(x), before)


def test_unfused_layer_is_swapped_and_stays_unfused_after() -> None:
    model = lively(swin, torch.float64)
    layer = model.layers[0].blocks[0].attn
    assert layer.fused_attn is False
    members = {name: id(value) for name, value in vars(layer).items()}
    with attnkit.swap(model, "flash"):
        assert layer.fused_attn is True
    assert {name: id(value) for name, value in vars(layer).items()} == members


def test_gradients_of_all_parameters_are_those_of_the_model() -> None:
    model, x = lively(swin, torch.float64), images()

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(model(x).square().mean(), list(model.parameters())))

    before = gradients()
    with attnkit.swap(model, "multi_head"):
        gradients()
        after = gradients()
    largest = max(float(each.abs().max()) for each in before)
    assert max(map(furthest, before, after)) < CLOSE * largest


def test_survey_tells_what_layers_need() -> None:
    told = [str(site.needs) for site in attnkit.survey(swin()) if site.kind == "attention"]
    assert told == ["2 heads, head_dim 8, bias"] * 2 + ["4 heads, head_dim 8, bias"] * 2


def test_feedforward_layers_are_surveyed_and_refused() -> None:
    sites = [site for site in attnkit.survey(vit()) if site.kind == "feedforward"]
    widths = [(site.path, site.needs.embed_dim, site.needs.hidden_dim) for site in sites]
    assert widths == [("blocks.0.mlp", 32, 128), ("blocks.1.mlp", 32, 128)]
    assert all("attention layers only" in (site.obstacle or "") for site in sites)


def test_layer_without_torchs_function_is_refused_by_name() -> None:
    sizes: Any = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "window_size": 4}
    model = timm.models.SwinTransformerV2(**sizes, depths=(1,), num_heads=(2,), num_classes=5)
    with pytest.raises(UnsupportedError, match="WindowAttention does not call torch's"):
        attnkit.swap(model, "flash")


def test_variant_for_one_head_is_refused_with_the_number_of_heads() -> None:
    with pytest.raises(UnsupportedError, match="num_heads: needs 4, offers 1"):
        attnkit.swap(vit(), "self_attention")


def test_layer_of_its_own_needs_a_sample() -> None:
    layer = timm.layers.Attention(32, 4)
    with pytest.raises(SwapError, match="cannot make images for Attention"):
        attnkit.swap(layer, "flash")
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    receipt = attnkit.swap(layer, "flash", sample={"x": x, "attn_mask": seen}).receipt
    assert [site.path for site in receipt.sites] == ["(model)"]


def test_swapped_model_compiles_into_one_graph() -> None:
    model, x = lively(vit, torch.float64), images()
    with torch.no_grad(), attnkit.swap(model, "multi_head"):
        expected = model(x)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert furthest(compiled(x), expected) < CLOSE * float(expected.abs().max())
