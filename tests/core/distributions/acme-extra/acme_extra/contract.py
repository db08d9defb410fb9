"""Requires a contract of the next major version."""

from collections.abc import Mapping

import attnkit

attnkit_api = "2.0"


@attnkit.hookimpl
def attnkit_implementations() -> Mapping[str, tuple[attnkit.Implementation, ...]]:
    """Is never asked."""
    raise AssertionError
