"""Its hook lacks a letter."""

import attnkit


@attnkit.hookimpl
def attnkit_variant() -> tuple[attnkit.Variant, ...]:
    """Offer nothing, under a name that is no hook's."""
    return ()
