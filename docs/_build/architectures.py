"""Tiny random models of many architectures, for the table that `generate_matrix.py` makes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import transformers
from borrowed import of_tests
from torch import nn

import attnkit
from attnkit.swaps.api import Needs

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: dict[str, Any] = of_tests("tiny_models").SMALL
GQA: dict[str, Any] = of_tests("tiny_models").GQA
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WINDOW = 6


class Projected(nn.Module):
    """Projections around an ``attend`` that the subclasses have."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(64, 192)
        self.out = nn.Linear(64, 64)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """Return query, key and value, (B, H, L, E) each."""
        return self.qkv(x).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)

    def joined(self, mixed: torch.Tensor) -> torch.Tensor:
        """(B, H, L, E) to (B, L, D)."""
        out: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class OwnAttention(Projected):
    """Causal attention of one's own; its arithmetic is in ``attend``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the tokens, (B, L, D)."""
        return self.joined(self.attend(*self.heads(x)))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend causally, (B, H, L, E)."""
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        logits = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[3])).masked_fill(~seen, -math.inf)
        return logits.softmax(dim=-1) @ v


class CallingAttention(Projected):
    """The same, by torch's own function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the tokens, (B, L, D)."""
        q, k, v = self.heads(x)
        return self.joined(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


def own_method() -> nn.Module:
    """Return two layers with a declared method."""
    needs = Needs(heads=4, kv_heads=4, head_dim=16, causal=True)
    attnkit.declare(OwnAttention, method="attend", query="q", key="k", value="v", needs=needs)
    return nn.Sequential(OwnAttention(), OwnAttention())


def hugging(name: str, **sizes: Any) -> Callable[[], nn.Module]:
    """Return a builder of a transformers model."""
    config = name.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    if name.endswith("LMHeadModel"):
        config = name.removesuffix("LMHeadModel")
    elif config == name:
        config = name.removesuffix("Model")

    def build() -> nn.Module:
        settings = getattr(transformers, f"{config}Config")(**sizes)
        model: nn.Module = getattr(transformers, name)(settings)
        return model

    return build


def gemma3(**sizes: Any) -> Callable[[], nn.Module]:
    """Return a builder of Gemma 3's text model."""
    kinds = ["sliding_attention", "full_attention"]
    return lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**sizes, layer_types=kinds)
    )


def encoder() -> nn.Module:
    """Return torch's encoder."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 96, batch_first=True), 2)


def decoder() -> nn.Module:
    """Return torch's decoder."""
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(64, 4, 96), 2)


def swin() -> nn.Module:
    """Return timm's Swin, with shifted windows."""
    sizes: Any = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "window_size": 4}
    make: Callable[..., nn.Module] = of_tests("timm_alone").timm.models.SwinTransformer
    return make(**sizes, depths=(2, 2), num_heads=(2, 4), num_classes=5)


def vit() -> nn.Module:
    """Return timm's ViT."""
    sizes: Any = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
    make: Callable[..., nn.Module] = of_tests("timm_alone").timm.models.VisionTransformer
    return make(**sizes, num_classes=5)


_GEMMA: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 32, "sliding_window": WINDOW}
_GPT: dict[str, Any] = {
    "vocab_size": 97,
    "n_positions": 64,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
}
_MPT: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "max_seq_len": 64,
    "expansion_ratio": 2,
}
_BART: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size": 97,
}
_MIXED: dict[str, Any] = {
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}

