"""timm, imported also where torchvision or pillow cannot be.

timm needs both for reading and augmenting images, which no test of ours does, and torchvision's
binaries must fit those of torch. Where they are missing or do not fit, stand-ins take their place
for as long as timm is being imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import MutableSequence

MISSING = ("torchvision", "PIL")


class Anything(type):
    """Of classes whose every attribute is such a class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__: MutableSequence[str] = []  # noqa: RUF012 - as of any package
    __version__ = "0.0"
    __getattr__ = Anything.__getattr__


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        if name.partition(".")[0] in MISSING:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave it empty."""


def forget(*packages: str) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] in packages]:
        del sys.modules[name]


def load() -> types.ModuleType:
    """Import timm."""
    try:
        return importlib.import_module("timm")
    # a torchvision for another build of torch raises what it likes
    except (ImportError, RuntimeError):
        forget("timm", *MISSING)
    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module("timm")
    finally:
        sys.meta_path.remove(finder)
        forget(*MISSING)


timm: Any = load()
