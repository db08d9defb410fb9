"""Every check catches its mutant, and the right variants pass everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

import attnkit
import attnkit_contracts

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit.interface import Variant
    from attnkit_contracts.catalogue import Tier

pytestmark = pytest.mark.slow

GPU = "cuda" if torch.cuda.is_available() else "cpu"


class Outcome(NamedTuple):
    """What became of one mutant.

    Attributes:
        red: The checks that failed.
        skipped: The checks that need what this machine lacks.
    """

    red: set[str]
    skipped: set[str]


def _judged(mutant: Any, *, by_all: bool = False) -> Outcome:
    """Run the check that must catch it, or all fast ones too, each until an instance fails."""
    device = GPU if mutant.kills.startswith("I9.") else "cpu"
    red, skipped = set[str](), set[str]()
    with attnkit.register(mutant.variant):
        for each in attnkit_contracts.plan(
            mutant.variant,
            tier="full",
            dtypes=[mutant.dtype],
            implementations=[mutant.subject],
            device=device,
        ):
            is_asked = each.check.id == mutant.kills or (by_all and each.check.tier == "fast")
            if is_asked and each.check.id not in red:
                status = each.run(explain=False).status
                red |= {each.check.id} if status in ("failed", "error") else set()
                skipped |= {each.check.id} if status == "skipped_env" else set()
    return Outcome(red, skipped)


def test_there_are_enough_mutants(mutants: tuple[Any, ...]) -> None:
    assert len({mutant.variant.name for mutant in mutants}) == len(mutants) >= 100


def test_a_mutant_is_caught_by_its_check(mutant: Any) -> None:
    outcome = _judged(mutant)

    assert mutant.kills in (outcome.skipped if _needs_gpu(mutant.kills) else outcome.red)


def _needs_gpu(check: str) -> bool:
    """Whether a check cannot run here; then it must say so, not pass."""
    return check.startswith("I9.") and GPU == "cpu"


WAYS = [
    *((dtype, "fast") for dtype in ("float64", "float32", "bfloat16", "float16")),
    pytest.param("float32", "standard", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("dtype", "tier"), WAYS)
def test_a_right_variant_passes_everything(right: Variant, dtype: str, tier: Tier) -> None:
    # the definition is checked with every built-in, and what auto takes is no matter of dtypes
    with attnkit.register(right):
        planned = attnkit_contracts.plan(right, dtypes=[dtype])
        subjects = {each.target.implementation for each in planned} - {"reference"}
        subjects -= {"auto"} if dtype != "float32" else set()
        report = attnkit_contracts.check(
            right, dtypes=[dtype], tier=tier, implementations=sorted(subjects)
        )

    assert [(record.id, record.reason) for record in report.failures()] == []
    assert report.passed


def test_every_check_has_a_mutant(mutants: tuple[Any, ...]) -> None:
    checks = {each.id for each in attnkit_contracts.all_checks()}

    assert checks - {mutant.kills for mutant in mutants} == set()


@pytest.mark.matrix
def test_the_kill_matrix_has_no_empty_line(
    mutants: tuple[Any, ...], record_property: Callable[[str, object], None]
) -> None:
    found = {mutant.variant.name: _judged(mutant, by_all=True) for mutant in mutants}
    lines = {
        each.id: [name.removeprefix("mutant_") for name, one in found.items() if each.id in one.red]
        for each in attnkit_contracts.all_checks()
    }
    # shown at the end of a run, see conftest.py
    record_property("kill matrix", lines)

    assert [check for check, names in lines.items() if not names and not _needs_gpu(check)] == []
