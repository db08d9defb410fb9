"""Recurrences of transformers on an empty batch: a reshape cannot tell the size of an axis."""

import inspect

import torch
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule


def attempt(what: str, function: object, *given: object, **named: object) -> None:
    """Say what comes out."""
    try:
        out = function(*given, **named)  # type: ignore[operator]  # one of two functions
    except RuntimeError as error:
        print(what, "raises:", error)
    else:
        print(what, "gives", tuple(out[0].shape))


for batch in (1, 0):
    x = torch.randn(batch, 5, 2, 4)
    gate = torch.rand(batch, 5, 2)
    scan = inspect.unwrap(mamba2_chunk_scan)
    attempt(f"B={batch}: mamba2_chunk_scan", scan, x, gate, -torch.ones(2), x, x, chunk_size=4)
    rule = inspect.unwrap(torch_chunk_gated_delta_rule)
    attempt(f"B={batch}: torch_chunk_gated_delta_rule", rule, x, x, x, -gate, gate)
