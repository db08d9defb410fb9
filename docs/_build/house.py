"""Measure the house: rooms, circles, arrows, names; see `docs/explanation/architecture.md`.

    python docs/_build/house.py

Imports are read from the syntax, those inside functions and under ``TYPE_CHECKING`` included: a
circle that only a type checker sees still has to be held in the head.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import public_surface

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
MOST_FILES = 18
PACKAGES = {
    "attnkit": ROOT / "core" / "attnkit",
    "attnkit_contracts": ROOT / "contracts" / "attnkit_contracts",
    "attnkit_plugins": ROOT / "plugins" / "attnkit_plugins",
}
FLOORS: Mapping[str, Sequence[str]] = {
    "attnkit": (
        "errors frozen promises text versions lazy precision at_rest",
        "problem state sites",
        "masks",
        "placements families interface",
        "hosts",
        "reference hookspecs",
        "registry",
        "choice",
        "operations",
        "layers",
        "kernels",
        "swaps",
        "cli",
    ),
    "attnkit_contracts": (
        "catalogue",
        "inputs definitions foreign",
        "reports",
        # a subject says how large an error of its may be, so it stands on what compares numbers
        "judging",
        "instruments",
        "subjects",
        "checks",
        "diagnosis",
        "running",
        "certificates",
        "pytest_plugin cli suite __main__",
    ),
    "attnkit_plugins": ("softmax recurrence feedforward hosts",),
}
"""The wings of each package from the ground up; each uses only what stands on a floor below it,
or before it on its own floor."""

NOUNS = {"padding", "speed", "nested"}
"""Names that only end like a gerund or a participle."""


@dataclass
class House:
    """What imports say.

    Attributes:
        imports: By module, the modules of the three packages that it imports, and on which line.
        faces: The packages among them; those of plugins are declarations.
    """

    imports: dict[str, dict[str, int]] = field(default_factory=dict)
    faces: set[str] = field(default_factory=set)

    def wing(self, module: str) -> str:
        """Return the wing a module stands in."""
        parts = module.split(".")
        return parts[1] if len(parts) > 1 else ""

    def circles(self) -> list[list[str]]:
        """Return the groups of modules that import each other, whatever the way round."""
        return _circles({name: set(found) for name, found in self.imports.items()})

    def upward(self) -> Iterator[str]:
        """Say which imports lead to a higher floor."""
        for package, floors in FLOORS.items():
            order = [wing for floor in floors for wing in floor.split()]
            level = {wing: number for number, wing in enumerate(order)}
            for module, found in self.imports.items():
                # faces may name everything: nothing inside goes through them, a test holds that
                if module.split(".")[0] != package or module in self.faces:
                    continue
                here = level.get(self.wing(module), -1)
                for other, line in found.items():
                    if other == package or other.split(".")[0] != package:
                        continue
                    if level.get(self.wing(other), 99) > here:
                        yield f"{module}:{line} imports {other}"


def measured() -> House:
    """Read every module of the three packages."""
    known = {module for package in PACKAGES for module in _modules(package)}
    house = House()
    for package in PACKAGES:
        for module, path in _modules(package).items():
            found = house.imports.setdefault(module, {})
            if path.name == "__init__.py" and package != "attnkit_plugins":
                house.faces.add(module)
            for line, name in _imported(path):
                other = _known(name, known)
                if other is not None and other != module:
                    found.setdefault(other, line)
    return house


def crowded() -> list[str]:
    """Return the folders with more than `MOST_FILES` files."""
    tops = ("core", "contracts", "plugins", "tests", "docs")
    files = Counter(
        path.parent
        for top in tops
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    return [
        f"{folder.relative_to(ROOT)}: {n}" for folder, n in sorted(files.items()) if n > MOST_FILES
    ]


def gerunds() -> list[str]:
    """Return the modules named by a gerund or a participle."""
    return [
        module
        for package in PACKAGES
        for module, path in _modules(package).items()
        if path.name != "__init__.py"
        and path.stem not in NOUNS
        and path.stem.rpartition("_")[2].endswith(("ing", "ed"))
    ]


def drawn() -> Iterator[str]:
    """Draw the floors of the three packages as text, the top one first."""
    yield "```text"
    for package, floors in FLOORS.items():
        yield f"{PACKAGES[package].parent.name}/{package}/"
        for floor in reversed(floors):
            wings = floor.split()
            files = [wing for wing in wings if not (PACKAGES[package] / wing).is_dir()]
            if files:
                yield f"    {'  '.join(files)}"
            for wing in reversed(wings):
                if wing not in files:
                    yield f"    {wing + '/':14}{' '.join(_inside(PACKAGES[package] / wing))}"
        yield ""
    yield "```"


def _inside(folder: Path) -> list[str]:
    """Return the modules and folders in a wing."""
    found = sorted(path for path in folder.iterdir() if path.name[0] not in "_.")
    modules = [path.stem for path in found if path.suffix == ".py"]
    return modules + [f"{path.name}/" for path in found if path.is_dir() and any(path.glob("*.py"))]


def _modules(package: str) -> dict[str, Path]:
    root = PACKAGES[package]
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (package, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _known(name: str, known: set[str]) -> str | None:
    while name:
        if name in known:
            return name
        name = name.rpartition(".")[0]
    return None


def _circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Tarjan's strongly connected components of more than one module."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = []
            while True:
                members.append(stack.pop())
                if members[-1] == node:
                    break
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def main() -> int:
    """Print what was measured; 1 where anything breaks a rule."""
    house = measured()
    told = {
        f"folders with more than {MOST_FILES} files": crowded(),
        "circles": [" <-> ".join(circle) for circle in house.circles()],
        "arrows up": list(house.upward()),
        "modules named by a gerund or participle": gerunds(),
    }
    for what, found in told.items():
        print(f"{what}: {len(found)}", *(f"  {each}" for each in found), sep="\n")
    modules = {use.module for use in public_surface.used(public_surface.built_ins())}
    private = public_surface.strangers(public_surface.built_ins())
    listed = f"{len(private)} imports are not public" if private else "all listed"
    print(f"public modules used by built-ins: {len(modules)}, {listed}")
    print(*(f"  {use}" for use in private), sep="\n", end="")
    return int(any(told.values()) or bool(private))


if __name__ == "__main__":
    sys.exit(main())
