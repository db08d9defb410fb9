"""Every check catches its mutant, and the right variants pass everything."""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

import attnkit
import attnkit_contracts

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit.interface import Variant
    from attnkit_contracts import Record
    from attnkit_contracts.catalogue import Tier

GPU = "cuda" if torch.cuda.is_available() else "cpu"


class Outcome(NamedTuple):
    """What became of one mutant.

    Attributes:
        red: How many instances of which check failed.
        skipped: The checks that need what this machine lacks.
    """

    red: Counter[str]
    skipped: set[str]


BY_NAME: dict[str, Any] = {}
"""The mutants, once a test has asked for one."""


def _records(mutant: Any) -> list[Record]:
    """Run the check that must catch it, whatever its tier."""
    device = GPU if mutant.kills.startswith("I9.") else "cpu"
    planned = attnkit_contracts.plan(
        mutant.variant,
        tier="full",
        dtypes=[mutant.dtype],
        implementations=[mutant.subject],
        device=device,
    )
    return [each.run(explain=False) for each in planned if each.check.id == mutant.kills]


@functools.cache
def _outcome(name: str) -> Outcome:
    """What became of one mutant: each worker asks for its own, the matrix for all."""
    mutant = BY_NAME[name]
    with attnkit.register(mutant.variant):
        records = _records(mutant)
    red = [record.check for record in records if record.status in ("failed", "error")]
    skipped = {record.check for record in records if record.status == "skipped_env"}
    return Outcome(Counter(red), skipped)


@pytest.fixture(scope="module")
def killed(mutants: tuple[Any, ...]) -> Callable[[str], Outcome]:
    """Says what became of a mutant, by name."""
    BY_NAME.update((mutant.variant.name, mutant) for mutant in mutants)
    return _outcome


def test_there_are_enough_mutants(mutants: tuple[Any, ...]) -> None:
    assert len({mutant.variant.name for mutant in mutants}) == len(mutants) >= 100


def test_a_mutant_is_caught_by_its_check(mutant: Any, killed: Callable[[str], Outcome]) -> None:
    outcome = killed(mutant.variant.name)

    assert mutant.kills in (outcome.skipped if _needs_gpu(mutant.kills) else outcome.red)


def _needs_gpu(check: str) -> bool:
    """Whether a check cannot run here; then it must say so, not pass."""
    return check.startswith("I9.") and GPU == "cpu"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_right_variant_passes_everything(right: Variant, dtype: str) -> None:
    tier: Tier = "standard" if dtype == "float32" else "fast"
    with attnkit.register(right):
        report = attnkit_contracts.check(right, dtypes=[dtype], tier=tier)

    assert [(record.id, record.reason) for record in report.failures()] == []
    assert report.passed


def test_every_check_has_a_mutant(mutants: tuple[Any, ...]) -> None:
    checks = {each.id for each in attnkit_contracts.all_checks()}

    assert checks - {mutant.kills for mutant in mutants} == set()


def test_the_kill_matrix_has_no_empty_line(
    mutants: tuple[Any, ...], killed: Callable[[str], Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    found = {mutant.variant.name: killed(mutant.variant.name) for mutant in mutants}
    lines = {
        each.id: [name.removeprefix("mutant_") for name, one in found.items() if one.red[each.id]]
        for each in attnkit_contracts.all_checks()
    }
    with capsys.disabled():
        text = "\n".join(f"{check:26} {' '.join(names)}" for check, names in lines.items())
        print(f"\n{text}")  # noqa: T201  # the matrix is read in the log of a run

    assert [check for check, names in lines.items() if not names and not _needs_gpu(check)] == []
