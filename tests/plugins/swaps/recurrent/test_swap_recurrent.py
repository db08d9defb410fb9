"""Other mathematics in place of a model's attention: by the user's word, measured, with states.

The models are tiny and random, in float64 where a test compares numbers itself: rounding is then
about 1e-15 per operation (states included), and 1e-9 lies far above what it can add up to here and
far below what a lost token, a lost state or a leak would do (1e-2 and more).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from recurrent_swaps import PLANS, WINDOW, llama, make, mistral, mixing, prompt, qwen3
from tiny_models import CLOSE, furthest

import attnkit
from attnkit.errors import StateError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable


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
