"""Every check catches its mutant, and the right variants pass everything."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

import attnkit
import attnkit_contracts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


def _judged(mutant: Any) -> Outcome:
    """Run all fast checks, and the one that must catch it, each until an instance fails."""
    device = GPU if mutant.kills.startswith("I9.") else "cpu"
    planned = attnkit_contracts.plan(
        mutant.variant,
        tier="full",
        dtypes=[mutant.dtype],
        implementations=[mutant.subject],
        device=device,
    )
    wanted = [
        each for each in planned if each.check.tier == "fast" or each.check.id == mutant.kills
    ]
    red, skipped = set[str](), set[str]()
    for each in wanted:
        if each.check.id not in red:
            status = each.run(explain=False).status
            red |= {each.check.id} if status in ("failed", "error") else set()
            skipped |= {each.check.id} if status == "skipped_env" else set()
    return Outcome(red, skipped)


def _outcome(mutant: Any, kept: Path) -> Outcome:
    """What became of one mutant; ``kept`` is where whoever asks first leaves the answer."""
    if kept.exists():
        red, skipped = json.loads(kept.read_text())
        return Outcome(set(red), set(skipped))
    with attnkit.register(mutant.variant):
        outcome = _judged(mutant)
    # whole at once: another process may look for it now
    draft = kept.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps([sorted(each) for each in outcome]))
    draft.rename(kept)
    return outcome


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Outcome]:
    """Says what became of a mutant: each is judged once, by one of the processes of a run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= "outcomes"
    folder.mkdir(exist_ok=True)
    return lambda mutant: _outcome(mutant, folder / mutant.variant.name)


def test_there_are_enough_mutants(mutants: tuple[Any, ...]) -> None:
    assert len({mutant.variant.name for mutant in mutants}) == len(mutants) >= 100


def test_a_mutant_is_caught_by_its_check(mutant: Any, killed: Callable[[Any], Outcome]) -> None:
    outcome = killed(mutant)

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
    mutants: tuple[Any, ...],
    killed: Callable[[Any], Outcome],
    record_property: Callable[[str, object], None],
) -> None:
    found = {mutant.variant.name: killed(mutant) for mutant in mutants}
    lines = {
        each.id: [name.removeprefix("mutant_") for name, one in found.items() if each.id in one.red]
        for each in attnkit_contracts.all_checks()
    }
    # shown at the end of a run, see conftest.py
    record_property("kill matrix", lines)

    assert [check for check, names in lines.items() if not names and not _needs_gpu(check)] == []
