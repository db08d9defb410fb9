"""Faces of packages that import a public name when somebody first asks for it.

    if TYPE_CHECKING:
        from attnkit.layers.softmax import SoftmaxLayer as SoftmaxLayer
    else:
        __getattr__, __dir__, __all__ = face(__name__, {"attnkit.layers.softmax": "SoftmaxLayer"})

Type checkers read the imports alone, so a name that is not there is an error to them; ``as`` tells
them that it is given on.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping


def face(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Args:
        package: Its name.
        names: By the module that has them, the names it gives, separated by spaces.
    """
    homes = {name: module for module, listed in names.items() for name in listed.split()}
    namespace = vars(sys.modules[package])

    def getattr_(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # kept, so that the next access does not come here
        found = namespace[name] = getattr(importlib.import_module(homes[name]), name)
        return found

    return getattr_, lambda: sorted(homes), sorted(homes)
