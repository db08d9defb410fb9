# ruff: noqa: C408  # tables of arguments read better as dict(name=value)
"""Implementations that nobody here wrote, as functions, and how each is declared.

`generate_findings` runs the suite on them. A wrapper below only renames, packs and unpacks: what
computes is the library's own code, at the place that `Foreign.source` names.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention

from attnkit_contracts import adapt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from attnkit import Variant

MASKS = "dense, padding, window, documents, prefix, blocks, union"
NO_GRADIENTS = f"causal, bidirectional, cross, value_width, scale, {MASKS}, deterministic"
ALL = f"{NO_GRADIENTS}, gradients"
FLOATS = "float64, float32, bfloat16, float16"


@dataclass(frozen=True)
class Foreign:
    """One implementation.

    Attributes:
        name: Of the variant that is made of it.
        package: Whose version is told.
        source: Where its code is.
        function: Imports what is called; of a layer, what makes it.
        declared: Keywords of `attnkit_contracts.adapt`, of a layer of `adapt_layer`.
    """

    name: str
    package: str
    source: str
    function: Callable[[], Callable[..., Any]]
    declared: Mapping[str, Any] = field(default_factory=dict)

    def variant(self) -> Variant:
        """Make the variant."""
        return adapt(self.function(), name=self.name, **self.declared)


def _backend(backend: SDPBackend) -> Callable[..., Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value, **named)

    return attend


def _flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        bias: Tensor | None = None,
        softcap: float | None = None,
        **named: Any,
    ) -> Tensor:
        def changed(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            if bias is not None:
                score = score + bias.expand(*query.shape[:3], key.shape[2])[b, h, i, j]
            if attn_mask is not None:
                seen = attn_mask.expand(*query.shape[:3], key.shape[2])[b, h, i, j]
                score = torch.where(seen, score, -float("inf"))
            return score

        out: Tensor = flex_attention(query, key, value, score_mod=changed, **named)
        return out

    return attend


def _torch_multi_head(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """Call torch's functional multi-head attention with unit matrices for projections."""
    batch, heads, length, width = query.shape
    joined = heads * width

    def packed(tensor: Tensor) -> Tensor:  # (L, B, H * E)
        return tensor.permute(2, 0, 1, 3).reshape(tensor.shape[2], batch, joined)

    one = torch.eye(joined, dtype=query.dtype, device=query.device)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(batch, heads, length, key.shape[2])
        attn_mask = attn_mask.reshape(batch * heads, length, key.shape[2])
    out, _ = multi_head_attention_forward(
        packed(query),
        packed(key),
        packed(value),
        joined,
        heads,
        None,
        None,
        None,
        None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=one,
        out_proj_bias=None,
        need_weights=False,
        attn_mask=attn_mask,
        use_separate_proj_weight=True,
        q_proj_weight=one,
        k_proj_weight=one,
        v_proj_weight=one,
    )
    return out.reshape(length, batch, heads, width).permute(1, 2, 0, 3)


def _of_transformers(
    find: Callable[[], Callable[..., Any]], *, always_sinks: bool = False
) -> Callable[[], Callable[..., Any]]:
    """Return an attention function of transformers, with a stand-in for its module."""

    def found() -> Callable[..., Any]:
        attend = find()

        def called(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            sinks: Tensor | None = None,
            **named: Any,
        ) -> Tensor:
            module = nn.Module()
            module.num_key_value_groups = query.shape[1] // key.shape[1]
            module.head_dim = query.shape[3]
            module.is_causal = False
            # as models do: every mask has all queries and keys
            if attn_mask is not None:
                attn_mask = attn_mask.expand(len(query), -1, -1, -1)
            if sinks is None and always_sinks:
                # a sink that weighs nothing
                sinks = query.new_full((query.shape[1],), torch.finfo(query.dtype).min)
            module.sinks = sinks
            return attend(module.eval(), query, key, value, attn_mask, **named)[0]

        return called

    return found


def _model(name: str, attribute: str = "eager_attention_forward") -> Callable[[], Any]:
    def find() -> Any:
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        return getattr(module, attribute)

    return find


def _integration(name: str, attribute: str) -> Callable[[], Any]:
    def find() -> Any:
        return getattr(importlib.import_module(f"transformers.integrations.{name}"), attribute)

    return find


