"""What `attnkit.survey` says of transformers' layers: feed-forward parts and cross-attention."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import SMALL

import attnkit
from attnkit.errors import SwapRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
ONE_LAYER: dict[str, Any] = {**SMALL, **SIZES}
TWO_STACKS: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}


def bert() -> Any:
    config = transformers.BertConfig(**ONE_LAYER, is_decoder=True, add_cross_attention=True)
    return transformers.BertModel(config)


def albert() -> Any:
    return transformers.AlbertModel(transformers.AlbertConfig(**ONE_LAYER, embedding_size=16))


def opt() -> Any:
    config = transformers.OPTConfig(**ONE_LAYER, ffn_dim=48, word_embed_proj_dim=32)
    return transformers.OPTModel(config)


def bart() -> Any:
    return transformers.BartModel(transformers.BartConfig(**TWO_STACKS)).eval()


def whisper() -> Any:
    tokens: Any = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    config = transformers.WhisperConfig(**TWO_STACKS, **tokens, decoder_start_token_id=1)
    return transformers.WhisperModel(config)


def t5() -> Any:
    sizes: Any = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return transformers.T5Model(transformers.T5Config(vocab_size=97, **sizes))


def gpt2() -> Any:
    sizes: Any = {"n_embd": 32, "n_layer": 1, "n_head": 4, "add_cross_attention": True}
    tokens: Any = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2Model(transformers.GPT2Config(vocab_size=97, **sizes, **tokens))


def distilbert() -> Any:
    sizes: Any = {"dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4}
    return transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=97, **sizes))


def named(build: Callable[[], Any]) -> str:
    return build.__name__


@pytest.mark.parametrize(
    ("build", "path", "told"),
    [
        (t5, "decoder.block.0.layer.2.DenseReluDense", "embed_dim 32, hidden_dim 48, ReLU"),
        (gpt2, "h.0.mlp", "embed_dim 32, hidden_dim 128, NewGELUActivation"),
        (distilbert, "transformer.layer.0.ffn", "embed_dim 32, hidden_dim 48, GELUActivation"),
    ],
    ids=["t5", "gpt2", "distilbert"],
)
def test_module_that_is_a_whole_feed_forward_part_is_a_site(
    build: Callable[[], Any], path: str, told: str
) -> None:
    found = {site.path: site for site in attnkit.survey(build())}
    assert found[path].kind == "feedforward"
    assert str(found[path].needs) == told
    assert found[path].obstacle is None


@pytest.mark.parametrize(
    ("build", "path", "told"),
    [
        (bert, "encoder.layer.0.intermediate", "BertLayer .* 'intermediate' and 'output'"),
        (albert, "encoder.albert_layer_groups.0.albert_layers.0.ffn", "'ffn' and 'ffn_output'"),
        (opt, "decoder.layers.0.fc1", "OPTDecoderLayer .* 'fc1' and 'fc2'"),
        (bart, "encoder.layers.0.fc1", "BartEncoderLayer .* 'fc1' and 'fc2'"),
        (whisper, "decoder.layers.0.fc1", "WhisperDecoderLayer .* 'fc1' and 'fc2'"),
    ],
    ids=["bert", "albert", "opt", "bart", "whisper"],
)
def test_feed_forward_part_that_is_no_module_is_refused_with_its_layer(
    build: Callable[[], Any], path: str, told: str
) -> None:
    model = build()
    assert path in {site.path for site in attnkit.survey(model)}
    with pytest.raises(SwapRefusedError, match=f"(?s){path}.*{told}, there is no one module"):
        attnkit.swap(model, {"variant": "moe", "num_experts": 2})


@pytest.mark.parametrize(
    ("build", "crossing"),
    [
        (bert, "encoder.layer.0.crossattention.self"),
        (bart, "decoder.layers.0.encoder_attn"),
        (whisper, "decoder.layers.0.encoder_attn"),
        (t5, "decoder.block.0.layer.1.EncDecAttention"),
        (gpt2, "h.0.crossattention"),
    ],
    ids=["bert", "bart", "whisper", "t5", "gpt2"],
)
def test_survey_tells_cross_attention_from_self_attention(
    build: Callable[[], Any], crossing: str
) -> None:
    sites = [site for site in attnkit.survey(build()) if site.kind == "attention"]
    assert len(sites) > 1
    assert [site.path for site in sites if site.needs.cross] == [crossing]


def test_variant_that_promises_no_cross_attention_is_refused_before_the_model_runs() -> None:
    model = bart()
    full = attnkit.get_variant("multi_head")
    square = dataclasses.replace(
        full, name="square", promises=full.promises.model_copy(update={"cross": False})
    )
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    told = r"refused at 1 site.*\n  decoder\.layers\.0\.encoder_attn\n    cross: .*'square'"
    with pytest.raises(SwapRefusedError, match=told):
        attnkit.swap(model, square)
    assert not calls


@pytest.mark.parametrize("plan", [{"variant": "flash", "window_size": 4}, "sliding_window"])
def test_window_in_cross_attention_is_refused_before_the_model_runs(plan: Any) -> None:
    model, calls = bart(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(SwapRefusedError, match=r"encoder_attn\n[^!]*window_size: in cross-att"):
        attnkit.swap(model, {"*.encoder_attn": plan}, accept="different")
    assert not calls


def test_plan_can_leave_cross_attention_out() -> None:
    def beside(site: attnkit.swaps.api.Site) -> Any:
        return None if site.needs.cross or site.kind != "attention" else "flash"

    torch.manual_seed(0)
    receipt = attnkit.swap(bart(), beside).receipt
    told = [site.path for site in receipt.sites]
    assert told == ["encoder.layers.0.self_attn", "decoder.layers.0.self_attn"]


def test_recurrence_in_cross_attention_is_refused_by_name() -> None:
    with pytest.raises(SwapRefusedError, match="cross: the layer is cross-attention, 'linear'"):
        attnkit.swap(bart(), {"*.encoder_attn": "linear"}, accept="different")
