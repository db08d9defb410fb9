"""Models of float64 whose library rounds to float32 inside: softmax, norms, whole layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import GQA, SMALL, lively

import attnkit
from attnkit.errors import VerificationError
from attnkit.operations.attention import attention

if TYPE_CHECKING:
    from torch import Tensor

EAGER: Any = {**GQA, "attn_implementation": "eager"}


def bloom() -> Any:
    sizes: Any = {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 97}
    return transformers.BloomForCausalLM(transformers.BloomConfig(**sizes, pad_token_id=0))


MODELS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**EAGER)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**EAGER)),
    "bert": lambda: transformers.BertModel(
        transformers.BertConfig(**SMALL, attn_implementation="eager")
    ),
    "bloom": bloom,
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_more_exact_than_the_model_is_exact(name: str) -> None:
    (*_, site) = attnkit.swap(lively(MODELS[name], torch.float64), "flash").receipt.sites
    assert site.error_after <= 2.0


def nearly(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Attend with a scale that is a thousandth too large."""
    scale = query.shape[-1] ** -0.5 if given["scale"] is None else given["scale"]
    return attention(query, key, value, **{**given, "scale": 1.001 * scale})


@pytest.mark.parametrize("name", MODELS)
def test_what_is_wrong_is_found(name: str) -> None:
    base = attnkit.get_variant("multi_head")
    own = replace(base.implementations[0], name="own", function=nearly)
    variant = replace(base, name="near", implementations=(base.implementations[0], own))
    plan: Any = {"*": {"variant": variant, "implementation": "own"}}
    with pytest.raises(VerificationError, match=r"near.own is off by"):
        attnkit.swap(lively(MODELS[name], torch.float64), plan)
