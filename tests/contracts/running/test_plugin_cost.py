"""What the pytest plugin costs a run that has nothing to do with attnkit: a few small modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

UNRELATED = """
import json, sys

def test_nothing():
    # at the end, when pytest has loaded what it needs for a test
    with open("modules.json", "w") as file:
        json.dump(sorted(sys.modules), file)
"""

OURS = {"attnkit", "attnkit.lazy", "attnkit_contracts", "attnkit_contracts.pytest_plugin"}


def modules(folder: Path, *options: str) -> set[str]:
    """Run an unrelated test and return what was imported."""
    (folder / "test_unrelated.py").write_text(UNRELATED)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        check=True,
        cwd=folder,
        capture_output=True,
        env=dict(os.environ),
    )
    return set(json.loads((folder / "modules.json").read_text()))


@pytest.fixture
def calls(counted: Callable[..., str]) -> Callable[..., int]:
    """Count the Python functions that code calls in a fresh process."""

    def count(code: str, before: str = "") -> int:
        program = f"{counted(code, before)}print(calls)"
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        return int(done.stdout)

    return count


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("unrelated")
    return modules(folder) - modules(folder, "-p", "no:attnkit")


def test_the_plugin_is_loaded_by_every_run(added: set[str]) -> None:
    assert added >= OURS


def test_the_plugin_imports_nothing_but_itself(added: set[str]) -> None:
    # a name of the standard library costs little, and may come and go with the version
    assert {name for name in added if name.partition(".")[0] not in sys.stdlib_module_names} == OURS


def test_the_plugin_costs_a_small_part_of_importing_pytest(calls: Callable[..., int]) -> None:
    plugin = calls("import attnkit_contracts.pytest_plugin", before="import pytest, pathlib")
    assert 0 < plugin < 0.1 * calls("import pytest")
