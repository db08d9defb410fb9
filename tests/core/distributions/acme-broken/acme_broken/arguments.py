"""Its hook asks for an argument that no hook of this name gets."""

import attnkit


@attnkit.hookimpl
def attnkit_variants(registry: object) -> tuple[attnkit.Variant, ...]:
    """Offer nothing."""
    return ()
