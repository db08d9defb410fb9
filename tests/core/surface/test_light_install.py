"""The wheel with what it declares and nothing else: what runs there, and what is refused by name.

The environment holds the wheel and links to the running environment's distributions, but only to
those that the wheel requires, and to those that these require. What is used and not declared is
missing there.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


class Environment(Protocol):
    """What `conftest.py` makes."""

    python: Path
    packages: Path

    def run(self, code: str) -> Any: ...
    def copy(self, folder: Path) -> Environment: ...


def required(requirements: Iterable[str]) -> set[str]:
    """Return the names of distributions that some requirements bring, their own included."""
    found: set[str] = set()
    waiting = [(Requirement(each), "") for each in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for name in ("", *sorted(requirement.extras)):
            if (key := f"{requirement.name.lower()}[{name}]") not in found:
                found.add(key)
                own = metadata.requires(requirement.name) or ()
                waiting += [(Requirement(each), name) for each in own]
    return {key.partition("[")[0] for key in found}


def link(distribution: str, packages: Path) -> None:
    """Link what a distribution installed next to its metadata."""
    installed = metadata.distribution(distribution)
    for name in {path.parts[0] for path in installed.files or () if path.parts[0] != ".."}:
        source = Path(str(installed.locate_file(name)))
        if source.exists() and not (packages / name).exists():
            (packages / name).symlink_to(source)


@pytest.fixture(scope="module")
def light(
    tmp_path_factory: pytest.TempPathFactory, attnkit_wheel: Path, empty_environment: Any
) -> Environment:
    environment: Environment = empty_environment(tmp_path_factory.mktemp("light") / "venv")
    with zipfile.ZipFile(attnkit_wheel) as wheel:
        wheel.extractall(environment.packages)
    (own,) = metadata.distributions(name="attnkit", path=[str(environment.packages)])
    for distribution in sorted(required(own.requires or ())):
        link(distribution, environment.packages)
    return environment


@pytest.fixture(scope="module")
def lighter(light: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Take away what torch and rich happen to bring, and what `attnkit[check]` names."""
    environment = light.copy(tmp_path_factory.mktemp("lighter") / "venv")
    for name in ("jinja2", "markdown_it"):
        (environment.packages / name).unlink()
    return environment


def attnkit(environment: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [environment.python, "-I", "-m", "attnkit_contracts", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_what_is_not_declared_is_not_there(light: Environment) -> None:
    there = light.run(
        "from importlib.util import find_spec\n"
        "names = 'pytest', 'transformers', 'hypothesis', 'torch', 'attnkit'\n"
        "show([name for name in names if find_spec(name)])"
    )
    assert there == ["torch", "attnkit"]


def test_what_is_installed_is_listed(light: Environment) -> None:
    done = attnkit(light, "list", "--names")
    assert done.returncode == 0, done.stderr
    assert {"flash", "linear", "moe"} <= set(done.stdout.split())


def test_one_variant_of_each_family_is_checked(light: Environment, tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    done = attnkit(light, "check", *FEW, "--md", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "linear" in report.read_text()


FEW = ("self_attention", "linear", "moe", "--dtype", "float32", "--implementation", "reference")


def test_a_model_of_torch_is_swapped(light: Environment) -> None:
    changed, ran = light.run(
        "import attnkit, torch\n"
        "model = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()\n"
        "x = torch.randn(2, 5, 16)\n"
        "before = model(x)\n"
        "swap = attnkit.swap(model, 'multi_head', sample={'src': x})\n"
        "apart = float((model(x) - before).detach().abs().max())\n"
        "show([apart, [site.variant for site in swap.receipt.sites]])"
    )
    assert ran == ["multi_head"]
    # float32, sums of at most 32 terms of size 1
    assert changed < 1e-5


@pytest.mark.parametrize(
    "arguments", [("check", *FEW, "--html", "report.html"), ("check", *FEW, "--html", "-")]
)
def test_a_page_is_refused_before_any_check_by_what_it_needs(
    lighter: Environment, arguments: tuple[str, ...]
) -> None:
    done = attnkit(lighter, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "attnkit: a page or a badge needs the package 'jinja2', which is not installed: "
        "pip install 'attnkit[check]'\n"
    )


def test_parametrize_is_refused_by_what_it_needs(light: Environment) -> None:
    said = light.run(
        "import attnkit_contracts\n"
        "try:\n    attnkit_contracts.parametrize\n"
        "except ImportError as error:\n    show([type(error).__name__, str(error)])"
    )
    assert said == [
        "MissingPackageError",
        "attnkit_contracts.parametrize needs the package 'pytest', which is not installed: "
        "pip install 'attnkit[check]'",
    ]


def test_the_group_of_tests_has_all_that_the_suite_needs() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extra = settings["project"]["optional-dependencies"]["check"]
    assert set(extra) <= {
        each for each in settings["dependency-groups"]["test"] if isinstance(each, str)
    }
