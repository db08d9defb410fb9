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
import transformers
from small_llama import prompt
from tiny_models import CLOSE, COPIES, GQA, copied, furthest, spread

import attnkit
from attnkit.errors import ConfigError, SwapError, UnsupportedError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: dict[str, Any] = {**GQA, "eos_token_id": None}
UPCYCLED: Any = {"*.mlp": {"variant": "moe", "num_experts": 4, "top_k": 2}}
PATHS = ("model.layers.0.mlp", "model.layers.1.mlp")
RULES: Any = {"do_sample": False, "max_new_tokens": 8}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def mistral() -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL))


def qwen3() -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, head_dim=16))


def phi3() -> Any:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**SMALL, sliding_window=None))


def gemma() -> Any:
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**SMALL, head_dim=16))


def gpt2() -> Any:
    sizes: Any = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, vocab_size=97))


def biased() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, mlp_bias=True))


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, num_local_experts=4))


def qwen3_moe() -> Any:
    experts: Any = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    config = transformers.Qwen3MoeConfig(**SMALL, **experts, head_dim=16)
    return transformers.Qwen3MoeForCausalLM(config)


def gpt_oss() -> Any:
    experts: Any = {"num_local_experts": 4, "num_experts_per_tok": 2}
    rope: Any = {"rope_type": "default", "rope_theta": 1e4}
    config = transformers.GptOssConfig(**SMALL, **experts, head_dim=16, rope_parameters=rope)
    return transformers.GptOssForCausalLM(config)


