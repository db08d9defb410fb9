# ruff: noqa: C408  # tables of arguments read better as dict(name=value)
"""Layers that nobody here wrote, and how each is declared; see `foreign_functions`.

A wrapper below only makes what a model would make for its layer, a configuration say, or the
angles of positions. What computes is the library's own code.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from borrowed import of_tests
from foreign_functions import FLOATS, MASKS, Foreign
from torch import Tensor, nn

from attnkit_contracts import adapt_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit import Variant

WIDTH, HEADS = 32, 4


class ForeignLayer(Foreign):
    """One that is a layer."""

    def variant(self) -> Variant:
        """Make the variant."""
        return adapt_layer(self.function(), name=self.name, **self.declared)


def _model(name: str, **options: Any) -> Any:
    """Make a model of transformers of one block, with the weights that it begins with."""
    import transformers

    options = {"vocab_size": 8, "num_hidden_layers": 1, "hidden_size": WIDTH, **options}
    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}Model")(config)


class Rotated(nn.Module):
    """An attention layer of transformers with the rotary positions of its model."""

    def __init__(self, layer: nn.Module, rotary: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.rotary = rotary

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Attend, from position 0 on."""
        positions = torch.arange(x.shape[1], device=x.device)[None]
        out: Tensor = self.layer(
            x, position_embeddings=self.rotary(x, positions), attention_mask=attention_mask
        )[0]
        return out


def llama(attention_dropout: float = 0.0, implementation: str = "sdpa") -> nn.Module:
    """Make the attention of Llama, two heads per key/value head."""
    model = _model("Llama", num_attention_heads=HEADS, num_key_value_heads=2, intermediate_size=8,
                   attn_implementation=implementation,
                   attention_dropout=attention_dropout)  # fmt: skip
    return Rotated(model.layers[0].self_attn, model.rotary_emb)


def gpt_oss(attention_dropout: float = 0.0) -> nn.Module:
    """Make the attention of gpt-oss, whose sinks take part of every row."""
    model = _model("GptOss", num_attention_heads=HEADS, num_key_value_heads=2, head_dim=8,
                   num_local_experts=2, intermediate_size=8, layer_types=["full_attention"],
                   attn_implementation="eager",
                   attention_dropout=attention_dropout)  # fmt: skip
    return Rotated(model.layers[0].self_attn, model.rotary_emb)


def bert(attention_probs_dropout_prob: float = 0.0) -> nn.Module:
    """Make the self-attention of BERT."""
    model = _model("Bert", num_attention_heads=HEADS, intermediate_size=8,
                   attention_probs_dropout_prob=attention_probs_dropout_prob)  # fmt: skip
    made: nn.Module = model.encoder.layer[0].attention.self
    return made


def mamba() -> nn.Module:
    """Make the mixer of Mamba."""
    made: nn.Module = _model("Mamba", state_size=8).layers[0].mixer
    return made


def mamba2() -> nn.Module:
    """Make the mixer of Mamba-2."""
    model = _model("Mamba2", num_heads=4, head_dim=16, state_size=8, n_groups=2, chunk_size=16)
    made: nn.Module = model.layers[0].mixer
    return made


def qwen3_next() -> nn.Module:
    """Make the gated delta rule of Qwen3-Next."""
    modeling = importlib.import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    rule = "torch_chunk_gated_delta_rule"
    # where flash-linear-attention is installed, the name stands for its Triton kernel
    setattr(modeling, rule, inspect.unwrap(getattr(modeling, rule)))
    model = _model("Qwen3Next", linear_num_value_heads=4, linear_num_key_heads=2,
                   linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2,
                   layer_types=["linear_attention"], num_attention_heads=HEADS,
                   num_key_value_heads=2, head_dim=8, moe_intermediate_size=8,
                   shared_expert_intermediate_size=8, intermediate_size=8)  # fmt: skip
    made: nn.Module = model.layers[0].linear_attn
    return made


