"""Attention variants behind one interface, each checked by one conformance suite.

The front door: everything a user calls is here, imported on first use, so that
``import attnkit`` loads neither torch nor pydantic. Read `attnkit.interface` next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.errors import AttnkitError as AttnkitError
    from attnkit.hookspecs import api_version as api_version
    from attnkit.hookspecs import hookimpl as hookimpl
    from attnkit.hosts.own_modules import declare as declare
    from attnkit.interface import Implementation as Implementation
    from attnkit.interface import LayerConfig as LayerConfig
    from attnkit.interface import Options as Options
    from attnkit.interface import Variant as Variant
    from attnkit.layers.create import create as create
    from attnkit.masks.constructors import Mask as Mask
    from attnkit.masks.constructors import blocks as blocks
    from attnkit.masks.constructors import causal as causal
    from attnkit.masks.constructors import dense as dense
    from attnkit.masks.constructors import documents as documents
    from attnkit.masks.constructors import full as full
    from attnkit.masks.constructors import left_padding as left_padding
    from attnkit.masks.constructors import padding as padding
    from attnkit.masks.constructors import prefix_lm as prefix_lm
    from attnkit.masks.constructors import sliding_window as sliding_window
    from attnkit.operations.attention import attention as attention
    from attnkit.operations.recurrence import recurrence as recurrence
    from attnkit.promises import Promises as Promises
    from attnkit.registry.registry import get_variant as get_variant
    from attnkit.registry.registry import register as register
    from attnkit.registry.variant_table import list_variants as list_variants
    from attnkit.swaps.api import explain as explain
    from attnkit.swaps.api import survey as survey
    from attnkit.swaps.api import swap as swap
    from attnkit.swaps.reapply import reapply as reapply
else:
    __getattr__, __dir__, __all__ = face(
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
