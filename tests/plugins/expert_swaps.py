"""Models whose dense layers experts may replace, and models that have experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from small_llama import prompt
from tiny_models import GQA, spread

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: dict[str, Any] = {**GQA, "eos_token_id": None}
UPCYCLED: Any = {"*.mlp": {"variant": "moe", "num_experts": 4, "top_k": 2}}
PATHS = ("model.layers.0.mlp", "model.layers.1.mlp")
RULES: Any = {"do_sample": False, "max_new_tokens": 8}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def mistral() -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL))


def qwen3() -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, head_dim=16))


def phi3() -> Any:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**SMALL, sliding_window=None))


def gemma() -> Any:
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**SMALL, head_dim=16))


def gpt2() -> Any:
    sizes: Any = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, vocab_size=97))


def biased() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, mlp_bias=True))


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, num_local_experts=4))


def qwen3_moe() -> Any:
    experts: Any = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    config = transformers.Qwen3MoeConfig(**SMALL, **experts, head_dim=16)
    return transformers.Qwen3MoeForCausalLM(config)


def gpt_oss() -> Any:
    experts: Any = {"num_local_experts": 4, "num_experts_per_tok": 2}
    rope: Any = {"rope_type": "default", "rope_theta": 1e4}
    config = transformers.GptOssConfig(**SMALL, **experts, head_dim=16, rope_parameters=rope)
    return transformers.GptOssForCausalLM(config)


def make(build: Callable[[], Any] = llama, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    model = spread(build().eval(), axes=(2, 3))
    if dtype == torch.float64:
        # transformers' grouped products know no float64
        model.set_experts_implementation("eager")
    return model.to(dtype)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(**prompt(), use_cache=False).logits
    return out