def _x_transformers() -> Callable[..., Tensor]:
    from x_transformers.attend import Attend

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        out: Tensor = Attend(causal=causal, scale=scale).eval()(
            query, key, value, mask=attn_mask, attn_bias=attn_bias
        )[0]
        return out

    return attend


def _gated_delta_rule(attribute: str) -> Callable[[], Callable[..., Any]]:
    def found() -> Callable[..., Any]:
        # where flash-linear-attention is installed, the name stands for its Triton kernel
        run = inspect.unwrap(_model("qwen3_next", attribute)())

        def called(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Any:
            g = named.pop("g", None)
            g = torch.zeros(value.shape[:3], dtype=value.dtype) if g is None else g
            return run(query, key, value, g, output_final_state=True, **named)

        return called

    return found


def _mamba2() -> Callable[..., Any]:
    scan = inspect.unwrap(_model("mamba2", "mamba2_chunk_scan")())

    def called(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor | None = None, **named: Any
    ) -> tuple[Tensor, Tensor]:
        ones = torch.ones(value.shape[:3], dtype=torch.float32, device=value.device)
        logs = torch.zeros_like(ones) if g is None else g
        # dt = 1 and A per token: then dt A is the decay, and dt x the value
        out, state = scan(
            value,
            ones,
            logs,
            key,
            query,
            chunk_size=16,
            initial_states=named["initial_state"].mT,
            return_final_states=True,
        )
        return out.to(value.dtype), state.mT

    return called


def _fla(module: str, attribute: str, **fixed: Any) -> Callable[[], Callable[..., Any]]:
    def found() -> Callable[..., Any]:
        run = getattr(importlib.import_module(f"fla.ops.{module}.naive"), attribute)

        def called(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Any:
            return run(query, key, value, output_final_state=True, **fixed, **named)

        return called

    return found


SDPA = dict(
    causal_argument="is_causal",
    causal_corner="upper_left",
    gqa_argument="enable_gqa",
    dropout_argument="dropout_p",
)
EAGER = dict(mask="additive_min", output_layout="BLHE", scale_argument="scaling")
STATE = "causal, scale, state, value_width, gradients, deterministic"
LOW = "float32, bfloat16, float16"
FLA = dict(family="recurrence", layout="BLHE")

FOREIGN: tuple[Foreign, ...] = (
    Foreign("torch_sdpa", "torch", "torch.nn.functional.scaled_dot_product_attention",
            lambda: scaled_dot_product_attention,
            dict(SDPA, promises=f"{ALL}, gqa, dropout, {FLOATS}")),
    Foreign("torch_sdpa_math", "torch", "scaled_dot_product_attention, SDPBackend.MATH",
            lambda: _backend(SDPBackend.MATH),
            dict(SDPA, promises=f"{ALL}, gqa, dropout, {FLOATS}")),
    Foreign("torch_sdpa_flash", "torch", "scaled_dot_product_attention, SDPBackend.FLASH_ATTENTION",
            lambda: _backend(SDPBackend.FLASH_ATTENTION),
            dict(SDPA, promises=f"{ALL}, gqa, {FLOATS}".replace("value_width, ", ""))),
    Foreign("torch_sdpa_additive", "torch", "scaled_dot_product_attention, additive masks",
            lambda: scaled_dot_product_attention,
            dict(SDPA, mask="additive", promises=f"{ALL}, gqa, bias, dropout, {FLOATS}")),
    Foreign("torch_flex", "torch", "torch.nn.attention.flex_attention.flex_attention, eager", _flex,
            # it has no backward on the CPU
            dict(promises=f"{NO_GRADIENTS}, gqa, bias, softcap, float32, bfloat16",
                 bias_argument="bias", softcap_argument="softcap", gqa_argument="enable_gqa")),
    Foreign("torch_multi_head", "torch", "torch.nn.functional.multi_head_attention_forward",
            lambda: _torch_multi_head,
            dict(mask="hidden", scale_argument=None,
                 promises=f"causal, bidirectional, cross, {MASKS}, gradients, deterministic, "
                          f"{FLOATS}")),
    Foreign("llama_eager", "transformers", "models.llama.modeling_llama.eager_attention_forward",
            _of_transformers(_model("llama")), dict(EAGER, promises=f"{ALL}, gqa, bias, {FLOATS}")),
    Foreign("bert_eager", "transformers", "models.bert.modeling_bert.eager_attention_forward",
            _of_transformers(_model("bert")), dict(EAGER, promises=f"{ALL}, bias, {FLOATS}")),
    Foreign("gemma2_eager", "transformers", "models.gemma2.modeling_gemma2.eager_attention_forward",
            _of_transformers(_model("gemma2")),
            dict(EAGER, softcap_argument="softcap",
                 promises=f"{ALL}, gqa, bias, softcap, {FLOATS}")),
    Foreign("gpt_oss_eager", "transformers",
            "models.gpt_oss.modeling_gpt_oss.eager_attention_forward",
            _of_transformers(_model("gpt_oss"), always_sinks=True),
            dict(EAGER, sinks_argument="sinks",
                 promises=f"{ALL}, gqa, bias, sinks, {FLOATS}")),
    Foreign("transformers_sdpa", "transformers",
            "integrations.sdpa_attention.sdpa_attention_forward",
            _of_transformers(_integration("sdpa_attention", "sdpa_attention_forward")),
            dict(EAGER, promises=f"{ALL}, gqa, bias, {FLOATS}")),
    Foreign("x_transformers", "x-transformers", "x_transformers.attend.Attend", _x_transformers,
            dict(promises=f"{ALL}, gqa, bias, {FLOATS}", bias_argument="attn_bias",
                 causal_argument="causal")),
    Foreign("qwen3_next_recurrent", "transformers",
            "models.qwen3_next.modeling_qwen3_next.torch_recurrent_gated_delta_rule",
            _gated_delta_rule("torch_recurrent_gated_delta_rule"),
            dict(FLA, scale_argument=None, own_scale="width", always=("beta",),
                 promises=f"{STATE}, gqa, beta, none, head, {LOW}")),
    Foreign("qwen3_next_chunked", "transformers",
            "models.qwen3_next.modeling_qwen3_next.torch_chunk_gated_delta_rule",
            _gated_delta_rule("torch_chunk_gated_delta_rule"),
            dict(FLA, scale_argument=None, own_scale="width", always=("beta",),
                 promises=f"{STATE}, gqa, beta, none, head, {LOW}")),
    Foreign("mamba2_chunk_scan", "transformers",
            "models.mamba2.modeling_mamba2.mamba2_chunk_scan", _mamba2,
            dict(FLA, scale_argument=None, promises=f"{STATE}, gqa, none, head, {LOW}")),
    Foreign("fla_gla", "fla-core", "fla.ops.gla.naive.naive_recurrent_gla",
            _fla("gla", "naive_recurrent_gla"),
            dict(FLA, decay_argument="gk", scale_argument=None, own_scale="width",
                 promises=f"{STATE}, channel, {LOW}")),
    Foreign("fla_simple_gla", "fla-core", "fla.ops.simple_gla.naive.naive_recurrent_simple_gla",
            _fla("simple_gla", "naive_recurrent_simple_gla"),
            dict(FLA, promises=f"{STATE}, head, {LOW}")),
    Foreign("fla_chunk_simple_gla", "fla-core", "fla.ops.simple_gla.naive.naive_chunk_simple_gla",
            _fla("simple_gla", "naive_chunk_simple_gla", chunk_size=16),
            dict(FLA, promises=f"{STATE}, head, {LOW}")),
    Foreign("fla_linear", "fla-core", "fla.ops.linear_attn.naive.naive_recurrent_linear_attn",
            _fla("linear_attn", "naive_recurrent_linear_attn"),
            dict(FLA, promises=f"{STATE}, none, {LOW}")),
    Foreign("fla_delta_rule", "fla-core", "fla.ops.delta_rule.naive.delta_rule_recurrence",
            _fla("delta_rule", "delta_rule_recurrence"),
            dict(family="recurrence", scale_argument=None, own_scale="width", always=("beta",),
                 promises=f"{STATE}, none, beta, {LOW}")),
    Foreign("fla_gated_delta_rule", "fla-core",
            "fla.ops.gated_delta_rule.naive.naive_recurrent_gated_delta_rule",
            _fla("gated_delta_rule", "naive_recurrent_gated_delta_rule"),
            dict(FLA, always=("beta",), promises=f"{STATE}, head, beta, {LOW}")),
    Foreign("fla_kda", "fla-core", "fla.ops.kda.naive.naive_recurrent_kda",
            _fla("kda", "naive_recurrent_kda"),
            dict(FLA, always=("beta",), promises=f"{STATE}, gqa, channel, beta, {LOW}")),
)  # fmt: skip
"""In the order of the page."""
