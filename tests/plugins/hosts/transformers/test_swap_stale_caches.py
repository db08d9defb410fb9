"""Caches that outlive what filled them: a state goes on with its own variant, or not at all."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import transformers
from small_llama import INPUTS, build
from tiny_models import CLOSE, furthest

import attnkit
from attnkit.errors import StateError

IDS = INPUTS["input_ids"][1:]
RECURRENCES = ("linear", "gated_linear", "state_space")
WINDOW = {"variant": "sliding_window", "window_size": 6}


def filled(model: Any, plan: Any) -> Any:
    """Return the cache of a model that is swapped for one call."""
    with torch.no_grad(), attnkit.swap(model, plan, accept="different"):
        return model(IDS, use_cache=True).past_key_values


def step(model: Any, cache: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS[:, :1], past_key_values=cache).logits
    return logits


@pytest.mark.parametrize("variant", RECURRENCES)
@pytest.mark.parametrize("layers", ["*", "layers.1"])
def test_state_is_refused_by_the_restored_model(variant: str, layers: str) -> None:
    model = build()
    cache = filled(model, {layers: variant})
    index = 0 if layers == "*" else 1
    told = (
        f"past_key_values: layer {index} of the cache holds 17 tokens as the state of '{variant}', "
        f"which does not stand in the model's layer; start with a new cache, or swap '{variant}' in"
    )
    with pytest.raises(StateError, match=told):
        step(model, cache)


def test_restored_model_does_not_generate_from_a_state() -> None:
    model = build()
    cache = filled(model, "gated_linear")
    more = torch.cat([IDS, IDS[:, :1]], 1)
    with pytest.raises(StateError, match="start with a new cache"):
        model.generate(more, past_key_values=cache, max_new_tokens=2, do_sample=False)


def test_restored_model_refuses_the_emptied_cache_too() -> None:
    # it would lose the keys of every call but the last
    model = build()
    cache = filled(model, "gated_linear")
    cache.reset()
    with pytest.raises(StateError, match="layer 0 of the cache holds 0 tokens"):
        step(model, cache)


def test_state_in_a_static_cache_is_refused_by_the_restored_model() -> None:
    model = build()
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad(), attnkit.swap(model, "linear", accept="different"):
        model(IDS, past_key_values=cache)
    with pytest.raises(StateError, match="layer 0 of the cache holds 17 tokens"):
        step(model, cache)


def test_state_is_refused_by_a_window_on_top_of_its_variant() -> None:
    model = build()
    with attnkit.swap(model, "gated_linear", accept="different"):
        with torch.no_grad():
            cache = model(IDS, use_cache=True).past_key_values
        with (
            attnkit.swap(model, WINDOW, accept="different"),
            pytest.raises(StateError, match="'gated_linear', which does not stand in"),
        ):
            step(model, cache)


@pytest.mark.parametrize(("one", "other"), [*itertools.permutations(RECURRENCES, 2)])
def test_state_is_refused_by_another_recurrence(one: str, other: str) -> None:
    model = build()
    cache = filled(model, one)
    told = (
        f"past_key_values: layer 0 of the cache holds 17 tokens as the state of '{one}', in the "
        f"model's layer stands '{other}'; start with a new cache, or swap '{one}' in again"
    )
    with (
        attnkit.swap(model, other, accept="different"),
        pytest.raises(StateError, match=told),
    ):
        step(model, cache)


@pytest.mark.parametrize("variant", RECURRENCES)
def test_state_goes_on_after_its_variant_was_swapped_in_again(variant: str) -> None:
    model, plan = build(), {"layers.1": variant}
    with torch.no_grad(), attnkit.swap(model, plan, accept="different"):
        cache = model(IDS, use_cache=True).past_key_values
        wanted = step(model, copy.deepcopy(cache))
    with attnkit.swap(model, plan, accept="different"):
        assert furthest(step(model, cache), wanted) < CLOSE


def test_refused_cache_goes_on_in_the_swapped_model() -> None:
    model = build()
    cache = filled(model, "gated_linear")
    wanted = copy.deepcopy(cache)
    with pytest.raises(StateError):
        step(model, cache)
    with attnkit.swap(model, "gated_linear", accept="different"):
        assert furthest(step(model, cache), step(model, wanted)) < CLOSE


def test_emptied_cache_serves_another_recurrence() -> None:
    model = build()
    cache = filled(model, "linear")
    cache.reset()
    with torch.no_grad(), attnkit.swap(model, "state_space", accept="different"):
        found = model(IDS, past_key_values=cache).logits
        assert furthest(found, model(IDS, use_cache=False).logits) < CLOSE
