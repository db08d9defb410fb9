"""Variants in the experts of models that have some, and what holds for dense layers too.

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
from expert_swaps import PATHS, RULES, UPCYCLED, llama, logits, make, mixtral, phi3, qwen3_moe
from small_llama import prompt
from tiny_models import CLOSE, COPIES, copied, furthest

import attnkit
from attnkit.errors import SwapError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable


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
