"""What several folders of tests need: the wheel of this very tree, and one thread for torch."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

ROOT = Path(__file__).parents[1]

# Tests run in as many processes as there are cores. With more than one thread in each, torch's
# threads wait for each other and tests of tiny tensors take ten times as long. Read when torch
# is imported, and by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def attnkit_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as a release does, once."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def page_maker() -> Callable[[str], ModuleType]:
    """Import a script that makes pages of the docs, by its name."""

    def imported(name: str) -> ModuleType:
        before = list(sys.path)
        sys.path[:0] = [str(ROOT / "docs" / "_build")]
        try:
            return importlib.import_module(name)
        finally:
            sys.path[:] = before

    return imported
