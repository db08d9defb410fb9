"""Other mathematics in place of a model's attention: by the user's word, measured, with states.

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
from tiny_models import CLOSE, COPIES, GQA, copied, furthest, lively
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import attnkit
from attnkit.errors import ConfigError, StateError, UnsupportedError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: dict[str, Any] = {**GQA, "eos_token_id": None}
PLANS: dict[str, Any] = {
    "linear": "linear",
    "gated_linear": "gated_linear",
    "by_channel": {"variant": "gated_linear", "decay": "channel"},
    "fixed": {"variant": "gated_linear", "decay": "fixed"},
    "state_space": "state_space",
}
WINDOW = {"variant": "sliding_window", "window_size": 6}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def mistral(window: int | None = None) -> Any:
    config = transformers.MistralConfig(**SMALL, sliding_window=window)
    return transformers.MistralForCausalLM(config)


def qwen3() -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, head_dim=16))


def make(build: Callable[[], Any] = llama, dtype: torch.dtype = torch.float64) -> Any:
    return lively(build, dtype)


def prompt(length: int = 17, padded: int = 4, *, side: str = "left") -> dict[str, torch.Tensor]:
    """Return two prompts, the first of them padded, and positions that leave padding out."""
    ids = torch.randint(3, 97, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    padding = slice(0, padded) if side == "left" else slice(length - padded, length)
    ids[0, padding], mask[0, padding] = 0, 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


@pytest.fixture(params=PLANS)
def plan(request: Any) -> Any:
    return PLANS[request.param]


@pytest.mark.parametrize("build", [llama, mistral, qwen3], ids=lambda b: b.__name__)
def test_swap_is_refused_without_the_users_word(build: Callable[[], Any], plan: Any) -> None:
    model = make(build)
    with pytest.raises(UnsupportedError, match="allow it by accept='different'"):
        attnkit.swap(model, plan, accept="approximate")
    assert attnkit.swap(model, plan, accept="different").active


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_both_forms_of_a_recurrence_agree_with_its_definition(
    plan: Any, dtype: torch.dtype
) -> None:
    receipt = attnkit.swap(make(dtype=dtype), plan, accept="different").receipt
    for site in receipt.sites:
        assert site.relation == "different"
        assert site.calls == 2
        assert site.error_before is None
        assert 0 < site.error_after < site.allowed


def mixing(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return q, k, v (rotated, heads repeated) and the result of the first layer's attention."""
    layer, found = model.model.layers[0].self_attn, {}

    def entering(module: Any, args: Any, given: Any) -> None:
        x, (cos, sin) = given["hidden_states"], given["position_embeddings"]
        shape = (*x.shape[:2], -1, 16)
        query, key, value = (
            project(x).view(shape).transpose(1, 2)
            for project in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        found.update(q=query, k=key.repeat_interleave(2, 1), v=value.repeat_interleave(2, 1))

    def leaving(module: Any, args: Any) -> None:
        found["out"] = args[0].view(*args[0].shape[:2], 4, 16).transpose(1, 2)

    hooks = (
        layer.register_forward_pre_hook(entering, with_kwargs=True),
        layer.o_proj.register_forward_pre_hook(leaving),
    )
    with torch.no_grad():
        model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def pairs(rates: torch.Tensor, length: int) -> torch.Tensor:
    """Return exp(rate * (i - j)) where j <= i, else 0: (H, L, L)."""
    distance = (torch.arange(length)[:, None] - torch.arange(length)).double()
    return (rates[:, None, None] * distance).exp() * (distance >= 0)


def weigh_linear(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    scores = (torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).mT
    scores = scores.tril()
    return scores / scores.sum(-1, keepdim=True)


def weigh_gated(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    lost = 1 / 32 / 16 ** (torch.arange(4).double() / 3)  # (H,), down to 1 / 512
    weights = pairs(torch.log(1 - lost), q.shape[2]) * lost[:, None, None]
    return weights * (q @ k.mT) / 4


def weigh_state_space(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    dt = 0.1 / 100 ** (torch.arange(4).double() / 3)  # (H,), down to 0.001
    return pairs(-dt, q.shape[2]) * dt[:, None, None] * (q @ k.mT) / 4


@pytest.mark.parametrize(
    ("plan", "weigh"),
    [
        (PLANS["linear"], weigh_linear),
        (PLANS["gated_linear"], weigh_gated),
        (PLANS["by_channel"], weigh_gated),
        (PLANS["fixed"], weigh_gated),
        (PLANS["state_space"], weigh_state_space),
    ],
    ids=["linear", "gated_linear", "by_channel", "fixed", "state_space"],
)
def test_layer_mixes_its_own_projections_by_the_documented_weights(
    plan: Any, weigh: Callable[..., torch.Tensor]
) -> None:
    model = make()
    inputs = {"input_ids": prompt(padded=0)["input_ids"]}
    with attnkit.swap(model, plan, accept="different"):
        found = mixing(model, inputs)
    wanted = weigh(found["q"], found["k"]) @ found["v"]
    assert furthest(found["out"], wanted) < CLOSE
    assert float(wanted.abs().max()) > 1e-2


def test_drift_is_that_of_the_layers_output_on_the_sample(plan: Any) -> None:
    # padding on the right sees tokens, and would count in the drift
    model, inputs = make(), prompt(side="right")
    real = inputs["attention_mask"].bool()[:, None, :, None]
    before = mixing(model, inputs)["out"] * real
    sample = {**inputs, "use_cache": False}
    swapped = attnkit.swap(model, {"layers.0": plan}, accept="different", sample=sample)
    after = mixing(model, inputs)["out"] * real
    share = (after - before).square().sum().sqrt() / before.square().sum().sqrt()
    (site,) = swapped.receipt.sites
    assert site.drift == pytest.approx(float(share), rel=1e-6)
    assert float(share) > 0.05
    assert "drift" in str(swapped.receipt)


CUTS = [slice(0, 7), slice(7, 8), slice(8, 15), slice(15, 16), slice(16, 17)]


@pytest.mark.parametrize(
    ("build", "layers"),
    [(llama, "layers.0"), (llama, "layers.1"), (mistral, "*"), (qwen3, "*")],
)
def test_chunks_and_steps_equal_one_call(build: Callable[[], Any], plan: Any, layers: str) -> None:
    model, inputs = make(build), prompt()
    real = inputs["attention_mask"].bool()
    with torch.no_grad(), attnkit.swap(model, {layers: plan}, accept="different"):
        whole = model(**inputs, use_cache=False).logits
        cache = transformers.DynamicCache(config=model.config)
        parts = [
            model(
                input_ids=inputs["input_ids"][:, cut],
                attention_mask=inputs["attention_mask"][:, : cut.stop],
                position_ids=inputs["position_ids"][:, cut],
                past_key_values=cache,
            ).logits
            for cut in CUTS
        ]
    assert furthest(whole[real], torch.cat(parts, dim=1)[real]) < CLOSE


@pytest.mark.parametrize("layers", ["*", "layers.1"])
def test_steps_on_a_static_cache_equal_one_call(plan: Any, layers: str) -> None:
    model, ids = make(), prompt(padded=0)["input_ids"]
    with torch.no_grad(), attnkit.swap(model, {layers: plan}, accept="different"):
        whole = model(ids, use_cache=False).logits
        cache = transformers.StaticCache(config=model.config, max_cache_len=32)
        parts = [model(ids[:, cut], past_key_values=cache).logits for cut in CUTS]
    assert furthest(whole, torch.cat(parts, dim=1)) < CLOSE


def greedy(model: Any, inputs: dict[str, torch.Tensor], steps: int) -> torch.Tensor:
    """Return the tokens that whole forward passes, without a cache, choose one after the other."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(steps):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        with torch.no_grad():
            following = model(ids, **given).logits[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, following], 1), torch.cat([mask, torch.ones_like(following)], 1)
    return ids


@pytest.mark.parametrize(
    ("name", "layers"), [*((name, "*") for name in PLANS), ("window", "*"), ("linear", "layers.0")]
)
def test_generated_tokens_of_a_padded_batch_are_those_of_whole_passes(
    name: str, layers: str
) -> None:
    model, inputs = make(), prompt()
    wanted = {layers: WINDOW if name == "window" else PLANS[name]}
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with attnkit.swap(model, wanted, accept="different"):
        tokens = model.generate(**given, do_sample=False, max_new_tokens=10)
        assert torch.equal(tokens, greedy(model, inputs, 10))


def test_window_generates_what_the_model_that_has_it_generates() -> None:
    model, twin = make(mistral), mistral(window=6).eval().double()
    twin.load_state_dict(model.state_dict())
    inputs = prompt()
    del inputs["position_ids"]
    rules = {"do_sample": False, "max_new_tokens": 12}
    before = model.generate(**inputs, **rules)
    with attnkit.swap(model, WINDOW, accept="different") as swapped:
        after = model.generate(**inputs, **rules)
    assert torch.equal(after, twin.generate(**inputs, **rules))
    assert not torch.equal(after, before)
    assert all((site.drift or 0) > 0.05 for site in swapped.receipt.sites)


def test_beams_take_their_states_along(plan: Any) -> None:
    model, inputs = make(), prompt()
    del inputs["position_ids"]
    rules: Any = {"do_sample": False, "num_beams": 3, "max_new_tokens": 8}
    with attnkit.swap(model, plan, accept="different"):
        cached = model.generate(**inputs, **rules)
        assert torch.equal(cached, model.generate(**inputs, **rules, use_cache=False))


def test_padding_does_not_change_the_other_tokens(plan: Any) -> None:
    model, inputs = make(), prompt()
    alone = {name: given[:1, 4:] for name, given in inputs.items()}
    with torch.no_grad(), attnkit.swap(model, plan, accept="different"):
        padded = model(**inputs).logits[:1, 4:]
        assert furthest(padded, model(**alone).logits) < CLOSE


def test_later_tokens_do_not_reach_earlier_logits(plan: Any) -> None:
    model, ids = make(), prompt(padded=0)["input_ids"]
    other = ids.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 97
    with torch.no_grad(), attnkit.swap(model, plan, accept="different"):
        one, two = model(ids).logits, model(other).logits
    assert furthest(one[:, :9], two[:, :9]) < CLOSE
    assert furthest(one[:, 9:], two[:, 9:]) > 1e-2


def test_cache_holds_a_state_of_constant_size_instead_of_keys(plan: Any) -> None:
    model, ids = make(), prompt(padded=0)["input_ids"]
    with torch.no_grad(), attnkit.swap(model, {"layers.0": plan}, accept="different"):
        cache = model(ids).past_key_values
        size = cache.layers[0].state.nbytes()
        model(ids, past_key_values=cache)
    assert cache.get_seq_length() == 34
    assert cache.layers[0].state.nbytes() == size
    assert cache.layers[0].keys is None
    assert cache.layers[1].keys.shape[2] == 34


def test_verification_runs_with_the_cache_that_the_swap_leaves() -> None:
    model, ran = make(), []

    def note(module: Any, args: Any, out: Any) -> None:
        ran.append([type(layer).__name__ for layer in out.past_key_values.layers])

    hook = model.register_forward_hook(note)
    attnkit.swap(model, {"layers.0": "flash", "layers.1": "linear"}, accept="different")
    hook.remove()
    assert ran[0] == ["DynamicLayer", "DynamicLayer"]
    assert ran[-1] == ["DynamicLayer", "StateLayer"]


def test_exact_swaps_put_no_hook_before_a_layer_at_any_time() -> None:
    model, hooks = make(), []

    def note(module: Any, args: Any) -> None:
        hooks.extend(len(layer.self_attn._forward_pre_hooks) for layer in module.model.layers)

    hook = model.register_forward_pre_hook(note)
    attnkit.swap(model, "flash")
    hook.remove()
    assert set(hooks) == {0}


def test_cache_from_before_the_swap_is_refused() -> None:
    model, ids = make(), prompt(padded=0)["input_ids"]
    cache = model(ids).past_key_values
    with (
        attnkit.swap(model, "linear", accept="different"),
        pytest.raises(StateError, match="layer 0 of the cache holds 17 tokens as keys and values"),
    ):
        model(ids, past_key_values=cache)


def test_taking_tokens_out_of_a_state_is_refused() -> None:
    model, ids = make(), prompt(padded=0)["input_ids"]
    with torch.no_grad(), attnkit.swap(model, "linear", accept="different"):
        cache = model(ids).past_key_values
        with pytest.raises(StateError, match="cannot take 3 tokens out of a recurrent state"):
            cache.crop(-3)


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
