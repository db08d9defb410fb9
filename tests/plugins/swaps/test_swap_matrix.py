"""The table of architectures in the docs says what happens."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

# torch's own encoder makes nested tensors, and torch warns of it once per process
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "reference" / "swap-matrix.md").read_text(encoding="utf-8")
REASONS = dict(re.findall(r"^(\d+)\. (.+)$", PAGE, re.MULTILINE))

ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and "---" not in line
]
TITLES = [cell.strip("`") for cell in ROWS[0][2:]]


@pytest.fixture(scope="module")
def generate_matrix() -> Any:
    """Import the script that makes the page."""
    return import_module("generate_matrix")


def test_page_has_every_architecture_and_every_softmax_variant(generate_matrix: Any) -> None:
    assert [row[0] for row in ROWS[1:]] == list(generate_matrix.ARCHITECTURES)
    assert list(generate_matrix.columns()) == TITLES


@pytest.mark.parametrize("row", ROWS[1:], ids=lambda row: row[0])
def test_each_swap_succeeds_or_is_refused_as_the_page_says(
    row: list[str], generate_matrix: Any
) -> None:
    told = [REASONS[cell.strip("()")] if cell.startswith("(") else None for cell in row[2:]]
    columns = generate_matrix.columns().values()
    assert [generate_matrix.swapped(row[0], column).reason for column in columns] == told


def test_page_has_at_least_twenty_architectures_that_take_flash() -> None:
    column = 2 + TITLES.index("flash")
    assert sum(not row[column].startswith("(") for row in ROWS[1:]) >= 20
