"""Which files a run was about, and their hashes: the files of a plugin and those of the suite."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from attnkit.registry import registry

if TYPE_CHECKING:
    from attnkit.interface import Variant

HERE = Path(__file__).parents[1]


def files(variant: Variant) -> dict[str, str]:
    """Return the sha256 of every file of a variant, by module folder and name.

    The files are those of the package that its entry point names (or of the module, if it is no
    package), and of every module that its implementations and its layer name. What those import
    from elsewhere is not followed.
    """
    found: dict[str, str] = {}
    for module in _modules(variant):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        if spec.submodule_search_locations:
            for path in sorted(origin.parent.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    inside = path.relative_to(origin.parent).as_posix()
                    found[f"{module.replace('.', '/')}/{inside}"] = sha256(path)
        else:
            found[f"{module.replace('.', '/')}{origin.suffix}"] = sha256(origin)
    return dict(sorted(found.items()))


def suite() -> str:
    """Return one sha256 over all modules of the suite."""
    total = hashlib.sha256()
    for path in sorted(HERE.rglob("*.py")):
        total.update(f"{path.relative_to(HERE).as_posix()} {sha256(path)}\n".encode())
    return total.hexdigest()


def sha256(path: Path) -> str:
    """Return the hash of one file, as ``sha256sum`` prints it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _modules(variant: Variant) -> tuple[str, ...]:
    """Return the modules that make a variant, the entry point's first, each once."""
    known = registry.default()
    entries = [each.module for each in known.entries(variant.name)]
    named = [variant.layer, *(each.function for each in known.implementations(variant.name))]
    modules = (*entries, *(_module(each) for each in named))
    return tuple(dict.fromkeys(each.partition(":")[0] for each in modules if each))


def _module(named: object) -> str:
    """Return the module of ``"package.module:name"``, or of a function or class."""
    return named if isinstance(named, str) else str(getattr(named, "__module__", "") or "")