def make(build: Callable[[], Any] = llama, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    model = spread(build().eval(), axes=(2, 3))
    if dtype == torch.float64:
        # transformers' grouped products know no float64
        model.set_experts_implementation("eager")
    return model.to(dtype)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(**prompt(), use_cache=False).logits
    return out


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


IMPLEMENTATIONS = ["loop", "grouped", "dense"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("build", [mixtral, qwen3_moe], ids=lambda b: b.__name__)
def test_experts_of_a_mixture_run_the_named_implementation(
    build: Callable[[], Any], implementation: str
) -> None:
    model = make(build)
    before, tokens = logits(model), model.generate(**prompt(), **RULES)
    plan = {"*.experts": {"variant": "moe", "implementation": implementation}}
    with attnkit.swap(model, plan) as swapped:
        assert furthest(logits(model), before) < CLOSE
        assert torch.equal(model.generate(**prompt(), **RULES), tokens)
    ran = {site.path: site.implementations for site in swapped.receipt.sites}
    assert ran == {f"{path}.experts": (f"moe.{implementation}",) for path in PATHS}


def test_implementation_that_the_plan_names_runs_however_dear() -> None:
    variant, calls = attnkit.get_variant("moe"), []

    def noting(*tensors: Any, **rest: Any) -> Any:
        from attnkit_plugins.feedforward.moe.loop import feedforward

        calls.append(tensors)
        return feedforward(*tensors, **rest)

    loop = next(each for each in variant.implementations if each.name == "loop")
    dear = dataclasses.replace(loop, name="dear", function=noting, cost=lambda _: 1e9)
    other = dataclasses.replace(
        variant, name="other", implementations=(*variant.implementations, dear)
    )
    model = make(mixtral)
    plan = {"*.experts": {"variant": "other", "implementation": "dear"}}
    with attnkit.register(other), attnkit.swap(model, plan):
        calls.clear()
        logits(model)
    assert len(calls) == 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_of_a_mixture_are_those_of_the_model(implementation: str) -> None:
    model = make(mixtral)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**prompt()).logits.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    before = gradients()
    plan = {"*.experts": {"variant": "moe", "implementation": implementation}}
    with attnkit.swap(model, plan):
        after = gradients()
    largest = max(float(each.abs().max()) for each in before.values())
    assert max(furthest(before[name], after[name]) for name in before) < CLOSE * largest
    assert all(float(each.abs().max()) > 0 for each in after.values())


def test_experts_are_restored_and_their_config_was_never_shared() -> None:
    model = make(mixtral)
    other = transformers.MixtralForCausalLM(model.config)
    told = model.config._experts_implementation
    experts = model.model.layers[0].mlp.experts
    with attnkit.swap(model, {"layers.0.mlp.experts": "moe"}):
        assert experts.config is not model.config
        assert model.model.layers[1].mlp.experts.config is model.config
    assert experts.config is model.config is other.config
    assert model.config._experts_implementation == told
    assert "_attnkit" not in experts.__dict__


def test_nested_swaps_of_experts_unwind_in_order() -> None:
    model = make(mixtral, torch.float32)
    first = attnkit.swap(model, {"*.experts": {"variant": "moe", "implementation": "loop"}})
    second = attnkit.swap(model, {"*.experts": {"variant": "moe", "implementation": "dense"}})
    with pytest.raises(SwapError, match="'moe' was swapped in after 'moe'"):
        first.restore()
    second.restore()
    first.restore()
    assert model.model.layers[0].mlp.experts.config is model.config


def test_experts_told_our_name_by_hand_are_refused_when_they_run() -> None:
    model = make(mixtral)
    attnkit.swap(model, {"*.experts": "moe"}).restore()
    model.config._experts_implementation_internal = "attnkit"
    with pytest.raises(SwapError, match="nothing was swapped into it"):
        model(**prompt())


def test_wrong_experts_are_caught_with_the_name_of_the_layer() -> None:
    variant = attnkit.get_variant("moe")

    def without_the_second_expert(x: Any, experts: Any, gates: Any, *, weights: Any) -> Any:
        from attnkit_plugins.feedforward.moe.loop import feedforward

        return feedforward(x, experts[:, :1], gates[:, :1], weights=weights)

    loop = next(each for each in variant.implementations if each.name == "loop")
    own = dataclasses.replace(
        loop, name="own", function=without_the_second_expert, cost=lambda _: 0.0
    )
    wrong = dataclasses.replace(variant, name="half", implementations=(own,))
    told = r"model\.layers\.0\.mlp\.experts \(MixtralExperts\): half\.own is off by"
    with attnkit.register(wrong), pytest.raises(VerificationError, match=told):
        attnkit.swap(make(mixtral, torch.float32), {"*.experts": "half"})


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("build", [llama, mixtral], ids=["upcycled", "mixture"])
def test_copies_of_a_swapped_model_are_swapped(build: Callable[[], Any], how: str) -> None:
    model = make(build)
    plan = UPCYCLED if build is llama else {"*.experts": "moe"}
    with attnkit.swap(model, plan):
        other = copied(model, how)
        wanted = logits(model)
    assert torch.equal(logits(other), wanted)


def test_autocast_reaches_the_experts() -> None:
    model = make(mixtral, torch.float32)
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    experts = model.model.layers[1].mlp.experts
    # the last layer: a rounding before a router may send a token to other experts
    with (
        torch.no_grad(),
        torch.autocast("cpu", dtype=torch.bfloat16),
        attnkit.swap(model, {"layers.1.mlp.experts": "moe"}) as swapped,
    ):
        routing = (torch.tensor([[0, 1]] * 5), torch.full((5, 2), 0.5))
        out = experts(inputs, *routing)
    swapped.restore()
    with torch.no_grad():
        apart = furthest(out, experts(inputs, *routing)) / float(out.abs().max())
    # rounded to 2^-9 at least once, and no more than a handful of times
    assert 2.0**-11 < apart < 8 * 2.0**-8
    assert out.dtype == torch.float32


def test_random_numbers_of_the_program_are_not_used_up() -> None:
    model = make()
    before = torch.random.get_rng_state()
    attnkit.swap(model, UPCYCLED)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_survey_tells_what_a_feedforward_layer_is() -> None:
    sites = {site.path: str(site.needs) for site in attnkit.survey(make(mixtral))}
    told = "embed_dim 64, hidden_dim 96, SiLUActivation, 4 experts, gated"
    assert sites["model.layers.0.mlp.experts"] == told
    sites = {site.path: str(site.needs) for site in attnkit.survey(make(phi3))}
    assert sites["model.layers.0.mlp"] == "embed_dim 64, hidden_dim 96, SiLUActivation, gated"


def test_explanation_of_a_mixture_says_what_would_run() -> None:
    told = attnkit.explain(make(), UPCYCLED)
    assert [decision.relation for decision in told] == ["exact", "exact"]
    assert all((decision.chosen or "").startswith("moe.") for decision in told)


@pytest.mark.parametrize(("make", "plan"), [(llama, UPCYCLED), (mixtral, "moe")])
@pytest.mark.parametrize("dynamic", [None, True])  # True: with symbols for all numbers
def test_swapped_model_compiles_into_one_graph(
    make: Callable[[], Any], plan: Any, *, dynamic: bool | None
) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    model = make().eval()
    attnkit.swap(model, plan)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=dynamic)
    assert torch.equal(logits(compiled), logits(model))
