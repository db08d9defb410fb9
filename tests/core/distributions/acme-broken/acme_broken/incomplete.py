"""Its declaration holds a list where a tuple belongs."""

from dataclasses import replace

from acme_window import declare

import attnkit


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Offer an incomplete variant."""
    return (replace(declare("acme_incomplete"), implementations=None),)  # type: ignore[arg-type]  # the mistake
