"""Its variant bears another name than its entry point."""

from acme_window import declare

import attnkit


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Offer something else."""
    return (declare("acme_something_else"),)
