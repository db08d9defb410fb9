"""Recurrences in models: their parameters, copies and gradients, and what they are refused.

The models are tiny and random, in float64 where a test compares numbers itself: rounding is then
about 1e-15 per operation (states included), and 1e-9 lies far above what it can add up to here and
far below what a lost token, a lost state or a leak would do (1e-2 and more).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from recurrent_swaps import PLANS, SMALL, WINDOW, make, mistral, mixing, prompt
from tiny_models import CLOSE, COPIES, copied, furthest

import attnkit
from attnkit.errors import ConfigError, UnsupportedError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable


NEW = {
    "linear": (),
    "gated_linear": ("decay_proj.weight", "decay_proj.bias"),
    "by_channel": ("decay_down.weight", "decay_proj.weight", "decay_proj.bias"),
    "fixed": (),
    "state_space": ("dt_weight", "A_log", "D", "dt_bias"),
}


@pytest.mark.parametrize("name", PLANS)
def test_new_parameters_join_the_model_and_leave_with_restore(name: str) -> None:
    model = make()
    before = {key: id(value) for key, value in model.named_parameters()}
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    swapped = attnkit.swap(model, {"layers.1": PLANS[name]}, accept="different")
    added = tuple(key for key in model.state_dict() if key not in before)
    assert added == tuple(f"model.layers.1.self_attn.attnkit.{each}" for each in NEW[name])
    swapped.restore()
    assert {key: id(value) for key, value in model.named_parameters()} == before
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert model.model.layers[1].self_attn.config is model.config


@pytest.mark.parametrize("name", PLANS)
def test_new_parameters_and_projections_are_trained(name: str) -> None:
    model, inputs = make(), prompt()
    with attnkit.swap(model, PLANS[name], accept="different"):
        model.train()
        if name == "by_channel":
            # the matrix before one of zeros has no gradient yet
            for layer in model.model.layers:
                torch.nn.init.normal_(layer.self_attn.attnkit.decay_proj.weight, std=0.1)
        model(**inputs).logits.square().mean().backward()
        trained = [
            (key, p.grad is not None and float(p.grad.abs().max()) > 0)
            for key, p in model.named_parameters()
            if "self_attn" in key
        ]
    assert trained == [(key, True) for key, _ in trained]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradients_of_a_checkpointed_model_are_the_same(plan: Any) -> None:
    model, inputs = make(), prompt()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(**inputs, use_cache=False).logits.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    with attnkit.swap(model, plan, accept="different"):
        model.train()
        plain = gradients()
        model.gradient_checkpointing_enable()
        again = gradients()
    assert max(map(furthest, plain, again)) < CLOSE
    assert len(plain) == len(again)


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_states_and_parameters_of_their_own(plan: Any, how: str) -> None:
    model, inputs = make(), prompt()
    del inputs["position_ids"]
    rules: Any = {"do_sample": False, "max_new_tokens": 4}
    with attnkit.swap(model, plan, accept="different"):
        other = copied(model, how)
        wanted = model.generate(**inputs, **rules)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "attnkit" in key:
                    parameter.add_(1.0)
    assert torch.equal(other.generate(**inputs, **rules), wanted)


def test_swap_on_top_of_a_recurrence_gets_keys_again() -> None:
    model, inputs = make(), prompt()
    ids = inputs["input_ids"][1:]
    with torch.no_grad(), attnkit.swap(model, WINDOW, accept="different"):
        wanted = model.generate(ids, do_sample=False, max_new_tokens=6)
    with torch.no_grad(), attnkit.swap(model, "gated_linear", accept="different"):
        recurrent = model.generate(ids, do_sample=False, max_new_tokens=6)
        with attnkit.swap(model, WINDOW, accept="different"):
            assert torch.equal(model.generate(ids, do_sample=False, max_new_tokens=6), wanted)
        again = model.generate(ids, do_sample=False, max_new_tokens=6)
    assert torch.equal(again, recurrent)
    assert not torch.equal(wanted, recurrent)


def bert() -> Any:
    sizes = {**SMALL, "num_key_value_heads": None}
    return transformers.BertModel(transformers.BertConfig(**sizes))


def gpt2() -> Any:
    sizes: Any = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, vocab_size=97))


def gemma2() -> Any:
    config = transformers.Gemma2Config(**SMALL, head_dim=16, sliding_window=6)
    return transformers.Gemma2ForCausalLM(config)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (bert, "causal: 'linear' sees no later key, the layer is not known to be causal"),
        (lambda: mistral(window=6), "window: the layer sees 6 keys"),
        (gemma2, "softcap: the layer caps logits"),
        (gpt2, "dropout: the layer drops probabilities"),
    ],
    ids=["bert", "mistral", "gemma2", "gpt2"],
)
def test_layer_that_a_recurrence_cannot_stand_in_for_is_refused(
    build: Callable[[], Any], told: str
) -> None:
    with pytest.raises(UnsupportedError, match=told):
        attnkit.swap(make(build), "linear", accept="different")


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"variant": "linear", "decay": "head"}, "decay: .*'linear' are implementation, .*feature"),
        ({"variant": "gated_linear", "decay": "none"}, "decay: .*'channel', 'head' or 'fixed'"),
        ({"variant": "state_space", "window_size": 4}, "options of 'state_space' are .*chunk_size"),
        ({"variant": "linear", "eps": 0.0}, "eps: .*greater than 0"),
    ],
)
def test_option_that_a_variant_does_not_have_is_refused_with_those_it_has(
    plan: Any, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        attnkit.swap(make(), plan, accept="different")


def test_options_change_what_runs() -> None:
    model = make()
    plan = {"variant": "linear", "feature_map": "relu", "implementation": "reference"}
    inputs = {"input_ids": prompt(padded=0)["input_ids"]}
    with attnkit.swap(model, plan, accept="different") as swapped:
        found = mixing(model, inputs)
    scores = (found["q"].relu() @ found["k"].relu().mT).tril()
    weights = scores / scores.sum(-1, keepdim=True).clamp(min=1e-6)
    assert furthest(found["out"], weights @ found["v"]) < CLOSE
    assert {site.implementations for site in swapped.receipt.sites} == {("linear.reference",)}


def test_wrong_implementation_of_a_recurrence_is_caught_with_the_name_of_the_layer() -> None:
    variant = attnkit.get_variant("linear")
    reference, *_ = variant.implementations

    def off_by_a_percent(*tensors: Any, **rest: Any) -> Any:
        from attnkit.reference import recurrence

        out, state = recurrence(*tensors, **rest)
        factors = torch.ones_like(out)
        factors[..., :-1] = 1.01
        return out * factors, state

    wrong = dataclasses.replace(reference, name="own", function=off_by_a_percent, cost=lambda _: 0)
    broken = dataclasses.replace(variant, name="off", implementations=(reference, wrong))
    model = make(dtype=torch.float32)
    config = model.model.layers[0].self_attn.config
    told = r"model\.layers\.0\.self_attn \(LlamaAttention\): off\.own is off by"
    with attnkit.register(broken), pytest.raises(VerificationError, match=told):
        attnkit.swap(model, "off", accept="different")
    assert model.model.layers[0].self_attn.config is config


def test_dropout_given_later_is_refused_by_name() -> None:
    model, inputs = make(), prompt()
    with attnkit.swap(model, "linear", accept="different"):
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        with pytest.raises(UnsupportedError, match=r"dropout: 0\.1 of the probabilities"):
            model.train()(**inputs)


def test_random_numbers_of_the_program_are_not_used_up() -> None:
    model = make()
    before = torch.random.get_rng_state()
    attnkit.swap(model, PLANS["by_channel"], accept="different")
    assert torch.equal(torch.random.get_rng_state(), before)
