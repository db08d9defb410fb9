"""Says its contract as a number."""

from acme_window import declare

import attnkit

attnkit_api = 1.0


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Is never asked."""
    return (declare("acme_contract_misspelt"),)
