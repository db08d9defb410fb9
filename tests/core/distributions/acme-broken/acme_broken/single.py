"""Returns one variant, not several."""

from acme_window import declare

import attnkit


@attnkit.hookimpl
def attnkit_variants() -> attnkit.Variant:
    """Forget the tuple."""
    return declare("acme_single")
