"""Requires a contract that attnkit has no longer."""

from acme_window import declare

import attnkit

attnkit_api = "0.9"


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Is never asked."""
    return (declare("acme_contract_older"),)
