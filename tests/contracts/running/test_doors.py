"""The suite through pytest, and checks of strangers: each in a process of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from warm_process import run

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

pytestmark = pytest.mark.slow


def run_pytest(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, cwd=cwd)


SUITE = ("--pyargs", "attnkit_contracts")


def test_pytest_runs_one_test_per_instance_of_the_variants_it_is_told(tmp_path: Path) -> None:
    names = ("--attnkit-variant=self_attention", "--attnkit-variant=moe")
    done = run_pytest(*SUITE, *names, "--collect-only", cwd=tmp_path)

    assert "[self_attention/plain/float32/cpu/M4.window]" in done.stdout
    assert "[moe/" in done.stdout
    assert "[flash/" not in done.stdout


def test_pytest_without_a_variant_takes_all_that_are_installed(tmp_path: Path) -> None:
    done = run_pytest(*SUITE, "--collect-only", cwd=tmp_path)

    assert all(f"[{name}/" in done.stdout for name in ("flash", "linear", "moe", "state_space"))


def test_pytest_names_an_unknown_variant(tmp_path: Path) -> None:
    done = run_pytest(*SUITE, "--attnkit-variant=flsh", cwd=tmp_path)

    assert done.returncode != 0
    assert "Did you mean 'flash'" in done.stdout


def test_pytest_spreads_the_suite_over_workers(tmp_path: Path) -> None:
    done = run_pytest(
        *SUITE, "--attnkit-variant=self_attention", "-n2", "-k", "A4 or M5", cwd=tmp_path
    )

    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


AUTHORS_TEST = """
from dataclasses import replace
from attnkit_contracts import parametrize
from attnkit_plugins.softmax.self_attention import VARIANT
from attnkit_plugins.softmax.self_attention.plain import attend

def doubled(*tensors, **given):
    return 2 * attend(*tensors, **given)

one = replace(VARIANT.implementations[1], name="doubled", function=doubled)
WRONG = replace(VARIANT, name="doubling", implementations=(VARIANT.implementations[0], one))

@parametrize(WRONG)
def test_conformance(instance):
    instance.run().raise_for_status()
"""


def test_an_authors_own_test_file_fails_where_the_variant_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(AUTHORS_TEST)
    done = run_pytest("test_mine.py", "-k", "A4 and float32", cwd=tmp_path)

    assert "doubling/doubled/float32/cpu/A4.row_sums: failed" in done.stdout
    assert "doubling/reference/float32/cpu/A4.row_sums: failed" not in done.stdout
    assert "2 failed" in done.stdout or "1 failed" in done.stdout


STRANGERS_CHECK = """
import attnkit
from attnkit_contracts.catalogue import Measured, check

@check("X1.never_two", "The output is not 2.", families=("softmax",))
def never_two(subject):
    out = subject(subject.draw("X1"))
    return Measured(float((out == 2).sum()), 0.0, "twos")

@attnkit.hookimpl
def attnkit_contracts():
    return (never_two,)
"""


def test_checks_of_an_extension_are_run_behind_our_own(tmp_path: Path) -> None:
    (tmp_path / "acme_checks.py").write_text(STRANGERS_CHECK)
    metadata = tmp_path / "acme_checks-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-checks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[attnkit.extensions]\nacme = acme_checks\n")
    code = (
        "import attnkit_contracts as suite\n"
        "assert suite.all_checks()[-1].id == 'X1.never_two'\n"
        "report = suite.check('self_attention', dtypes=['float32'])\n"
        "print(report.passed, sum(record.check == 'X1.never_two' for record in report.records))"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})

    # the reference, plain and auto
    assert done.stdout.split() == ["True", "3"], done.stderr
