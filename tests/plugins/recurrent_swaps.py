"""Models whose attention a recurrence may replace, the plans that do it, and padded prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from tiny_models import GQA, lively
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

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
