"""Which libraries are installed: in which version, and, of attnkit's extras, whether at all."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING

from attnkit.errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def of_extra(extra: str, what: str) -> Iterator[None]:
    """Import packages of one of attnkit's extras inside; one that is missing is told by name.

    Raises:
        MissingPackageError: ``what`` needs a package that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{what} needs the package {error.name!r}, which is not installed: "
            f"pip install 'attnkit[{extra}]'"
        ) from error


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
