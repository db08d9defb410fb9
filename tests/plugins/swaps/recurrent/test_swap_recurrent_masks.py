"""Masks of the user's own before a recurrence, which is causal: what sees later keys is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_llama import INPUTS, build
from tiny_models import CLOSE, furthest

import attnkit
from attnkit.errors import SwapRefusedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

IDS = INPUTS["input_ids"][:, :12]
ALL = torch.ones(2, 1, 12, 12, dtype=torch.bool)
LATER = {
    "all": ALL,
    "one mask for all samples": ALL[:1],
    "padding in one row": ALL[:, :, :1].clone().index_fill_(3, torch.tensor([0, 1]), False),
    "prefix": ALL.tril() | (torch.arange(12) < 4),
    "one later key in one sample": ALL.tril()
    .clone()
    .index_put_(tuple(map(torch.tensor, (1, 0, 4, 5))), torch.tensor(True)),
    "documents": torch.block_diag(torch.ones(5, 5), torch.ones(7, 7)).bool().expand(2, 1, -1, -1),
}
TOLD = "attention_mask: .* lets a query see later keys, a recurrence has none; hide them"


@pytest.fixture(params=["linear", "gated_linear", "state_space"])
def model(request: Any) -> Iterator[Any]:
    model = build()
    with torch.no_grad(), attnkit.swap(model, request.param, accept="different"):
        yield model


def adding(seen: torch.Tensor) -> torch.Tensor:
    """Return a mask as it is added to logits."""
    lowest = torch.finfo(torch.float64).min
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, lowest)


@pytest.mark.parametrize("name", LATER)
@pytest.mark.parametrize("adds", [False, True], ids=["bool", "float"])
def test_mask_by_which_a_query_sees_later_keys_is_refused(
    model: Any, name: str, adds: bool
) -> None:
    mask = adding(LATER[name]) if adds else LATER[name]
    with pytest.raises(UnsupportedError, match=TOLD):
        model(IDS, attention_mask=mask, use_cache=False)


@pytest.mark.parametrize("adds", [False, True], ids=["bool", "float"])
def test_causal_mask_of_the_users_own_is_that_of_the_model(model: Any, adds: bool) -> None:
    real = INPUTS["attention_mask"][:, :12]
    seen = ALL.tril() & real.bool()[:, None, None]
    mask = adding(seen) if adds else seen
    found = model(IDS, attention_mask=mask, use_cache=False).logits
    wanted = model(IDS, attention_mask=real, use_cache=False).logits
    assert furthest(found[real.bool()], wanted[real.bool()]) < CLOSE


def test_later_keys_of_a_chunk_after_a_cache_are_refused_and_earlier_ones_taken(
    model: Any,
) -> None:
    wanted = model(IDS, use_cache=False).logits[:, 5:]
    for mask in (ALL.tril()[:, :, 5:], ALL[:, :, 5:]):
        cache = model(IDS[:, :5], use_cache=True).past_key_values
        if mask.all():
            with pytest.raises(UnsupportedError, match=TOLD):
                model(IDS[:, 5:], attention_mask=mask, past_key_values=cache)
        else:
            found = model(IDS[:, 5:], attention_mask=mask, past_key_values=cache).logits
            assert furthest(found, wanted) < CLOSE


def test_single_token_sees_all_keys(model: Any) -> None:
    wanted = model(IDS, use_cache=False).logits[:, 11:]
    cache = model(IDS[:, :11], use_cache=True).past_key_values
    found = model(IDS[:, 11:], attention_mask=adding(ALL[:, :, 11:]), past_key_values=cache).logits
    assert furthest(found, wanted) < CLOSE


def test_sample_whose_mask_shows_later_keys_refuses_the_swap() -> None:
    sample = {"input_ids": IDS, "attention_mask": adding(ALL), "use_cache": False}
    with pytest.raises(SwapRefusedError, match=TOLD):
        attnkit.swap(build(), "linear", accept="different", sample=sample)
