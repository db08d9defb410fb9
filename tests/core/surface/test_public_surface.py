"""What strangers may import, and that everything which stands for a stranger keeps to it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import public_surface
import pytest
from public_surface import MODULES, ROOT

import attnkit

if TYPE_CHECKING:
    from pathlib import Path

STABILITY = ROOT / "docs" / "reference" / "stability.md"


def told(paths: list[Path]) -> list[str]:
    return [str(use) for use in public_surface.strangers(paths)]


def test_built_ins_import_only_what_is_public() -> None:
    assert told(public_surface.built_ins()) == []


def test_example_plugins_and_pages_import_only_what_is_public() -> None:
    assert told(public_surface.examples()) == []


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_exists(module: str) -> None:
    found = importlib.import_module(module)
    # types alone are not there when a program runs
    there = {*dir(found), *public_surface.defined(module)}
    assert [name for name in public_surface.names(module) if name not in there] == []


def test_a_private_import_is_told_with_its_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```python\n"
        ">>> import attnkit\n"
        ">>> from attnkit.swaps.transaction import Swap\n"
        ">>> from attnkit.swaps import Swap, transaction\n"
        "```\n"
    )
    code = tmp_path / "code.py"
    code.write_text(
        "import attnkit.text\n"
        "def late():\n    from attnkit.interface import Variant, _registered\n"
        "FUNCTION = 'attnkit.swaps.transaction:carry_out'\n"
    )
    assert [each[1:] for each in public_surface.strangers([page, code])] == [
        (5, "attnkit.swaps.transaction", "Swap"),
        (6, "attnkit.swaps.transaction", ""),
        (1, "attnkit.text", ""),
        (3, "attnkit.interface", "_registered"),
        (4, "attnkit.swaps.transaction", "carry_out"),
    ]


def test_the_page_says_which_contract_is_installed() -> None:
    assert f"today `{attnkit.api_version}`" in STABILITY.read_text(encoding="utf-8")
