"""What pages about models take from the tests: tiny models, and how to import timm alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

FOLDER = str(Path(__file__).parents[2] / "tests" / "plugins")


def of_tests(module: str) -> Any:
    """Import a module that the tests of models share."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    return importlib.import_module(module)