def lfm2() -> nn.Module:
    """Make the gated short convolution of LFM2."""
    model = _model("Lfm2", num_attention_heads=HEADS, num_key_value_heads=2, intermediate_size=8,
                   layer_types=["conv"])  # fmt: skip
    made: nn.Module = model.layers[0].conv
    return made


class Griffin(nn.Module):
    """The recurrent block of RecurrentGemma, from position 0 on."""

    def __init__(self) -> None:
        super().__init__()
        model = _model("RecurrentGemma", num_attention_heads=HEADS, num_key_value_heads=1,
                       lru_width=WIDTH, intermediate_size=8, block_types=["recurrent"])  # fmt: skip
        self.block = model.layers[0].temporal_block

    def forward(self, x: Tensor) -> Tensor:
        """Mix."""
        positions = torch.arange(x.shape[1], device=x.device)[None]
        out: Tensor = self.block(x, positions, None, use_cache=False)[0]
        return out


def rwkv() -> nn.Module:
    """Make the attention of RWKV."""
    model = _model("Rwkv", context_length=64, num_hidden_layers=2)
    made: nn.Module = model.blocks[0].attention
    return made


def _timm() -> Callable[..., nn.Module]:
    made: Callable[..., nn.Module] = of_tests("timm_alone").timm.layers.Attention
    return made


def _x_transformers() -> Callable[..., nn.Module]:
    made: Callable[..., nn.Module] = importlib.import_module("x_transformers").Attention
    return made


PLAIN = "gradients, deterministic"
BOTH = f"causal, bidirectional, {PLAIN}"
RECURRENT = dict(padding="integer", padding_argument="attention_mask",
                 promises=f"causal, padding, {PLAIN}, {FLOATS}")  # fmt: skip
ADDED = dict(mask="additive_min", mask_argument="attention_mask",
             promises=f"{BOTH}, {MASKS}, dropout, {FLOATS}")  # fmt: skip

