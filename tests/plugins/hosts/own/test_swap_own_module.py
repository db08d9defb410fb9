"""Variants in a user's own modules: those that call torch's function, and those declared.

Where a test compares numbers itself, all is in float64, as in `test_swap_torch.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from own_layers import CAUSAL, SAMPLE, Calling, Spelt, spelt
from tiny_models import CLOSE, furthest
from torch import nn
from torch.nn import functional
from torch_layers import normal

import attnkit
from attnkit.errors import (
    ArgumentError,
    MaskError,
    UnsupportedError,
    VerificationError,
)
from attnkit.hosts.own_modules import MEMBER
from attnkit.swaps.api import Needs

if TYPE_CHECKING:
    from collections.abc import Callable

# modules that call torch's function


@pytest.mark.parametrize("variant", ["multi_head", "flash"])
def test_module_that_calls_torchs_function_needs_no_declaration(variant: str) -> None:
    model = nn.Sequential(Calling(), Calling())
    with torch.no_grad():
        before = model(SAMPLE["x"])
        swapped = attnkit.swap(model, variant, sample={"input": SAMPLE["x"]})
        after = model(SAMPLE["x"])
    assert [(s.path, s.calls) for s in swapped.receipt.sites] == [("0", 1), ("1", 1)]
    assert furthest(before, after) < CLOSE


def hidden_keys() -> torch.Tensor:
    seen = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    seen[0, ..., 6:] = False
    return seen


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "causal": lambda: {"is_causal": True},
    "bool mask": lambda: {"attn_mask": hidden_keys()},
    "bool mask of two dimensions": lambda: {"attn_mask": torch.ones(9, 9).bool().tril()},
    "float mask": lambda: {"attn_mask": normal(4, 9, 9)},
    "float mask that hides": lambda: {
        "attn_mask": normal(9, 9).masked_fill(torch.ones(9, 9).bool().triu(1), -torch.inf)
    },
    "scale": lambda: {"scale": 0.3},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_arguments_of_torchs_function_mean_the_same_to_a_variant(options: str) -> None:
    layer = Calling()
    with torch.no_grad():
        before = layer(SAMPLE["x"], **OPTIONS[options]())
        with attnkit.swap(layer, "multi_head", sample=SAMPLE):
            after = layer(SAMPLE["x"], **OPTIONS[options]())
    assert furthest(before, after) < CLOSE


class Shaped(nn.Module):
    """Hands its arguments to torch's function."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, value, **options)


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "two dimensions": ((5, 8), (7, 8), {}),
    "three dimensions": ((3, 5, 8), (3, 7, 8), {"attn_mask": normal(3, 5, 7)}),
    "five dimensions": ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), {}),
    "five dimensions and a mask": (
        (2, 3, 4, 5, 8),
        (2, 3, 4, 7, 8),
        {"attn_mask": normal(2, 1, 4, 5, 7)},
    ),
    "keys of one sample for all": ((3, 4, 5, 8), (1, 4, 7, 8), {"attn_mask": normal(1, 4, 5, 7)}),
    "one key head for all": ((3, 4, 5, 8), (3, 1, 7, 8), {}),
    "groups of heads": ((3, 4, 5, 8), (3, 2, 7, 8), {"enable_gqa": True}),
    "causal from the upper left": ((3, 4, 5, 8), (3, 4, 7, 8), {"is_causal": True}),
    "causal with more queries": ((3, 4, 7, 8), (3, 4, 5, 8), {"is_causal": True}),
}


@pytest.mark.parametrize("shapes", SHAPES)
def test_shapes_that_torchs_function_takes_are_taken(shapes: str) -> None:
    query, key, options = SHAPES[shapes]
    tensors = {"query": normal(*query), "key": normal(*key, seed=1), "value": normal(*key, seed=2)}
    layer = Shaped()
    before = layer(**tensors, **options)
    with attnkit.swap(layer, "multi_head", sample={**tensors, **options}):
        after = layer(**tensors, **options)
    assert after.shape == before.shape
    assert furthest(before, after) < CLOSE


def test_mask_beside_is_causal_is_refused_by_name() -> None:
    layer = Calling()
    with (
        attnkit.swap(layer, "multi_head", sample=SAMPLE),
        pytest.raises(UnsupportedError, match="is_causal and attn_mask: Calling gives both"),
    ):
        layer(SAMPLE["x"], is_causal=True, attn_mask=hidden_keys())


def test_attention_inside_a_module_with_attention_is_answered_by_its_own_site() -> None:
    class Around(Calling):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Calling()

        def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
            q, k, v = self.heads(self.inner(x))
            mixed = functional.scaled_dot_product_attention(q, k, v)
            return self.out(mixed.transpose(1, 2).flatten(2))

    model = Around()
    with torch.no_grad():
        before = model(**SAMPLE)
        receipt = attnkit.swap(model, "flash", sample=SAMPLE).receipt
        after = model(**SAMPLE)
    assert [(s.path, s.calls) for s in receipt.sites] == [("(model)", 1), ("inner", 1)]
    assert furthest(before, after) < CLOSE


