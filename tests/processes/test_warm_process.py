"""A warm process is like a fresh one, but for the libraries that it has loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from warm_process import run

if TYPE_CHECKING:
    from pathlib import Path

TOLD = """
import os, sys
from importlib.metadata import version
import __main__
print(sys.path, sys.argv, sys.executable, sys.prefix, os.getcwd(), sorted(os.environ.items()))
print(__name__, __main__.__dict__ is globals(), version("acme"))
print([name for name in sys.modules if name.startswith("attnkit")])
print("to stderr", file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [("-c", TOLD), ("-m", "acme"), ("acme.py",)])
def test_it_sees_what_a_fresh_one_sees(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "acme.py").write_text(TOLD)
    installed = tmp_path / "elsewhere" / "acme-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    env = {**os.environ, "PYTHONPATH": str(installed.parent), "ACME": "1"}
    fresh = subprocess.run(
        [sys.executable, *arguments, "--flag"],
        check=True,
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    done = run(*arguments, "--flag", cwd=tmp_path, env=env)

    assert done.stdout == fresh.stdout
    assert done.stderr == fresh.stderr
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("code", "ended", "told"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('wrong')", 1, "wrong\n"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_it_ends_as_a_fresh_one_does(code: str, ended: int, told: str) -> None:
    done = run("-c", code)

    assert done.returncode == ended
    assert done.stderr.endswith(told)
