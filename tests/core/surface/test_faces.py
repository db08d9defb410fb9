"""What the faces of packages offer: every name that they list, and a first file."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = {wheel.name: wheel for wheel in sorted(ROOT.glob("*/attnkit*/"))}
FACES = {
    ".".join((package, *path.parent.relative_to(folder).parts)): path
    for package, folder in PACKAGES.items()
    for path in sorted(folder.rglob("__init__.py"))
}
DECLARATIONS = r"attnkit_plugins\.\w+\.\w+.*"
"""Packages that are a plugin, and no room."""

KNOWN = {
    "attnkit.hosts": "Attachment Call Decision Explanation Host Kind Mixer Needs Request Site "
    "Survey explain survey swap",
    "attnkit.interface": "FeedforwardFunction Implementation Layer LayerConfig NoOptions Options "
    "RecurrenceFunction SoftmaxFunction Variant load",
    "attnkit.layers": "SoftmaxConfig SoftmaxLayer drop_first",
    "attnkit.masks": "And Blocks Causal Dense Documents Full Mask Or Padding PrefixLM Sizes "
    "SlidingWindow blocks causal dense documents full hide_padding left_padding padding "
    "prefix_lm sliding_window",
    "attnkit.reference": "recurrence softmax",
    "attnkit.registry": "Registration Registry default get_variant list_variants register",
    "attnkit.swaps": "Decision Explanation explain survey swap",
    "attnkit_contracts.cli": "main",
    "attnkit_contracts.pytest_plugin": "parametrize",
}
"""What strangers import by these paths."""


@pytest.mark.parametrize("module", KNOWN)
def test_what_strangers_import_is_there(module: str) -> None:
    face = importlib.import_module(module)
    assert [name for name in KNOWN[module].split() if not hasattr(face, name)] == []


@pytest.mark.parametrize("name", FACES)
def test_a_face_gives_every_name_that_it_lists(name: str) -> None:
    face = importlib.import_module(name)
    listed = getattr(face, "__all__", [])
    assert [each for each in listed if not hasattr(face, each)] == []
    # once it is imported, a module of the same name hides the value behind it
    assert [each for each in listed if (FACES[name].parent / f"{each}.py").exists()] == []


LAZY = [name for name in FACES if "= face(" in FACES[name].read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", LAZY)
def test_type_checkers_see_each_name_where_it_is_imported_from(name: str) -> None:
    tree = ast.parse(FACES[name].read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        # else they take it for no part of the package
        if alias.asname == alias.name
    }
    (homes,) = (node for part in block.orelse for node in ast.walk(part) if type(node) is ast.Dict)
    by_module = ast.literal_eval(homes)
    assert typed == {each: module for module in by_module for each in by_module[module].split()}
    face = importlib.import_module(name)
    assert sorted(typed) == face.__all__ == dir(face)


@pytest.mark.parametrize("name", LAZY)
def test_a_name_that_a_face_does_not_list_is_an_attribute_error(name: str) -> None:
    face = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nonsense'"):
        _ = face.nonsense


@pytest.mark.parametrize("name", [each for each in FACES if not re.fullmatch(DECLARATIONS, each)])
def test_a_room_says_which_of_its_files_to_read_first(name: str) -> None:
    text = ast.get_docstring(ast.parse(FACES[name].read_text(encoding="utf-8"))) or ""
    first = re.search(r"(?:[Ss]tart with|Read) `([\w.]+)`", text)
    if first is None:
        # nothing to choose from
        assert len(list(FACES[name].parent.glob("*.py"))) <= 2, text
        return
    inside = first[1] if first[1].startswith("attnkit") else f"{name}.{first[1]}"
    assert importlib.util.find_spec(inside) is not None


@pytest.mark.parametrize("package", ["attnkit", "attnkit_contracts"])
def test_modules_of_a_package_import_each_other_by_their_own_paths(package: str) -> None:
    through = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {alias.name} from {node.module}"
        for path in sorted(PACKAGES[package].rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in FACES
        for alias in node.names
        if f"{node.module}.".startswith(f"{package}.")
        and importlib.util.find_spec(f"{node.module}.{alias.name}") is None
    ]
    assert through == []
