"""From installed distributions to variants: lazily, loudly, and with the owner's name.

Start with `registry`. `discovery` reads metadata and imports nothing, `loader` imports one plugin
alone, `validation` says what is wrong with one, `extensions` asks the other hooks.
"""

from attnkit.registry.registry import Registration, Registry, default, get_variant, register
from attnkit.registry.variant_table import list_variants

__all__ = ["Registration", "Registry", "default", "get_variant", "list_variants", "register"]
