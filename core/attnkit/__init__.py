"""Attention variants behind one interface, each checked by one conformance suite.

The front door: everything a user calls is here, imported on first use, so that
``import attnkit`` loads neither torch nor pydantic. Read `attnkit.interface` next.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnkit.errors import AttnkitError
    from attnkit.hookspecs import hookimpl
    from attnkit.hosts.own_modules import declare
    from attnkit.interface import Implementation, LayerConfig, Options, Variant
    from attnkit.layers.create import create
    from attnkit.masks.constructors import (
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
    from attnkit.operations.attention import attention
    from attnkit.operations.recurrence import recurrence
    from attnkit.promises import Promises
    from attnkit.registry.registry import get_variant, register
    from attnkit.registry.variant_table import list_variants
    from attnkit.swaps.api import explain, survey, swap
    from attnkit.swaps.reapply import reapply

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
    "Mask": "masks.constructors",
    "Options": "interface",
    "Promises": "promises",
    "Variant": "interface",
    "attention": "operations.attention",
    "blocks": "masks.constructors",
    "causal": "masks.constructors",
    "create": "layers.create",
    "declare": "hosts.own_modules",
    "dense": "masks.constructors",
    "documents": "masks.constructors",
    "explain": "swaps.api",
    "full": "masks.constructors",
    "get_variant": "registry.registry",
    "hookimpl": "hookspecs",
    "left_padding": "masks.constructors",
    "list_variants": "registry.variant_table",
    "padding": "masks.constructors",
    "prefix_lm": "masks.constructors",
    "reapply": "swaps.reapply",
    "recurrence": "operations.recurrence",
    "register": "registry.registry",
    "sliding_window": "masks.constructors",
    "survey": "swaps.api",
    "swap": "swaps.api",
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
