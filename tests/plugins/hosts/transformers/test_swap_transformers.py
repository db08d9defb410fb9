"""Variants in transformers models, by name: same outputs, every layer reached, masks kept.

The models are tiny and random. Where a test compares numbers itself, the model is in float64:
rounding is then about 1e-15 per operation, and 1e-9 lies far above what it can add up to here and
far below what a lost mask, window, cap or sink would do (1e-2 and more, see the last tests).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import CLOSE, GQA, SMALL, furthest, lively

import attnkit
from attnkit.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tiny_models import Exact


def bert() -> Any:
    return transformers.BertModel(transformers.BertConfig(**SMALL))


def gpt2() -> Any:
    sizes: Any = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    tokens: Any = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tokens))


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA))


def mistral() -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**GQA, sliding_window=6))


def gemma2() -> Any:
    heads: Any = {"head_dim": 16, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 0.5}
    config = transformers.Gemma2Config(**GQA, **heads, sliding_window=6)
    return transformers.Gemma2ForCausalLM(config)


def falcon() -> Any:
    return transformers.FalconForCausalLM(transformers.FalconConfig(**SMALL, alibi=True))


def gpt_oss() -> Any:
    experts: Any = {"num_local_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 2}
    rope: Any = {"rope_type": "default", "rope_theta": 1e4}
    config = transformers.GptOssConfig(
        **GQA, **experts, head_dim=16, sliding_window=6, rope_parameters=rope
    )
    model: Any = transformers.GptOssForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    return model


def vit() -> Any:
    sizes: Any = {"hidden_size": 64, "intermediate_size": 96, "image_size": 32, "patch_size": 8}
    layers: Any = {"num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, **layers))


def t5() -> Any:
    sizes: Any = {"vocab_size": 97, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2}
    config = transformers.T5Config(**sizes, num_heads=4)
    return transformers.T5ForConditionalGeneration(config)


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "bert": (bert, 2),
    "gpt2": (gpt2, 2),
    "llama": (llama, 2),
    "mistral": (mistral, 2),
    "gemma2": (gemma2, 2),
    "gpt_oss": (gpt_oss, 2),
    "vit": (vit, 2),
    "t5": (t5, 6),
}


def prompt(model: Any, *, side: str = "left") -> dict[str, torch.Tensor]:
    """Return two prompts of 17 tokens, the first with 4 of them padding."""
    ids = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    padding = slice(0, 4) if side == "left" else slice(13, 17)
    ids[0, padding], mask[0, padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", MODELS)
def test_exact_variant_passes_verification_in_every_layer(name: str, exact: Exact) -> None:
    build, sites = MODELS[name]
    receipt = attnkit.swap(lively(build, exact.dtype), exact.variant).receipt
    assert [site.calls > 0 for site in receipt.sites] == [True] * sites


@pytest.mark.parametrize("own", ["eager", "sdpa"])
@pytest.mark.parametrize("build", [bert, gpt2, llama, mistral], ids=lambda b: b.__name__)
def test_real_tokens_are_computed_alike_under_both_implementations_of_the_model(
    build: Callable[[], Any], own: str
) -> None:
    # float32: in float64, eager's own mask overflows to NaN where its softmax is in float32
    model = lively(build)
    model.set_attn_implementation(own)
    inputs = prompt(model, side="right" if build is bert else "left")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        before = model(**inputs)[0][real]
        with attnkit.swap(model, "multi_head"):
            after = model(**inputs)[0][real]
    # a hundred roundings of 6e-8, relative
    assert furthest(before, after) < 6e-6 * float(before.abs().max())


@pytest.mark.parametrize("build", [gpt2, llama, mistral, gemma2, gpt_oss], ids=lambda b: b.__name__)
def test_greedy_generation_of_a_padded_batch_is_equal_token_for_token(
    build: Callable[[], Any],
) -> None:
    model = lively(build)
    inputs = prompt(model)
    rules = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
    before = model.generate(**inputs, **rules)
    with attnkit.swap(model, "flash"):
        after = model.generate(**inputs, **rules)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    "plan",
    ["multi_head", {"variant": "sliding_window", "window_size": 6}],
    ids=["full", "windowed"],
)
def test_chunks_and_steps_on_a_static_cache_equal_one_call(plan: Any) -> None:
    model = lively(llama, torch.float64)
    ids = prompt(model)["input_ids"]
    with torch.no_grad(), attnkit.swap(model, plan, accept="different"):
        whole = model(ids, use_cache=False).logits
        cache = transformers.StaticCache(config=model.config, max_cache_len=32)
        cuts = [slice(0, 9), slice(9, 15), slice(15, 16), slice(16, 17)]
        parts = [model(ids[:, cut], past_key_values=cache).logits for cut in cuts]
    assert furthest(whole, torch.cat(parts, dim=1)) < CLOSE


def test_packed_documents_stay_apart() -> None:
    model = lively(llama, torch.float64)
    ids = prompt(model)["input_ids"][1:]
    positions = torch.cat([torch.arange(7), torch.arange(10)])[None]
    with torch.no_grad(), attnkit.swap(model, "multi_head"):
        packed = model(ids, position_ids=positions, use_cache=False).logits[:, 7:]
        alone = model(ids[:, 7:], use_cache=False).logits
    assert furthest(packed, alone) < CLOSE


def test_gradients_of_all_parameters_are_those_of_the_model() -> None:
    model = lively(mistral, torch.float64)
    inputs = prompt(model)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**inputs).logits[inputs["attention_mask"].bool()].square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    before = gradients()
    with attnkit.swap(model, "multi_head"):
        after = gradients()
    largest = max(float(g.abs().max()) for g in before.values())
    assert max(furthest(before[n], after[n]) for n in before) < CLOSE * largest


def test_dropout_of_the_model_reaches_the_variant_in_training() -> None:
    torch.manual_seed(0)
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    inputs = prompt(model)
    with attnkit.swap(model, "multi_head"), torch.no_grad():
        model.train()
        assert furthest(model(**inputs).logits, model(**inputs).logits) > 1e-3


def test_autocast_casts_as_the_model_does() -> None:
    model = lively(llama)
    inputs = prompt(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(**inputs).logits
        swapped = attnkit.swap(model, {"layers.*": "multi_head"}, sample=inputs)
        after = model(**inputs).logits
    swapped.restore()
    # one bfloat16 rounding of a value of this size, times the two layers' handful of roundings
    assert furthest(before, after) < 8 * 2.0**-8 * float(before.abs().max())
    # both are measured on what they multiply, inputs that autocast has rounded already
    assert max(site.error_before or 0 for site in swapped.receipt.sites) < 1


@pytest.mark.parametrize(
    ("build", "side", "causal", "parts"),
    [
        (bert, "right", False, {"padding"}),
        (llama, "left", True, {"padding"}),
        (llama, "right", True, {"padding"}),
        (mistral, "left", True, {"padding", "window"}),
        (gpt_oss, "left", True, {"padding", "window"}),
    ],
)
def test_masks_arrive_as_named_parts(
    spy: Any, build: Callable[[], Any], side: str, causal: bool, parts: set[str]
) -> None:
    model = lively(build)
    inputs = prompt(model, side=side)
    with torch.no_grad(), attnkit.swap(model, {"*.0": "spy"}):
        spy.calls.clear()
        model(**inputs)
    assert [(c["mask"].is_causal, set(c["mask"].parts)) for c in spy.calls] == [(causal, parts)]


def test_float_mask_with_other_numbers_becomes_a_bias() -> None:
    model = lively(bert, torch.float64)
    model.set_attn_implementation("eager")
    ids = prompt(model)["input_ids"]
    numbers = torch.randn(2, 1, 17, 17, generator=torch.Generator().manual_seed(2)).double()
    numbers[:, :, :, 14:] = torch.finfo(torch.float64).min
    with torch.no_grad():
        before = model(ids, attention_mask=numbers)[0]
        with attnkit.swap(model, "multi_head"):
            after = model(ids, attention_mask=numbers)[0]
    assert furthest(before, after) < CLOSE


def test_mask_changed_in_place_between_two_calls_is_read_again() -> None:
    model = lively(bert, torch.float64)
    ids = prompt(model)["input_ids"]
    seen = torch.ones(2, 1, 17, 17, dtype=torch.bool)
    with torch.no_grad(), attnkit.swap(model, "multi_head"):
        first = model(ids, attention_mask=seen)[0]
        seen[:, :, :, 9:] = False
        second = model(ids, attention_mask=seen)[0]
        fresh = model(ids, attention_mask=seen.clone())[0]
    assert torch.equal(second, fresh)
    assert furthest(first, second) > 1e-3


def test_window_on_a_model_without_one_makes_the_model_that_has_it() -> None:
    model = lively(llama, torch.float64)
    twin = mistral().eval().double()
    twin.load_state_dict(model.state_dict())
    inputs = prompt(model)
    plan = {"variant": "sliding_window", "window_size": 6}
    swapped = attnkit.swap(model, plan, accept="different")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        out, wanted = model(**inputs).logits[real], twin(**inputs).logits[real]
    assert furthest(out, wanted) < CLOSE
    assert {site.relation for site in swapped.receipt.sites} == {"different"}


def test_drift_of_a_different_variant_is_measured_on_the_sample() -> None:
    model = lively(llama, torch.float64)
    inputs = prompt(model)
    real = inputs["attention_mask"].bool()
    plan = {"variant": "sliding_window", "window_size": 6}
    with torch.no_grad():
        before = model(**inputs).logits[real]
        swapped = attnkit.swap(model, plan, accept="different", sample=inputs)
        after = model(**inputs).logits[real]
    told = {out.name: out for out in swapped.receipt.outputs}["logits"]
    assert told.largest == pytest.approx(furthest(before, after))
    assert told.relative > 1e-3


def test_sliding_window_is_exact_where_the_layer_has_that_window() -> None:
    receipt = attnkit.swap(lively(mistral), "sliding_window").receipt
    assert {site.relation for site in receipt.sites} == {"exact"}
    assert max(site.error_after for site in receipt.sites) < 3


@pytest.mark.parametrize("keyword", ["my_extra_argument", "output_attentions", "cu_seq_lens_q"])
def test_keyword_without_translation_is_refused_by_name(keyword: str) -> None:
    model = lively(llama)
    with attnkit.swap(model, "flash"), pytest.raises(UnsupportedError, match=keyword):
        model(**prompt(model), **{keyword: torch.ones(1)})


WEIGHTS = "output_attentions: needs attention weights"


@pytest.mark.parametrize("build", [bert, gpt2, llama, vit, t5])
def test_attention_weights_are_refused_by_name_whoever_is_asked(build: Any) -> None:
    model = lively(build)
    model.set_attn_implementation("eager")
    asked = {"input_ids": prompt(model)["input_ids"]}
    if build is vit:
        asked = {"pixel_values": torch.randn(1, 3, 32, 32)}
    elif build is t5:
        asked["decoder_input_ids"] = asked["input_ids"]
    swapped = attnkit.swap(model, "multi_head")
    with pytest.raises(UnsupportedError, match=WEIGHTS):
        model(**asked, output_attentions=True)
    model.config.output_attentions = True
    with pytest.raises(UnsupportedError, match=WEIGHTS):
        model(**asked)
    model(**asked, output_attentions=False)
    swapped.restore()
    out = model(**asked, output_attentions=True)
    assert len(out["encoder_attentions" if build is t5 else "attentions"]) == 2


def test_layer_that_would_go_past_the_variant_for_its_weights_is_refused() -> None:
    model = lively(falcon)
    with attnkit.swap(model, "multi_head"), pytest.raises(UnsupportedError, match=WEIGHTS):
        model(**prompt(model), output_attentions=True)
    assert len(model(**prompt(model), output_attentions=True).attentions) == 2


def test_weights_are_refused_as_long_as_one_layer_of_one_swap_is_there() -> None:
    model = lively(gpt2)
    first = attnkit.swap(model, {"*.0.attn": "flash"})
    second = attnkit.swap(model, {"*.1.attn": "multi_head"})
    for swapped in (second, first):
        with pytest.raises(UnsupportedError, match=WEIGHTS):
            model(**prompt(model), output_attentions=True)
        swapped.restore()
    model(**prompt(model), output_attentions=True)


def test_swapped_model_compiles_into_one_graph() -> None:
    model = lively(llama)
    ids = prompt(model)["input_ids"]
    with torch.no_grad(), attnkit.swap(model, "multi_head"):
        expected = model(ids, use_cache=False).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        out = compiled(ids, use_cache=False).logits
    # float32, logits of order 10: a hundred roundings of 6e-8 relative
    assert furthest(out, expected) < 1e-4
