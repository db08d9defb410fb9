"""Requires a contract that no attnkit has yet."""

from acme_window import declare

import attnkit

attnkit_api = "1.99"


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Is never asked."""
    return (declare("acme_contract_later"),)
