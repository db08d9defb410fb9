"""A further implementation of a variant that another distribution offers."""

from collections.abc import Mapping

from acme_window import PROMISES, cost

import attnkit

FASTER = attnkit.Implementation(
    name="acme_faster",
    function="acme_window.reference:attend",
    summary="the same, faster",
    promises=PROMISES,
    cost=lambda problem: 0.5 * cost(problem),
)


@attnkit.hookimpl
def attnkit_implementations() -> Mapping[str, tuple[attnkit.Implementation, ...]]:
    """Offer it."""
    return {"acme_window": (FASTER,)}
