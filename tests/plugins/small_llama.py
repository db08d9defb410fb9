"""A small Llama, in float64 unless told otherwise, and what tests ask of it.

Its weights are larger than transformers makes them: tokens must differ in what they make of each
other. Numbers that come about in two ways are then `CLOSE`: far above rounding, about 1e-15 per
operation, and far below any mistake.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch.distributed.tensor import DTensor

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CLOSE = 1e-9


def build(dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval().to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def prompt() -> dict[str, torch.Tensor]:
    """Return two prompts of 17 tokens, the first with 4 of padding before it."""
    ids = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[0, :4], mask[0, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


INPUTS = prompt()
REAL = INPUTS["attention_mask"].bool()


def logits(model: Any) -> torch.Tensor:
    """Return the logits of the real tokens."""
    with torch.no_grad():
        out: torch.Tensor = model(**INPUTS, use_cache=False).logits[REAL]
    return out


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Return the gradients of all parameters that have one."""
    model.zero_grad()
    model(**INPUTS, use_cache=False).logits[REAL].square().mean().backward()
    whole = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in whole.items()}


def furthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def furthest_of(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest number."""
    assert one.keys() == other.keys()
    largest = max(float(each.abs().max()) for each in one.values())
    return max(furthest(one[name], other[name]) for name in one) / largest
