"""What several folders of tests need: the wheel of this very tree, and one thread for torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]

# Tests run in as many processes as there are cores. With more than one thread in each, torch's
# threads wait for each other and tests of tiny tensors take ten times as long. Read when torch
# is imported, and by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a folder once for all processes of a run; the others wait for who came first."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, whole = base / name, base / f"{name}.whole"
        with FileLock(base / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                whole.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def attnkit_wheel(made_once: Callable[..., Path]) -> Path:
    """Build the wheel as a release does, once."""

    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    (wheel,) = made_once("wheel", build).glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def counted() -> Callable[..., str]:
    """Make a program whose ``calls`` is how many Python functions code calls.

    Seconds would depend on what else the machine does.
    """

    def program(code: str, before: str = "") -> str:
        return f"""
import sys
{before}
calls = 0
def count(frame, event, argument):
    global calls
    calls += event == "call"
sys.setprofile(count)
{code}
sys.setprofile(None)
"""

    return program
