"""Who may import whom, what the front door offers, and what the wheel holds."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import house
import pytest

import attnkit

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "attnkit": ROOT / "core" / "attnkit",
    "attnkit_contracts": ROOT / "contracts" / "attnkit_contracts",
    "attnkit_plugins": ROOT / "plugins" / "attnkit_plugins",
}
ARROWS = {
    "attnkit": {"attnkit"},
    "attnkit_contracts": {"attnkit", "attnkit_contracts"},
    "attnkit_plugins": {"attnkit", "attnkit_plugins"},
}
"""The table: which of our packages each of them may import. Changing it is a design decision."""

LIBRARIES = {
    "attnkit": {"pluggy", "pydantic", "rich", "torch", "typer"},
    "attnkit_contracts": {"jinja2", "markdown_it", "pydantic", "pytest", "rich", "torch", "typer"},
    "attnkit_plugins": {"pydantic", "torch"},
}
"""What each may import beside the standard library; hosts such as transformers are not core's."""

HOSTS = {"hosts/timm": {"timm"}, "hosts/transformers": {"transformers"}}
"""The plugins that adapt a library, and may import it."""


def modules(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of all that a module imports, by statement or by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is relative"
            # `from package import module` names a module as well as an attribute
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # "package.module:attribute", imported on first use
            name = re.fullmatch(r"(attnkit(?:_\w+)?(?:\.\w+)+)(?::\w+)?", node.value)
            if name and name[1] != "attnkit.extensions":
                yield node.lineno, name[1]


def places(package: str) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in modules(package)]


EVERY_MODULE = [place for package in PACKAGES for place in places(package)]


def owner(path: Path) -> str:
    return next(name for name, folder in PACKAGES.items() if path.is_relative_to(folder))


@pytest.mark.parametrize("path", EVERY_MODULE)
def test_imports_follow_the_arrows(path: Path) -> None:
    package = owner(path)
    against = [
        (line, name)
        for line, name in imported(path)
        if name.partition(".")[0] in PACKAGES and name.partition(".")[0] not in ARROWS[package]
    ]
    assert against == []


@pytest.mark.parametrize("path", EVERY_MODULE)
def test_only_the_libraries_of_the_table_are_imported(path: Path) -> None:
    package = owner(path)
    part = "/".join(path.relative_to(PACKAGES[package]).parts[:2]).removesuffix(".py")
    allowed = {*sys.stdlib_module_names, *PACKAGES, *LIBRARIES[package], *HOSTS.get(part, ())}
    foreign = [
        (line, name) for line, name in imported(path) if name.partition(".")[0] not in allowed
    ]
    assert foreign == []


@pytest.mark.parametrize("path", places("attnkit_plugins"))
def test_no_plugin_imports_a_sibling(path: Path) -> None:
    own = path.relative_to(PACKAGES["attnkit_plugins"]).parts[:2]
    siblings = [
        (line, name)
        for line, name in imported(path)
        if name.startswith("attnkit_plugins.") and tuple(name.split(".")[1:3]) != own
    ]
    assert siblings == []


def test_the_table_is_enforced(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import transformers.models\n"
        "from attnkit_contracts import suite\n"
        "def late():\n    from attnkit_plugins.feedforward.moe import VARIANT\n"
        "LAYER = 'attnkit_plugins.feedforward.moe.layer:MoELayer'\n"
    )
    assert sorted(imported(path)) == [
        (1, "transformers.models"),
        (2, "attnkit_contracts.suite"),
        (4, "attnkit_plugins.feedforward.moe.VARIANT"),
        (5, "attnkit_plugins.feedforward.moe.layer"),
    ]


# the rooms: floors, circles, folders, names; see docs/explanation/architecture.md


@pytest.fixture(scope="module")
def measured() -> house.House:
    return house.measured()


def test_no_module_imports_one_from_a_floor_above_it(measured: house.House) -> None:
    assert list(measured.upward()) == []


def test_no_modules_import_each_other_in_a_circle(measured: house.House) -> None:
    assert measured.circles() == []


def test_every_wing_has_its_floor(measured: house.House) -> None:
    placed = {p: set(" ".join(floors).split()) for p, floors in house.FLOORS.items()}
    lost = [
        name
        for name in measured.imports
        if "." in name and measured.wing(name) not in placed[name.partition(".")[0]]
    ]
    assert lost == []


def test_no_folder_holds_more_files_than_can_be_overlooked() -> None:
    assert house.crowded() == []


def test_no_module_is_named_by_a_gerund_or_a_participle() -> None:
    assert house.gerunds() == []


def test_the_measure_finds_circles_and_arrows_up() -> None:
    made = house.House(
        {
            "attnkit.masks.algebra": {"attnkit.swaps.api": 3},
            "attnkit.swaps.api": {"attnkit.masks.tensors": 4},
            "attnkit.masks.tensors": {"attnkit.masks.algebra": 5},
        }
    )
    assert made.circles() == [
        ["attnkit.masks.algebra", "attnkit.masks.tensors", "attnkit.swaps.api"]
    ]
    assert list(made.upward()) == ["attnkit.masks.algebra:3 imports attnkit.swaps.api"]


# core knows no variant


def entry_points() -> dict[str, dict[str, str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = settings["project"]["entry-points"]
    return found


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and value of a module's strings, but for its lists of its own names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    # a mask is called sliding_window, as a variant is
    listed = {id(node) for assignment in own for node in ast.walk(assignment)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in listed
        ):
            yield node.lineno, node.value


@pytest.mark.parametrize("path", places("attnkit"))
def test_core_names_no_variant(path: Path) -> None:
    variants = entry_points()["attnkit"]
    assert [(line, text) for line, text in strings(path) if text in variants] == []


# the front door


def test_the_export_list_is_sorted() -> None:
    assert list(attnkit.__all__) == sorted(set(attnkit.__all__))


@pytest.mark.parametrize("name", attnkit.__all__)
def test_every_public_name_is_importable_and_explained(name: str) -> None:
    found = getattr(attnkit, name)
    assert name in dir(attnkit)
    # pluggy's marker is an instance, its class explains it
    assert inspect.getdoc(found)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'attnkit' has no attribute 'flash_attention'"):
        _ = attnkit.flash_attention


# the wheel


def test_the_wheel_holds_our_three_packages_and_nothing_else(attnkit_wheel: Path) -> None:
    names = zipfile.ZipFile(attnkit_wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert len(top) == len(PACKAGES) + 1
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_every_entry_point_of_the_wheel_names_a_module_in_it(attnkit_wheel: Path) -> None:
    names = set(zipfile.ZipFile(attnkit_wheel).namelist())
    missing = [
        f"{group}: {name} = {module}"
        for group, points in entry_points().items()
        for name, module in points.items()
        if not names & {f"{module.replace('.', '/')}{end}" for end in (".py", "/__init__.py")}
    ]
    assert missing == []
