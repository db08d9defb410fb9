"""Masks that a user changes or learns, cached chunks with padding, and masks while compiling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_models import CLOSE, SMALL, furthest

import attnkit
from attnkit.errors import SwapRefusedError, UnsupportedError

WINDOW: Any = {"variant": "sliding_window", "window_size": 3}
IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(1))


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval().double()


def mistral() -> Any:
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4)
    return transformers.MistralForCausalLM(config).eval().double()


@pytest.mark.parametrize("way", ["numpy", "data"])
def test_mask_changed_between_two_calls_is_read_anew(way: str) -> None:
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    model, plain = llama(), llama()
    attnkit.swap(model, "multi_head")
    with torch.no_grad():
        before = model(IDS, attention_mask=mask).logits
        (mask.numpy() if way == "numpy" else mask.data)[0, 0, 1:, 0] = False
        after = model(IDS, attention_mask=mask).logits
        assert furthest(before, after) > 1e-3
        assert furthest(after, plain(IDS, attention_mask=mask).logits) < CLOSE


def test_mask_changed_between_two_models_is_read_anew() -> None:
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    one, other, plain = llama(), llama(), llama()
    for model in (one, other):
        attnkit.swap(model, "multi_head")
    with torch.no_grad():
        one(IDS, attention_mask=mask)
        mask.data[0, 0, 1:, 0] = False
        found = other(IDS, attention_mask=mask).logits
        assert furthest(found, plain(IDS, attention_mask=mask).logits) < CLOSE


def test_mask_of_queries_and_keys_in_a_sample_is_verified_without_a_next_step() -> None:
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    sample = {"input_ids": IDS, "attention_mask": mask.expand(2, 1, 12, 12)}
    outputs = attnkit.swap(llama(), "multi_head", sample=sample).receipt.outputs
    assert [out.name for out in outputs] == ["logits"]


@pytest.mark.parametrize("plan", ["multi_head", "linear"])
def test_bool_mask_that_the_model_would_add_to_its_logits_is_refused_by_name(plan: str) -> None:
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    # float32: in float64 the model itself makes NaN of padding
    model = llama().float()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        plain = model(IDS).logits
        # the model is wrong with it: nothing is hidden
        assert furthest(model(IDS, attention_mask=mask).logits, plain) > 1e-2
        with (
            attnkit.swap(model, plan, accept="different"),
            pytest.raises(UnsupportedError, match="attention_mask: bool, which the model adds"),
        ):
            model(IDS, attention_mask=mask)
        model.set_attn_implementation("sdpa")
        with attnkit.swap(model, "multi_head"):
            assert furthest(model(IDS, attention_mask=mask).logits, plain) < 1e-4


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_learned_mask_gets_its_gradient_in_every_step(start: float) -> None:
    learned = torch.full((1, 1, 12, 12), start, dtype=torch.float64)
    later = torch.ones(12, 12, dtype=torch.bool).triu(1)
    mask = torch.nn.Parameter(learned.masked_fill(later, torch.finfo(learned.dtype).min))
    model = llama()

    def gradient() -> torch.Tensor:
        loss = model(IDS, attention_mask=mask, labels=IDS).loss
        return torch.autograd.grad(loss, mask)[0]

    wanted = gradient()
    assert float(wanted.abs().max()) > 0
    attnkit.swap(model, "multi_head")
    with torch.no_grad():
        model(IDS, attention_mask=mask)
    for _ in range(2):
        assert furthest(gradient(), wanted) < CLOSE


def test_padding_after_a_chunk_is_no_empty_end_of_a_cache() -> None:
    model = llama()
    attnkit.swap(model, WINDOW, accept="different")
    real = torch.ones_like(IDS)
    real[:, 10:] = 0
    with torch.no_grad():
        whole = model(IDS).logits
        cache = model(IDS[:, :5], use_cache=True).past_key_values
        chunk = model(IDS[:, 5:], past_key_values=cache, attention_mask=real).logits
    assert furthest(chunk[:, :5], whole[:, 5:10]) < CLOSE


def test_window_over_the_keys_of_an_encoder_is_refused() -> None:
    config = transformers.BertConfig(**SMALL, is_decoder=True, add_cross_attention=True)
    model = transformers.BertModel(config).eval()
    sample = {"input_ids": IDS, "encoder_hidden_states": torch.randn(2, 5, 64)}
    plan = {"*.crossattention.self": WINDOW}
    with pytest.raises(SwapRefusedError, match=r"crossattention\.self[^!]*cross-attention"):
        attnkit.swap(model, plan, accept="different", sample=sample)


def test_window_over_as_many_keys_of_an_encoder_is_refused_too() -> None:
    config = transformers.BartConfig(
        vocab_size=97,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_position_embeddings=64,
    )
    model = transformers.BartForConditionalGeneration(config).eval()
    sample = {"input_ids": IDS, "decoder_input_ids": IDS}
    plan = {"*.encoder_attn": WINDOW}
    with pytest.raises(SwapRefusedError, match="cross-attention"):
        attnkit.swap(model, plan, accept="different", sample=sample)


@pytest.mark.parametrize("padded", [False, True])
def test_model_with_a_window_compiles_whole(padded: bool) -> None:
    model = mistral()
    attnkit.swap(model, "sliding_window")
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    real = torch.ones_like(IDS)
    real[0, : 3 * padded] = 0
    with torch.no_grad():
        found = compiled(IDS, attention_mask=real, use_cache=False).logits
        wanted = model(IDS, attention_mask=real, use_cache=False).logits
    assert furthest(found[real.bool()], wanted[real.bool()]) < CLOSE


def test_model_with_a_window_compiles_whole_over_a_static_cache() -> None:
    model = mistral()
    attnkit.swap(model, "sliding_window")
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    cache = transformers.StaticCache(config=model.config, max_cache_len=24)
    with torch.no_grad():
        wanted = model(IDS, use_cache=False).logits[:, -1:]
        model(IDS[:, :-1], past_key_values=cache)
        found = compiled(IDS[:, -1:], past_key_values=cache).logits
    assert furthest(found, wanted) < CLOSE