ARCHITECTURES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "Bert": ("transformers", hugging("BertModel", **SMALL)),
    "ViT": (
        "transformers",
        hugging("ViTModel", **{**SMALL, "image_size": 32, "patch_size": 8, "hidden_act": "gelu"}),
    ),
    "GPT-2": (
        "transformers",
        hugging(
            "GPT2LMHeadModel", n_positions=64, n_embd=64, n_layer=2, n_head=4, vocab_size=97, **ENDS
        ),
    ),
    "Llama, GQA": ("transformers", hugging("LlamaForCausalLM", **GQA)),
    "Mistral, window": (
        "transformers",
        hugging("MistralForCausalLM", **GQA, sliding_window=WINDOW),
    ),
    "Gemma 2, soft cap": (
        "transformers",
        hugging("Gemma2ForCausalLM", **GQA, **_GEMMA, attn_logit_softcapping=0.5),
    ),
    "Gemma 3": ("transformers", gemma3(**GQA, **_GEMMA)),
    "gpt-oss, sinks": (
        "transformers",
        hugging(
            "GptOssForCausalLM",
            **GQA,
            **EXPERTS,
            head_dim=16,
            sliding_window=WINDOW,
            eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
    ),
    "Qwen3": ("transformers", hugging("Qwen3ForCausalLM", **GQA, head_dim=16)),
    "Qwen3-Next": ("transformers", hugging("Qwen3NextForCausalLM", **GQA, **_MIXED)),
    "Mixtral": ("transformers", hugging("MixtralForCausalLM", **GQA, **EXPERTS)),
    "Phi-3": ("transformers", hugging("Phi3ForCausalLM", **GQA, bos_token_id=1, eos_token_id=2)),
    "T5, position bias": (
        "transformers",
        hugging(
            "T5ForConditionalGeneration",
            vocab_size=97,
            d_model=64,
            d_kv=16,
            d_ff=96,
            num_layers=2,
            num_heads=4,
        ),
    ),
    "BART": (
        "transformers",
        hugging("BartForConditionalGeneration", **_BART, **ENDS, max_position_embeddings=64),
    ),
    "Whisper": (
        "transformers",
        hugging(
            "WhisperForConditionalGeneration",
            **_BART,
            **ENDS,
            decoder_start_token_id=1,
            num_mel_bins=8,
            max_source_positions=16,
            max_target_positions=64,
        ),
    ),
    "Falcon, ALiBi": (
        "transformers",
        hugging("FalconForCausalLM", **SMALL, alibi=True, multi_query=True),
    ),
    "Bloom, ALiBi": (
        "transformers",
        hugging("BloomForCausalLM", vocab_size=97, hidden_size=64, n_layer=2, n_head=4),
    ),
    "MPT, ALiBi": (
        "transformers",
        hugging("MptForCausalLM", **_MPT, **ENDS),
    ),
    "GPT-J": ("transformers", hugging("GPTJForCausalLM", **_GPT, rotary_dim=8, **ENDS)),
    "CodeGen": ("transformers", hugging("CodeGenForCausalLM", **_GPT, rotary_dim=8, **ENDS)),
    "GPT-Neo, window": (
        "transformers",
        hugging(
            "GPTNeoForCausalLM",
            vocab_size=97,
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            intermediate_size=96,
            attention_types=[[["global", "local"], 1]],
            window_size=WINDOW,
            max_position_embeddings=64,
            **ENDS,
        ),
    ),
    "MPNet, position bias": ("transformers", hugging("MPNetModel", **SMALL)),
    "DeBERTa-v2": (
        "transformers",
        hugging(
            "DebertaV2Model",
            **SMALL,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            position_buckets=8,
        ),
    ),
    "XGLM": (
        "transformers",
        hugging(
            "XGLMForCausalLM",
            vocab_size=97,
            d_model=64,
            ffn_dim=96,
            num_layers=2,
            attention_heads=4,
            **ENDS,
        ),
    ),
    "nn.MultiheadAttention": ("torch", lambda: nn.MultiheadAttention(64, 4)),
    "nn.MultiheadAttention, one head": ("torch", lambda: nn.MultiheadAttention(64, 1)),
    "nn.TransformerEncoder": ("torch", encoder),
    "nn.TransformerDecoder": ("torch", decoder),
    "ViT (timm)": ("timm", vit),
    "Swin (timm)": ("timm", swin),
    "own module, declared method": ("own", own_method),
    "own module, torch's function": (
        "own",
        lambda: nn.Sequential(CallingAttention(), CallingAttention()),
    ),
}
"""Who can receive a variant there, and what builds the model; by name."""


def sample_for(name: str) -> dict[str, torch.Tensor] | None:
    """Return inputs for a model that attnkit makes none for."""
    generator = torch.Generator().manual_seed(0)
    if name.startswith("own"):
        return {"input": torch.randn(2, 17, 64, generator=generator)}
    if name == "Whisper":
        ids = torch.randint(3, 97, (2, 9), generator=generator)
        features = torch.randn(2, 8, 32, generator=generator)
        return {"input_features": features, "decoder_input_ids": ids}
    return None