def test_only_the_swapped_instance_is_answered_by_the_variant() -> None:
    one, other = Calling(), Calling()
    plan = {"variant": "sliding_window", "window_size": 2}
    with torch.no_grad(), attnkit.swap(one, plan, sample=SAMPLE, accept="different"):
        assert furthest(one(**SAMPLE), other(**SAMPLE)) > 1e-3
        assert torch.equal(other(**SAMPLE), Calling()(**SAMPLE))


# declared methods


@pytest.mark.parametrize("variant", ["multi_head", "flash"])
def test_declared_method_is_replaced_by_the_variant(variant: str) -> None:
    layer = spelt()
    with torch.no_grad():
        before = layer(**SAMPLE)
        receipt = attnkit.swap(layer, variant, sample=SAMPLE).receipt
        after = layer(**SAMPLE)
    assert [site.calls for site in receipt.sites] == [1]
    assert furthest(before, after) < CLOSE
    assert str(attnkit.survey(layer)[0].needs) == "causal, 4 heads, head_dim 8"


@pytest.mark.parametrize(
    "visible",
    [hidden_keys(), torch.ones(9, 9).bool().tril() & (torch.arange(9) < 7)],
    ids=["of the keys", "of two dimensions"],
)
def test_declared_mask_hides_what_it_hid(visible: torch.Tensor) -> None:
    layer = spelt()
    with torch.no_grad():
        before = layer(**SAMPLE, visible=visible)
        with attnkit.swap(layer, "multi_head", sample={**SAMPLE, "visible": visible}):
            after = layer(**SAMPLE, visible=visible)
    assert furthest(before, after) < CLOSE


def test_mask_of_what_is_hidden() -> None:
    class Hiding(Spelt):
        def attend(self, q: Any, k: Any, v: Any, hidden: Any = None) -> torch.Tensor:
            return super().attend(q, k, v, None if hidden is None else ~hidden)

    names = {"query": "q", "key": "k", "value": "v", "hidden": "hidden"}
    layer = attnkit.declare(Hiding, method="attend", **names, needs=CAUSAL)()
    sample = {**SAMPLE, "visible": ~hidden_keys()}
    with torch.no_grad():
        before = layer(**sample)
        with attnkit.swap(layer, "multi_head", sample=sample):
            after = layer(**sample)
    assert furthest(before, after) < CLOSE


