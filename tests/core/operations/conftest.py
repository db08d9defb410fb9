"""What both doors of operations are asked alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes a ``change`` once for every row of its module's ``REFUSED``."""
    if "change" in metafunc.fixturenames:
        table = metafunc.module.REFUSED
        ids = [f"{next(iter(row[0]))}-{number}" for number, row in enumerate(table)]
        metafunc.parametrize(("change", "error", "message"), table, ids=ids)
