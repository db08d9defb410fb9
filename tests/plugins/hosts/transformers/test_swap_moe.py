"""Mixtures of experts in models: dense layers upcycled, and the experts of models that have some.

The models are tiny and random, in float64 where a test compares numbers itself: rounding is then
about 1e-15 per operation, and 1e-9 lies far above what it can add up to here and far below what a
lost expert or gate would do (1e-2 and more).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from expert_swaps import (
    PATHS,
    RULES,
    UPCYCLED,
    biased,
    gemma,
    gpt2,
    gpt_oss,
    llama,
    logits,
    make,
    mistral,
    mixtral,
    phi3,
    qwen3,
)
from small_llama import prompt
from tiny_models import CLOSE, furthest

import attnkit
from attnkit.errors import ConfigError, SwapError, UnsupportedError, VerificationError
from attnkit_plugins.hosts.transformers import HOST

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("build", [llama, mistral, qwen3, phi3], ids=lambda b: b.__name__)
def test_upcycled_model_computes_what_the_dense_one_does(build: Callable[[], Any]) -> None:
    model = make(build)
    before = logits(model)
    with attnkit.swap(model, UPCYCLED) as swapped:
        assert furthest(logits(model), before) < CLOSE
        layers = [type(model.get_submodule(path)).__name__ for path in PATHS]
    assert layers == ["MoELayer", "MoELayer"]
    assert [site.relation for site in swapped.receipt.sites] == ["exact", "exact"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("build", [llama, mixtral], ids=["upcycled", "mixture"])
def test_exactness_is_verified_in_rounding_units_at_every_site(
    build: Callable[[], Any], dtype: torch.dtype
) -> None:
    plan = UPCYCLED if build is llama else {"*.experts": "moe"}
    receipt = attnkit.swap(make(build, dtype), plan).receipt
    for site in receipt.sites:
        assert site.calls == 2
        assert 0 < (site.error_before or 0) < 1
        assert 0 < site.error_after < 1
    assert all((out.moved or 0) <= (out.allowed or 0) for out in receipt.outputs)


def test_upcycled_model_generates_the_same_tokens() -> None:
    model = make()
    before = model.generate(**prompt(), **RULES)
    with attnkit.swap(model, UPCYCLED):
        assert torch.equal(model.generate(**prompt(), **RULES), before)


def test_attention_and_feedforward_layers_are_swapped_by_one_plan() -> None:
    model = make()
    before = logits(model)
    receipt = attnkit.swap(model, {"*.self_attn": "flash", **UPCYCLED}).receipt
    assert [site.variant for site in receipt.sites] == ["flash", "moe"] * 2
    assert furthest(logits(model), before) < CLOSE


def test_restore_puts_back_the_dense_layers_by_identity() -> None:
    model = make()
    before = logits(model)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    swapped = attnkit.swap(model, UPCYCLED)
    assert "model.layers.0.mlp.router.weight" in model.state_dict()
    assert "model.layers.0.mlp.up_proj.weight" not in model.state_dict()
    swapped.restore()
    assert list(model.named_modules()) == list(modules.items())
    assert list(model.named_parameters()) == list(parameters.items())
    assert torch.equal(logits(model), before)


def test_mode_of_the_model_goes_along_in_and_out() -> None:
    model = make().train()
    swapped = attnkit.swap(model, UPCYCLED)
    assert all(model.get_submodule(path).training for path in PATHS)
    model.eval()
    swapped.restore()
    assert not any(module.training for module in model.modules())


def test_layer_that_something_else_replaced_is_not_restored_over() -> None:
    model = make()
    swapped = attnkit.swap(model, UPCYCLED)
    own = model.model.layers[0].mlp
    model.model.layers[0].mlp = torch.nn.Identity()
    with pytest.raises(SwapError, match=r"model\.layers\.0\.mlp: another module was put"):
        swapped.restore()
    model.model.layers[0].mlp = own
    swapped.restore()


def test_dense_weights_are_copied_not_shared() -> None:
    model = make()
    before = logits(model)
    with attnkit.swap(model, UPCYCLED):
        with torch.no_grad():
            for path in PATHS:
                model.get_submodule(path).down_proj.zero_()
        assert furthest(logits(model), before) > 1e-2
    assert torch.equal(logits(model), before)


def test_experts_are_trained_and_then_the_router_is() -> None:
    model = make()

    def gradients() -> dict[str, float]:
        model.zero_grad()
        model(**prompt()).logits.square().mean().backward()
        told = model.model.layers[0].mlp.named_parameters()
        return {name: float(p.grad.abs().max()) for name, p in told}

    attnkit.swap(model, UPCYCLED)
    model.train()
    first = gradients()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.01 * parameter.grad)
    second = gradients()
    assert min(first["gate_up_proj"], first["down_proj"]) > 1e-6
    # equal experts teach the router nothing, gates that sum to 1 cancel: rounding is left
    assert first["router.weight"] < CLOSE * first["down_proj"]
    assert second["router.weight"] > 1e-6


def test_balancing_loss_trains_the_router_from_the_first_step() -> None:
    model, losses = make(), []
    attnkit.swap(model, UPCYCLED)
    layer = model.model.layers[0].mlp

    def note(module: Any, args: Any, out: Any) -> None:
        losses.append(layer.forward(args[0], return_routing=True)[1].load_balance_loss)

    hook = layer.register_forward_hook(note)
    model(**prompt())
    hook.remove()
    losses[0].backward()
    assert float(layer.router.weight.grad.abs().max()) > 1e-6


@pytest.mark.parametrize(
    ("build", "plan", "told"),
    [
        (gemma, UPCYCLED, "activation: GemmaMLP has GELUTanh, experts of 'moe' have SiLU"),
        (gpt2, UPCYCLED, "gate: experts of 'moe' are .*GPT2MLP is not known to be"),
        (biased, UPCYCLED, "gate: .* without biases"),
        (llama, {"*.mlp": "moe"}, "num_experts: how many copies"),
        (llama, {"*.mlp": {"variant": "moe", "num_experts": 2, "top_k": 3}}, "top_k: at most .* 2"),
        (
            llama,
            {"*.mlp": {"variant": "moe", "num_experts": 2, "fallback": ["loop"]}},
            "fallback: the layer",
        ),
        (mixtral, {"*.experts": {"variant": "moe", "num_experts": 8}}, "num_experts: the model's"),
        (mixtral, {"*.experts": {"variant": "moe", "top_k": 1}}, "top_k: the model's own router"),
        (
            gpt_oss,
            {"*.experts": "moe"},
            "GptOssExperts has biases, transposed.*interleaved.*gate f",
        ),
    ],
    ids=[
        "gelu",
        "no_gate",
        "bias",
        "no_number",
        "too_many",
        "fallback",
        "number",
        "top_k",
        "gpt_oss",
    ],
)
def test_layer_that_experts_cannot_stand_in_for_is_refused_by_name(
    build: Callable[[], Any], plan: Any, told: str
) -> None:
    model = make(build)
    modules = list(model.named_modules())
    with pytest.raises(UnsupportedError, match=f"(?s){told}"):
        attnkit.swap(model, plan)
    assert list(model.named_modules()) == modules


def test_option_that_moe_does_not_have_is_refused_with_those_it_has() -> None:
    plan = {"*.mlp": {"variant": "moe", "experts": 8}}
    told = "experts: .*options of 'moe' are implementation, fallback, num_experts, top_k"
    with pytest.raises(ConfigError, match=told):
        attnkit.swap(make(), plan)


def test_layer_that_is_not_equal_at_the_start_is_caught_with_its_name() -> None:
    variant = attnkit.get_variant("moe")
    placement = variant.placement
    assert placement is not None

    def build(weights: Any, options: Any, *, variant: Any) -> Any:
        from attnkit_plugins.feedforward.moe.site import upcycle

        layer = upcycle(weights, options, variant=variant)
        config = layer.config.model_copy(update={"renormalise": False})
        layer.config = config
        return layer

    wrong = dataclasses.replace(
        variant, name="uneven", placement=dataclasses.replace(placement, build=build)
    )
    model = make(dtype=torch.float32)
    modules = list(model.named_modules())
    plan = {"*.mlp": {"variant": "uneven", "num_experts": 4}}
    told = r"model\.layers\.1\.mlp \(LlamaMLP\): uneven\.\w+ is off by"
    with attnkit.register(wrong), pytest.raises(VerificationError, match=told):
        attnkit.swap(model, plan)
    assert list(model.named_modules()) == modules


def test_a_layer_without_parameters_goes_in_and_comes_out() -> None:
    class Nothing:
        layer = torch.nn.Identity()

        def __call__(self, request: Any) -> Any:
            return request.x

    model = make(llama)
    site = next(each for each in attnkit.survey(model) if each.path == PATHS[0])
    own = model.get_submodule(site.path)
    attached = HOST.attach(model, site, Nothing(), "nothing")
    assert model.get_submodule(site.path) is Nothing.layer
    attached.undo()
    assert model.get_submodule(site.path) is own
