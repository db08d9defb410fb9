"""Fails when it is asked."""

import attnkit


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Fail."""
    return ({}["acme"],)
