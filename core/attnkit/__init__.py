"""Attention variants behind one interface, each checked by one conformance suite.

The front door: everything a user calls is here, imported on first use, so that
``import attnkit`` loads neither torch nor pydantic. Read `attnkit.interface` next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.errors import AttnkitError
    from attnkit.hookspecs import api_version, hookimpl
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
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "attnkit.errors": "AttnkitError",
            "attnkit.hookspecs": "api_version hookimpl",
            "attnkit.hosts.own_modules": "declare",
            "attnkit.interface": "Implementation LayerConfig Options Variant",
            "attnkit.layers.create": "create",
            "attnkit.masks.constructors": "Mask blocks causal dense documents full left_padding "
            "padding prefix_lm sliding_window",
            "attnkit.operations.attention": "attention",
            "attnkit.operations.recurrence": "recurrence",
            "attnkit.promises": "Promises",
            "attnkit.registry.registry": "get_variant register",
            "attnkit.registry.variant_table": "list_variants",
            "attnkit.swaps.api": "explain survey swap",
            "attnkit.swaps.reapply": "reapply",
        },
    )

__all__ = [
    "AttnkitError",
    "Implementation",
    "LayerConfig",
    "Mask",
    "Options",
    "Promises",
    "Variant",
    "api_version",
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
