"""Which version of a host's library is installed, and whether its adapter was tested with it."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def untested(name: str, tested: Sequence[str]) -> str | None:
    """Say that the installed version of a library is not one that its adapter was tested with."""
    if not tested:
        return None
    installed = version_of(name)
    if any(f"{installed}.".startswith(f"{each}.") for each in tested):
        return None
    return (
        f"{name} {installed}: attnkit's adapter was tested with {', '.join(tested)}; what it swaps "
        "is verified all the same"
    )


def version_of(name: str) -> str:
    """Return the installed version of a distribution, without what follows a ``+``."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "not installed as a distribution"
