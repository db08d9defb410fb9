"""Which modules call transformers' attention interface, and what they would run by themselves."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnkit_plugins.hosts.transformers.bond import own_config

if TYPE_CHECKING:
    from types import CodeType, FunctionType

    from torch import nn

_CROSSING = re.compile(
    r"(^|\.)(\w*cross_?att\w*|encoder_attn\w*|EncDecAttention|encoder_decoder_attention)(\.|$)"
)
"""Paths of layers whose keys come from elsewhere; the layers themselves seldom tell."""


@dataclass(frozen=True)
class Caller:
    """The method of a class that calls the interface.

    Attributes:
        code: Its code object.
        functions: The mapping of names to functions that it asks.
        default: What it runs for a name that the mapping lacks, ``eager``.
    """

    code: CodeType
    functions: Any
    default: Callable[..., Any]


@functools.cache
def caller(layer: type) -> Caller | None:
    """Return the method of a class that calls the attention interface, or None."""
    for function in _methods(layer):
        names = function.__code__.co_names
        if "ALL_ATTENTION_FUNCTIONS" not in names or "get_interface" not in names:
            continue
        space = function.__globals__
        eager = [name for name in names if name.endswith("eager_attention_forward")]
        if len(eager) == 1 and eager[0] in space:
            return Caller(function.__code__, space["ALL_ATTENTION_FUNCTIONS"], space[eager[0]])
    return None


def crosses(path: str, module: nn.Module) -> bool:
    """Say whether keys come from elsewhere than queries: from an encoder, or another stream."""
    told = getattr(module, "is_cross_attention", None) is True
    return told or "CrossAttention" in type(module).__name__ or bool(_CROSSING.search(path))


def own_function(module: nn.Module) -> Callable[..., Any]:
    """Return the function that an unswapped module would run."""
    layer: type = type(module)
    found = caller(layer)
    assert found is not None
    name = own_config(module)._attn_implementation
    function: Callable[..., Any] = found.functions.get(name, found.default)
    return function


def _methods(layer: type) -> Iterator[FunctionType]:
    for owner in layer.__mro__:
        for member in vars(owner).values():
            if inspect.isfunction(member):
                yield inspect.unwrap(member)
