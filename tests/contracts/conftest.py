"""The deliberately wrong variants, for all tests of this folder."""

from __future__ import annotations

import importlib
import sys
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
        dtype: Of the inputs; some mistakes show in half precision alone.
    """

    variant: Variant
    kills: str
    subject: str
    dtype: str = "float32"


FOLDER = Path(__file__).parent
for name in (
    "mutants",
    "mutants/declarations",
    "mutants/gradients",
    "mutants/layers",
    "mutants/maths",
    "correct",
    "foreign",
    "reports",
):
    if str(FOLDER / name) not in sys.path:
        # by name, so that they import each other, and so that layers can be pickled
        sys.path.insert(0, str(FOLDER / name))


def _load(name: str) -> ModuleType:
    return importlib.import_module(name)


FAMILIES = (
    "softmax",
    "attention",
    "masks",
    "surroundings",
    "layers",
    "stepping",
    "dropout",
    "recurrence",
    "scan",
    "mixture",
    "experts",
    "routing",
    "mixer",
    "integration",
    "custom_ops",
    "combinations",
    "projections",
    "gates",
    "states",
    "space",
    "histories",
    "gradients",
    "maths",
)
MODULES = [_load(f"mutants_{family}") for family in FAMILIES]
MUTANTS = tuple(Mutant(*each) for module in MODULES for each in module.MUTANTS)
RIGHT = tuple({m.RIGHT.name: m.RIGHT for m in MODULES if hasattr(m, "RIGHT")}.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``mutant`` or ``right`` once for each of them."""
    if "mutant" in metafunc.fixturenames:
        metafunc.parametrize("mutant", MUTANTS, ids=[each.variant.name for each in MUTANTS])
    if "right" in metafunc.fixturenames:
        metafunc.parametrize("right", RIGHT, ids=[each.name for each in RIGHT])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the kill matrix, whichever process made it."""
    for report in terminalreporter.getreports(""):
        for name, lines in getattr(report, "user_properties", ()):
            if name == "kill matrix":
                terminalreporter.section("kill matrix: each check, and the mutants that it catches")
                for check, names in lines.items():
                    terminalreporter.line(f"{check:26} {' '.join(names)}")


@pytest.fixture(scope="session")
def mutants() -> tuple[Mutant, ...]:
    """All of them."""
    return MUTANTS


@pytest.fixture(scope="session")
def made() -> ModuleType:
    """Make records and reports by hand; see `made_reports`."""
    return _load("made_reports")


@pytest.fixture(scope="session")
def wrong() -> dict[str, Variant]:
    """The wrong variants, by name."""
    return {each.variant.name: each.variant for each in MUTANTS}
