"""Which libraries are installed: in which version, and, of attnkit's extras, whether at all."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from attnkit.errors import MissingPackageError


def missing(error: ModuleNotFoundError, extra: str, what: str) -> MissingPackageError:
    """Return what to raise where ``what`` needs a package of one of attnkit's extras."""
    return MissingPackageError(
        f"{what} needs the package {error.name!r}, which is not installed: "
        f"pip install 'attnkit[{extra}]'"
    )


def untested(name: str, tested: Sequence[str]) -> str | None:
    """Say that the installed version of a library is not one that its adapter was tested with."""
    if not tested:
        return None
    installed = version_of(name).partition("+")[0]
    if any(f"{installed}.".startswith(f"{each}.") for each in tested):
        return None
    return (
        f"{name} {installed}: attnkit's adapter was tested with {', '.join(tested)}; what it swaps "
        "is verified all the same"
    )


def version_of(name: str, absent: str = "not installed as a distribution") -> str:
    """Return the installed version of a distribution, its build after ``+`` included."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return absent
