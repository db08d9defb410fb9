"""Tiny random models: their sizes, weights that matter, how tests copy, watch and compare them.

In float64, numbers that come about in two ways are `CLOSE`: rounding is about 1e-15 per operation,
and 1e-9 lies far above what it can add up to in a tiny model and far below what a lost mask, bias,
token or expert does (1e-2 and more).
"""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

import attnkit
from attnkit.reference import softmax

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GQA: dict[str, Any] = {**SMALL, "num_key_value_heads": 2}
CLOSE = 1e-9
COPIES = ("deepcopy", "pickle")


class Exact(NamedTuple):
    """A swap that every model must take."""

    variant: str
    dtype: torch.dtype


EXACT = tuple(
    Exact(variant, dtype)
    for variant in ("multi_head", "flash")
    for dtype in (torch.float32, torch.bfloat16)
)


def spread(model: Any, *, axes: tuple[int, ...] = (2,)) -> Any:
    """Make weights of so many axes larger than their library does: tokens must differ."""
    for parameter in model.parameters():
        if parameter.dim() in axes:
            nn.init.normal_(parameter, std=0.25)
    return model


def lively(build: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
    """Build a model, the same at every call, whose attention prefers some keys to others."""
    torch.manual_seed(0)
    return spread(build().eval().to(dtype))


def copied(model: Any, how: str) -> Any:
    """Return a copy of a model, made in one of the ways of `COPIES`."""
    if how == "deepcopy":
        return copy.deepcopy(model)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def furthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


class Spy:
    """A correct attention function that notes what it is given, as variant ``spy``."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        model = attnkit.get_variant("multi_head")
        reference = model.implementations[0]
        noting = dataclasses.replace(
            reference,
            name="noting",
            function=self.attend,
            cost=lambda _: 0.0,
            promises=model.promises,
        )
        self.variant = dataclasses.replace(model, name="spy", implementations=(reference, noting))

    def attend(self, query: Any, key: Any, value: Any, **options: Any) -> Any:
        self.calls.append({"query": query, **options})
        return softmax(query, key, value, **{**options, "dropout_p": 0.0})