FOREIGN_LAYERS: tuple[ForeignLayer, ...] = (
    ForeignLayer("torch_mha_layer", "torch", "torch.nn.MultiheadAttention",
            lambda: nn.MultiheadAttention,
            dict(construct=dict(embed_dim=WIDTH, num_heads=HEADS, batch_first=True),
                 x_arguments=("query", "key", "value"), fixed=dict(need_weights=False),
                 padding="hidden", padding_argument="key_padding_mask",
                 mask="hidden", mask_argument="attn_mask", mask_shape="BLS", mask_heads=HEADS,
                 dropout_argument="dropout", promises=f"{BOTH}, {MASKS}, dropout, {FLOATS}")),
    ForeignLayer("torch_mha_weights", "torch", "torch.nn.MultiheadAttention, need_weights",
            lambda: nn.MultiheadAttention,
            dict(construct=dict(embed_dim=WIDTH, num_heads=HEADS, batch_first=True),
                 x_arguments=("query", "key", "value"),
                 padding="hidden", padding_argument="key_padding_mask",
                 mask="hidden", mask_argument="attn_mask", mask_shape="BLS", mask_heads=HEADS,
                 dropout_argument="dropout", promises=f"{BOTH}, {MASKS}, dropout, {FLOATS}")),
    ForeignLayer("torch_encoder_layer", "torch", "torch.nn.TransformerEncoderLayer",
            lambda: nn.TransformerEncoderLayer,
            dict(construct=dict(d_model=WIDTH, nhead=HEADS, dim_feedforward=64, dropout=0.0,
                                batch_first=True),
                 padding="hidden", padding_argument="src_key_padding_mask",
                 mask="hidden", mask_argument="src_mask", mask_shape="BLS", mask_heads=HEADS,
                 dropout_argument="dropout", promises=f"{BOTH}, {MASKS}, dropout, {FLOATS}")),
    ForeignLayer("torch_gru", "torch", "torch.nn.GRU", lambda: nn.GRU,
            dict(construct=dict(input_size=WIDTH, hidden_size=WIDTH, batch_first=True),
                 promises=f"causal, {PLAIN}, {FLOATS}")),
    ForeignLayer("torch_lstm", "torch", "torch.nn.LSTM", lambda: nn.LSTM,
            dict(construct=dict(input_size=WIDTH, hidden_size=WIDTH), layout="LBD",
                 promises=f"causal, {PLAIN}, {FLOATS}")),
    ForeignLayer("timm_attention", "timm", "timm.layers.Attention",
            _timm,
            dict(construct=dict(dim=WIDTH, num_heads=HEADS), mask_argument="attn_mask",
                 causal_argument="is_causal", dropout_argument="attn_drop",
                 promises=f"{BOTH}, {MASKS}, dropout, {FLOATS}")),
    ForeignLayer("llama_attention", "transformers", "models.llama.modeling_llama.LlamaAttention, sdpa",
            lambda: llama,
            dict(ADDED, dropout_argument="attention_dropout",
                 promises=f"causal, {PLAIN}, {MASKS}, dropout, {FLOATS}")),
    ForeignLayer("llama_attention_eager", "transformers",
            "models.llama.modeling_llama.LlamaAttention, eager", lambda: llama,
            dict(ADDED, construct=dict(implementation="eager"),
                 dropout_argument="attention_dropout")),
    ForeignLayer("gpt_oss_attention", "transformers", "models.gpt_oss.modeling_gpt_oss.GptOssAttention",
            lambda: gpt_oss,
            dict(ADDED, dropout_argument="attention_dropout")),
    ForeignLayer("bert_attention", "transformers", "models.bert.modeling_bert.BertSelfAttention",
            lambda: bert,
            dict(ADDED, dropout_argument="attention_probs_dropout_prob")),
    ForeignLayer("mamba_mixer", "transformers", "models.mamba.modeling_mamba.MambaMixer",
            lambda: mamba, dict(RECURRENT)),
    ForeignLayer("mamba2_mixer", "transformers", "models.mamba2.modeling_mamba2.Mamba2Mixer",
            lambda: mamba2, dict(RECURRENT)),
    ForeignLayer("qwen3_next_delta_net", "transformers",
            "models.qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet", lambda: qwen3_next,
            dict(RECURRENT)),
    ForeignLayer("lfm2_short_conv", "transformers", "models.lfm2.modeling_lfm2.Lfm2ShortConv",
            lambda: lfm2, dict(RECURRENT)),
    ForeignLayer("recurrent_gemma_block", "transformers",
            "models.recurrent_gemma.modeling_recurrent_gemma.RecurrentGemmaRecurrentBlock",
            lambda: Griffin, dict(promises=f"causal, {PLAIN}, {FLOATS}")),
    ForeignLayer("rwkv_attention", "transformers", "models.rwkv.modeling_rwkv.RwkvSelfAttention",
            lambda: rwkv, dict(promises=f"causal, {PLAIN}, {FLOATS}")),
    ForeignLayer("x_transformers_attention", "x-transformers", "x_transformers.Attention",
            _x_transformers,
            dict(construct=dict(dim=WIDTH, heads=HEADS, dim_head=8),
                 padding_argument="mask", mask_argument="attn_mask", dropout_argument="dropout",
                 promises=f"{BOTH}, {MASKS}, dropout, {FLOATS}")),
    ForeignLayer("x_transformers_causal", "x-transformers", "x_transformers.Attention, causal",
            _x_transformers,
            dict(construct=dict(dim=WIDTH, heads=HEADS, dim_head=8, causal=True),
                 padding_argument="mask", mask_argument="attn_mask", dropout_argument="dropout",
                 promises=f"causal, {PLAIN}, {MASKS}, dropout, {FLOATS}")),
)  # fmt: skip
"""In the order of the page."""
