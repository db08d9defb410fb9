"""What is cheap stays cheap: the front door, the list and the pytest plugin load no torch.

Each test looks at a fresh process in an environment where the wheel is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow


class Environment(Protocol):
    """The fixture ``strangers``, see `conftest.py`."""

    def run(self, code: str, **variables: str) -> Any: ...


HEAVY = ("torch", "numpy", "transformers")


@pytest.mark.parametrize(
    "code",
    [
        "import attnkit",
        "import attnkit; [row.name for row in attnkit.list_variants()]",
        "import attnkit; attnkit.get_variant('flash')",
        "import attnkit_contracts",
        "import attnkit_contracts.pytest_plugin",
        "import attnkit.cli.app",
    ],
)
def test_no_torch_is_imported_by(code: str, strangers: Environment) -> None:
    loaded = strangers.run(f"{code}\nshow([name for name in {HEAVY} if name in sys.modules])")
    assert loaded == []


def test_every_declaration_of_ours_is_imported_without_torch(strangers: Environment) -> None:
    loaded = strangers.run(
        "import attnkit\n"
        "ours = [row for row in attnkit.list_variants() if row.owner == 'attnkit']\n"
        "culprits = []\n"
        "for row in ours:\n"
        "    row.variant\n"
        f"    culprits += [row.name for name in {HEAVY} if name in sys.modules][:1]\n"
        "show([len(ours), culprits[:1]])"
    )
    assert loaded[0] >= 9
    assert loaded[1] == []


@pytest.fixture
def calls(strangers: Environment, counted: Callable[..., str]) -> Callable[[str], int]:
    """Count the Python functions that code calls in a fresh process."""
    return lambda code: strangers.run(f"{counted(code)}show(calls)")


def test_importing_attnkit_takes_a_fraction_of_importing_pydantic(
    calls: Callable[[str], int],
) -> None:
    ours = calls("import attnkit")
    assert 0 < ours < 0.5 * calls("from pydantic import BaseModel")


def test_listing_takes_a_fraction_of_importing_torch(calls: Callable[[str], int]) -> None:
    ours = calls("import attnkit; [row.name for row in attnkit.list_variants()]")
    assert 0 < ours < 0.5 * calls("import torch")


def test_a_call_loads_nothing_of_the_compiler(strangers: Environment) -> None:
    call = "import attnkit, torch\nx = torch.ones(1, 1, 2, 1)\nattnkit.attention(x, x, x)\n"
    loaded = strangers.run(
        f"{call}show([n for n in ('torch._dynamo', 'sympy') if n in sys.modules])"
    )
    assert loaded == []
