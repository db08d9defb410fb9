"""Attention variants behind one interface, each checked by one conformance suite.

The front door: everything a user calls is here, imported on first use, so that
``import attnkit`` loads neither torch nor pydantic. Read `attnkit.interface` next.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnkit.building import create
    from attnkit.errors import AttnkitError
    from attnkit.hookspecs import hookimpl
    from attnkit.hosts import explain, survey, swap
    from attnkit.interface import Implementation, LayerConfig, Options, Variant
    from attnkit.masks import (
        Mask,
        blocks,
        causal,
        dense,
        documents,
        full,
        left_padding,
        padding,
        prefix_lm,
        sliding_window,
    )
    from attnkit.own_modules import declare
    from attnkit.promises import Promises
    from attnkit.reapplying import reapply
    from attnkit.recurrent import recurrence
    from attnkit.registry import get_variant, list_variants, register
    from attnkit.softmax import attention

__all__ = [
    "AttnkitError",
    "Implementation",
    "LayerConfig",
    "Mask",
    "Options",
    "Promises",
    "Variant",
    "attention",
    "blocks",
    "causal",
    "create",
    "declare",
    "dense",
    "documents",
    "explain",
    "full",
    "get_variant",
    "hookimpl",
    "left_padding",
    "list_variants",
    "padding",
    "prefix_lm",
    "reapply",
    "recurrence",
    "register",
    "sliding_window",
    "survey",
    "swap",
]

_HOME = {
    "AttnkitError": "errors",
    "Implementation": "interface",
    "LayerConfig": "interface",
    "Mask": "masks",
    "Options": "interface",
    "Promises": "promises",
    "Variant": "interface",
    "attention": "softmax",
    "blocks": "masks",
    "causal": "masks",
    "create": "building",
    "declare": "own_modules",
    "dense": "masks",
    "documents": "masks",
    "explain": "hosts",
    "full": "masks",
    "get_variant": "registry",
    "hookimpl": "hookspecs",
    "left_padding": "masks",
    "list_variants": "registry",
    "padding": "masks",
    "prefix_lm": "masks",
    "reapply": "reapplying",
    "recurrence": "recurrent",
    "register": "registry",
    "sliding_window": "masks",
    "survey": "hosts",
    "swap": "hosts",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module, once."""
    if name not in _HOME:
        raise AttributeError(f"module 'attnkit' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"attnkit.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
