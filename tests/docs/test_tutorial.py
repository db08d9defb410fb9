"""The pages that build a plugin, followed to the letter: files are written, commands are run.

A page is a sequence of steps:

- "File `NAME`:" and a fenced block: write the block to that file;
- "Replace `A` by `B` in `NAME`": do that;
- a fenced block ``console``: run each line after ``$ `` and compare what it prints with what
  follows it, ``...`` standing for anything. The command must end with 0, or where the page shows
  ``FAILED``, with 1.

The environment is a fresh one with attnkit's wheel that sees the packages of this one, so nothing
is downloaded: pip gets ``--no-deps --no-build-isolation``. What needs no shell and installs nothing
runs in a fork that has torch loaded, see `warm_process`.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

import pytest
import warm_process

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    "tutorial/write-a-plugin.md",
    "how-to/add-a-check.md",
    "how-to/certify-a-plugin.md",
    "how-to/diagnose-a-function.md",
    "how-to/judge-a-layer.md",
    "how-to/write-a-host.md",
)

STEP = re.compile(
    r"^File `(?P<file>[^`]+)`:\n\n```\w+\n(?P<text>.*?)^```$"
    r"|[Rr]eplace `(?P<old>[^`]+)`\s+by\s+`(?P<new>[^`]+)`\s+in\s+`(?P<where>[^`]+)`"
    r"|^```console\n(?P<console>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
STARTS = {"attnkit": ("-m", "attnkit_contracts"), "pytest": ("-m", "pytest"), "python": ()}
"""The arguments of Python that a command stands for."""

FLAGS = "pip install --no-deps --no-build-isolation --no-index "

COMMAND = re.compile(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


class Environment(NamedTuple):
    """A virtual environment and the folder of the plugin."""

    folder: Path
    scripts: Path

    def run(self, command: str) -> tuple[int, str]:
        """Run a command line as a reader would; return its exit code and all it printed."""
        variables = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))},
            "PATH": f"{self.scripts}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        started, *rest = shlex.split(command, posix=True)
        arguments = [*STARTS.get(started, ()), *rest]
        done: subprocess.CompletedProcess[str]
        if started in STARTS and "pip" not in rest and not set(command) & set("|>&$"):
            done = warm_process.run(
                *arguments,
                cwd=self.folder,
                env=variables,
                executable=self.scripts / "python",
                merged=True,
            )
        else:
            done = subprocess.run(
                command.replace("pip install ", FLAGS),
                shell=True,
                cwd=self.folder,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        return done.returncode, done.stdout


@pytest.fixture
def environment(tmp_path: Path, attnkit_wheel: Path) -> Environment:
    """Make an empty folder, and an environment with attnkit's wheel that sees packages of ours."""
    root = tmp_path / "venv"
    venv.create(root, with_pip=False, symlinks=True)
    scripts = root / "bin"
    # before it sees our packages, which have attnkit among them
    install = ["install", "--quiet", "--no-deps", "--no-index", str(attnkit_wheel)]
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), *install]
    subprocess.run(pip, check=True)
    paths = sysconfig.get_paths(vars={"base": str(root), "platbase": str(root)})
    here = sysconfig.get_path("purelib")
    # addsitedir, not the bare path: it reads the .pth files of editable installs too
    line = f"import site; site.addsitedir({here!r})\n"
    Path(paths["purelib"], "this_environment.pth").write_text(line)
    for name in ("attnkit", "pytest"):
        script, arguments = scripts / name, " ".join(STARTS[name])
        script.write_text(f'#!/bin/sh\nexec "{scripts}/python" {arguments} "$@"\n')
        script.chmod(0o755)
    folder = tmp_path / "plugin"
    folder.mkdir()
    return Environment(folder, scripts)


def follow(environment: Environment, step: re.Match[str]) -> None:
    """Do what one step of the page says."""
    if step["file"]:
        path = environment.folder / step["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step["text"])
    elif step["old"]:
        path = environment.folder / step["where"]
        text = path.read_text()
        assert text.count(step["old"]) == 1
        path.write_text(text.replace(step["old"], step["new"]))
    else:
        for command, expected in COMMAND.findall(step["console"]):
            check(environment, command, expected)


def check(environment: Environment, command: str, expected: str) -> None:
    """Run a command of the page and compare."""
    code, printed = environment.run(command)
    told = f"$ {command}\n{printed}"
    found = "FAILED" in expected or "\nmistake:" in expected
    assert code == (1 if found else 0), told
    if expected:
        same = doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)
        assert same, f"{told}\nbut the page shows:\n{expected}"


@pytest.mark.parametrize("page", PAGES)
def test_a_reader_who_follows_the_page_gets_what_it_shows(
    environment: Environment, page: str
) -> None:
    for step in STEP.finditer((DOCS / page).read_text()):
        follow(environment, step)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_is_a_step(page: str) -> None:
    text = (DOCS / page).read_text()
    followed = "".join(step[0] for step in STEP.finditer(text))
    blocks = re.findall(r"^```(?!text)\w+\n.*?^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    assert [block for block in blocks if block not in followed] == []
