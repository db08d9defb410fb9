"""The deliberately wrong variants, for all tests of this folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from types import ModuleType

    from attnkit.interface import Variant


class Mutant(NamedTuple):
    """A wrong variant.

    Attributes:
        variant: One whose ``subject`` has a mistake.
        kills: Id of the check that must catch it.
        subject: Which implementation has it: ``wrong``, ``auto`` or ``layer``.
    """

    variant: Variant
    kills: str
    subject: str


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = [_load(f"mutants_{family}") for family in ("softmax", "recurrence", "mixture")]
MUTANTS = tuple(Mutant(*each) for module in MODULES for each in module.MUTANTS)
RIGHT = tuple(module.RIGHT for module in MODULES)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``mutant`` or ``right`` once for each of them."""
    if "mutant" in metafunc.fixturenames:
        metafunc.parametrize("mutant", MUTANTS, ids=[each.variant.name for each in MUTANTS])
    if "right" in metafunc.fixturenames:
        metafunc.parametrize("right", RIGHT, ids=[each.name for each in RIGHT])


@pytest.fixture(scope="session")
def mutants() -> tuple[Mutant, ...]:
    """All of them."""
    return MUTANTS


@pytest.fixture(scope="session")
def wrong() -> dict[str, Variant]:
    """The wrong variants, by name."""
    return {each.variant.name: each.variant for each in MUTANTS}
