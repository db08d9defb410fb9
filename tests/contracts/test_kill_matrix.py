"""Every check catches its mutant, and the right variants pass everything."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import attnkit
import attnkit_contracts

if TYPE_CHECKING:
    from attnkit.interface import Variant

Matrix = dict[str, Counter[str]]


@pytest.fixture(scope="module")
def killed(mutants: tuple[Any, ...]) -> Matrix:
    """How many instances of which check each mutant fails."""
    found: Matrix = {}
    for mutant in mutants:
        # a wrong output dtype shows in half precision alone
        dtype = "bfloat16" if mutant.kills == "S1.output" else "float32"
        with attnkit.register(mutant.variant):
            report = attnkit_contracts.check(
                mutant.variant, dtypes=[dtype], implementations=[mutant.subject]
            )
        red = [record.check for record in report.records if record.status in ("failed", "error")]
        found[mutant.variant.name] = Counter(red)
    return found


def test_a_mutant_is_caught_by_its_check(mutant: Any, killed: Matrix) -> None:
    assert mutant.kills in killed[mutant.variant.name]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_right_variant_passes_everything(right: Variant, dtype: str) -> None:
    with attnkit.register(right):
        report = attnkit_contracts.check(right, dtypes=[dtype])

    assert [(record.id, record.reason) for record in report.failures()] == []
    assert report.passed


def test_every_check_has_a_mutant(mutants: tuple[Any, ...]) -> None:
    checks = {each.id for each in attnkit_contracts.all_checks()}

    assert checks - {mutant.kills for mutant in mutants} == set()


def test_the_kill_matrix_has_no_empty_line(
    killed: Matrix, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {
        each.id: [name.removeprefix("mutant_") for name, red in killed.items() if red[each.id]]
        for each in attnkit_contracts.all_checks()
    }
    with capsys.disabled():
        text = "\n".join(f"{check:26} {' '.join(names)}" for check, names in lines.items())
        print(f"\n{text}")  # noqa: T201  # the matrix is read in the log of a run

    assert [check for check, names in lines.items() if not names] == []
