"""Forward passes of whole models of real size, swapped and as they were.

The weights are random: they do not change what a forward pass costs. The two models of a
comparison hold the same weights, and their outputs are compared before they are timed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from rounds import Comparison, compare
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
)

import attnkit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One model, swapped in one way.

    Attributes:
        name: What the row says.
        config: Its configuration.
        lengths: In tokens, each with the dtypes it is measured in.
        plan: Of the swap.
        settings: Further arguments of ``from_config``.
    """

    name: str
    config: PretrainedConfig
    lengths: tuple[int, ...]
    plan: Any
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    settings: Mapping[str, str] = field(default_factory=dict)


LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
"""The shapes of Llama 3.2 1B: https://huggingface.co/meta-llama/Llama-3.2-1B."""

MISTRAL = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
}
"""The shapes of Mistral 7B v0.1, whose layers see a window, and of Mixtral 8x7B."""


CASES: Mapping[str, Case] = {
    "llama": Case(
        "Llama 1B, 16 layers, `flash`",
        LlamaConfig(num_hidden_layers=16, **LLAMA_1B),
        (1, 128, 512, 2048),
        "flash",
    ),
    "llama_long": Case(
        "Llama 1B, 2 of 16 layers, `flash`",
        LlamaConfig(num_hidden_layers=2, **LLAMA_1B),
        (8192,),
        "flash",
    ),
    "mistral": Case(
        "Mistral 7B, 1 of 32 layers, window 1024, `sliding_window`",
        MistralConfig(num_hidden_layers=1, sliding_window=1024, **MISTRAL),
        (8192,),
        "sliding_window",
    ),
    "mixtral": Case(
        "Mixtral 8x7B at a quarter of its widths, 2 of 32 layers, `moe` and `flash`",
        MixtralConfig(
            num_hidden_layers=2,
            num_local_experts=8,
            num_experts_per_tok=2,
            **{**MISTRAL, "hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 8},
        ),
        (1, 512, 2048),
        {"*.self_attn": "flash", "*.experts": "moe"},
        dtypes=(torch.float32,),
        settings={"experts_implementation": "eager"},
    ),
}


def whole_model(case: Case, device: str, rounds: int) -> list[tuple[str, Comparison]]:
    """Compare a model with itself, swapped."""
    rows = []
    for dtype in case.dtypes:
        theirs, ours = (_model(case, device, dtype) for _ in range(2))
        # the very same tensors: where weights lie in memory moves a pass by 1 %
        ours.load_state_dict(theirs.state_dict(), assign=True)
        attnkit.swap(ours, case.plan)
        for length in case.lengths:
            tokens = torch.randint(0, case.config.vocab_size, (1, length), device=device)
            functions = {
                "as it was": lambda tokens=tokens, theirs=theirs: _logits(theirs, tokens),
                "swapped": lambda tokens=tokens, ours=ours: _logits(ours, tokens),
            }
            _agree(*(run() for run in functions.values()))
            few = max(3, rounds // (3 if length < 2048 else 5))
            found = compare("as it was", functions, rounds=few, device=device)
            named = str(dtype).removeprefix("torch.")
            rows.append((f"{named}, L = {length}", found))
            sys.stderr.write(f"{case.name}, {named}, L = {length}: {found.ratios['swapped']}\n")
    return rows


def _model(case: Case, device: str, dtype: torch.dtype) -> nn.Module:
    # transformers leaves it untyped
    model: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        case.config, dtype=dtype, **case.settings
    )
    return model.eval().to(device)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens, logits_to_keep=1, use_cache=False).logits
    return logits


def _agree(theirs: Tensor, ours: Tensor) -> None:
    """Raise unless two outputs are close enough to be of one model; `attnkit.swap` judged them."""
    off = float((theirs - ours).double().norm() / theirs.double().norm())
    if not off < torch.finfo(theirs.dtype).eps ** 0.5:
        raise AssertionError(f"the swapped model's logits are off by {off:.2g} of their size")
