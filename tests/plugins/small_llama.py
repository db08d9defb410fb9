"""A small Llama, in float64 unless told otherwise, and what tests ask of it.

See `tiny_models` for its sizes and for how its numbers are compared.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny_models import GQA, furthest, lively
from torch.distributed.tensor import DTensor


def build(dtype: torch.dtype = torch.float64) -> Any:
    return lively(lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA)), dtype)


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


def furthest_of(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest number."""
    assert one.keys() == other.keys()
    largest = max(float(each.abs().max()) for each in one.values())
    return max(furthest(one[name], other[name]) for name in one) / largest
