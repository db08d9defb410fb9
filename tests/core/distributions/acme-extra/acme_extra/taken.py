"""Offers an implementation under a name that the variant's owner has taken."""

from collections.abc import Mapping
from dataclasses import replace

import attnkit
from acme_extra.faster import FASTER


@attnkit.hookimpl
def attnkit_implementations() -> Mapping[str, tuple[attnkit.Implementation, ...]]:
    """Offer a second reference."""
    return {"acme_taken": (replace(FASTER, name="reference"),)}