@pytest.mark.parametrize("make", [Calling, spelt], ids=["calling", "declared"])
def test_masks_are_verified_sample_by_sample(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnkit.swaps.softmax_site._ELEMENTS", 1)
    name = "attn_mask" if make is Calling else "visible"
    receipt = attnkit.swap(make(), "flash", sample={**SAMPLE, name: hidden_keys()}).receipt
    assert [site.calls for site in receipt.sites] == [1]


def test_declared_bias_is_added() -> None:
    layer = spelt(bias="extra")
    sample = {**SAMPLE, "extra": normal(4, 9, 9), "visible": hidden_keys()}
    with torch.no_grad():
        before = layer(**sample)
        with attnkit.swap(layer, "multi_head", sample=sample):
            after = layer(**sample)
    assert furthest(before, after) < CLOSE


def test_layout_with_the_heads_behind_the_tokens() -> None:
    class Behind(Spelt):
        def forward(self, x: torch.Tensor, visible: Any = None, **rest: Any) -> torch.Tensor:
            turned = [each.transpose(1, 2) for each in self.heads(x)]
            return self.out(self.attend(*turned, visible, **rest).flatten(2))

        def attend(self, *tensors: Any, **rest: Any) -> torch.Tensor:
            q, k, v, *more = tensors
            turned = [each.transpose(1, 2) for each in (q, k, v)]
            return super().attend(*turned, *more, **rest).transpose(1, 2)

    class Named(Behind):
        def attend(self, q: Any, k: Any, v: Any, visible: Any = None) -> torch.Tensor:
            return super().attend(q, k, v, visible)

    names = {"query": "q", "key": "k", "value": "v", "mask": "visible", "layout": "BLHE"}
    layer = attnkit.declare(Named, method="attend", **names, needs=CAUSAL)()
    with torch.no_grad():
        before = layer(**SAMPLE, visible=hidden_keys())
        with attnkit.swap(layer, "multi_head", sample=SAMPLE):
            after = layer(**SAMPLE, visible=hidden_keys())
    assert furthest(before, after) < CLOSE


def test_needs_that_depend_on_the_module() -> None:
    layer = spelt(needs=lambda module: Needs(heads=module.qkv.in_features // 8, causal=True))
    assert str(attnkit.survey(layer)[0].needs) == "causal, 4 heads"


@pytest.mark.parametrize(
    "needs",
    [Needs(), Needs(causal=True, scale=0.3), Needs(causal=True, window=3), Needs(softcap=1.0)],
    ids=["not causal", "scale", "window", "cap"],
)
def test_wrong_declaration_is_caught_by_verification(needs: Needs) -> None:
    layer = spelt(needs=needs)
    with pytest.raises(VerificationError, match=r"Mine.* is off by"):
        attnkit.swap(layer, "multi_head", sample=SAMPLE)
    assert "attend" not in vars(layer)


def test_method_that_is_never_called_is_caught_by_verification() -> None:
    layer = spelt(method="forward", query=None, key=None, value=None, mask=None)
    with pytest.raises(VerificationError, match=r"without calling \(model\)"):
        attnkit.swap(layer, "multi_head", sample=SAMPLE)


@pytest.mark.parametrize("options", [{"temperature": 2.0}, {"extra": normal(9, 9)}], ids=str)
def test_parameter_that_was_not_declared_is_refused_by_name(options: dict[str, Any]) -> None:
    layer = spelt()
    (name,) = options
    told = f"{name}: Mine.attend was called with what its declaration does not speak of"
    with (
        attnkit.swap(layer, "multi_head", sample=SAMPLE),
        pytest.raises(UnsupportedError, match=told),
    ):
        layer(**SAMPLE, **options)


def test_default_of_a_parameter_that_was_not_declared_is_let_through() -> None:
    layer = spelt()
    with torch.no_grad(), attnkit.swap(layer, "multi_head", sample=SAMPLE):
        assert torch.equal(layer(**SAMPLE, temperature=1.0), layer(**SAMPLE))


def test_mask_that_is_no_mask_is_refused_by_name() -> None:
    layer = spelt()
    with (
        attnkit.swap(layer, "multi_head", sample=SAMPLE),
        pytest.raises(MaskError, match="visible must be a bool or a floating tensor"),
    ):
        layer(**SAMPLE, visible=hidden_keys().int())


def test_method_that_returns_more_than_the_values_is_refused() -> None:
    class Talkative(Spelt):
        def forward(self, x: torch.Tensor) -> Any:
            q, k, v = self.heads(x)
            return self.attend(q, k, v)[0]

        def attend(self, q: Any, k: Any, v: Any) -> Any:
            return super().attend(q, k, v), None

    names = {"query": "q", "key": "k", "value": "v"}
    layer = attnkit.declare(Talkative, method="attend", **names, needs=CAUSAL)()
    with pytest.raises(UnsupportedError, match="must return the mixed values alone, got tuple"):
        attnkit.swap(layer, "multi_head", sample=SAMPLE)


def test_window_of_a_plan_narrows_a_declared_module() -> None:
    layer, narrow = spelt(), torch.ones(9, 9).bool().triu(-2)
    plan = {"variant": "sliding_window", "window_size": 3}
    with torch.no_grad():
        wanted = layer(**SAMPLE, visible=narrow)
        with attnkit.swap(layer, plan, sample=SAMPLE, accept="different"):
            assert furthest(layer(**SAMPLE), wanted) < CLOSE


def test_class_of_a_library_can_be_declared() -> None:
    layer = transformers.models.bloom.modeling_bloom.BloomAttention
    try:
        attnkit.declare(layer)
        sizes: Any = {"vocab_size": 97, "hidden_size": 32, "n_layer": 1, "n_head": 4}
        model = transformers.BloomModel(transformers.BloomConfig(**sizes))
        (site,) = [site for site in attnkit.survey(model) if site.kind == "attention"]
        assert (site.host, site.obstacle) == ("own", None)
    finally:
        delattr(layer, MEMBER)


@pytest.mark.parametrize(
    ("layer", "options", "told"),
    [
        (Calling(), {}, "layer must be a class of torch.nn.Module, got Calling"),
        (int, {}, "layer must be a class of torch.nn.Module, got <class 'int'>"),
        (Spelt, {"method": "mix"}, "method: Spelt has no method 'mix'"),
        (Spelt, {"method": "attend", "query": "q"}, "key, value: name the parameters"),
        (
            Spelt,
            {"method": "attend", "query": "q", "key": "k", "value": "w"},
            "value: Spelt.attend has no parameter 'w'; it has q, k, v, visible",
        ),
        (Spelt, {"layout": "LBE"}, "layout must be 'BHLE' or 'BLHE', got 'LBE'"),
        (Spelt, {"needs": Needs(sinks=True)}, "needs: sinks cannot be declared"),
    ],
)
def test_declaration_that_cannot_be_meant_is_refused(
    layer: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ArgumentError, match=told):
        attnkit.declare(layer, **options)
    assert not hasattr(Spelt, MEMBER)
