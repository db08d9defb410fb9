"""A fresh environment with attnkit and the distributions of strangers, really installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).with_name("distributions")


class Environment:
    """A virtual environment in which python code can be run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scheme = {"base": str(folder), "platbase": str(folder)}
        self.packages = Path(sysconfig.get_path("purelib", "venv", scheme))
        scripts = Path(sysconfig.get_path("scripts", "venv", scheme))
        self.python = scripts / Path(sys.executable).name

    def pip(self, *arguments: str) -> None:
        """Run the pip of the running environment on this one."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment)

    def run(self, code: str, **variables: str) -> Any:
        """Run code in a fresh process; what it passes to ``show`` is returned."""
        script = f"import json, sys\ndef show(value): print(json.dumps(value))\n{code}"
        done = subprocess.run(
            [self.python, "-I", "-c", script],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **variables},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def copy(self, folder: Path) -> Environment:
        """Return an environment that can be changed without changing this one."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Environment(folder)


def made(folder: Path) -> Environment:
    """Make an environment that holds nothing."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return Environment(folder)


@pytest.fixture(scope="session")
def empty_environment() -> Callable[[Path], Environment]:
    """Return what makes an environment that holds nothing, in a folder."""
    return made


@pytest.fixture(scope="session")
def strangers(made_once: Callable[..., Path], attnkit_wheel: Path) -> Environment:
    """Install everything in `distributions`, beside two traces of older installations.

    Nobody changes it: every process of a run uses the same one.
    """
    folder = made_once("strangers", lambda folder: _install(attnkit_wheel, folder))
    return Environment(folder / "venv")


def _install(attnkit_wheel: Path, folder: Path) -> None:
    wheels = folder / "wheels"
    for project in sorted(each for each in FOLDER.iterdir() if each.is_dir()):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
        subprocess.run(command, cwd=project, check=True, capture_output=True)
    environment = made(folder / "venv")
    built = [str(wheel) for wheel in sorted(wheels.glob("*.whl"))]
    environment.pip("install", "--no-deps", "--no-index", str(attnkit_wheel), *built)
    # what a broken uninstall leaves behind has no name
    leftover = write_metadata(environment.packages, "acme-leftover", OFFER % b"acme_leftover")
    (leftover / "METADATA").unlink()
    # a second copy further down the path, of another version
    write_metadata(folder / "elsewhere", "acme-window", OFFER % b"acme_old")
    # torch, pydantic and the others come from the running environment
    ours = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    lines = [str(folder / "elsewhere"), *ours]
    (environment.packages / "others.pth").write_text("\n".join(lines))


@pytest.fixture(scope="session")
def unreadable(strangers: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Add files that no parser takes: one by hand, two in a foreign encoding."""
    environment = strangers.copy(tmp_path_factory.mktemp("unreadable") / "venv")
    by_hand = b"# by hand\n[attnkit]\nacme_malformed acme_malformed\n"
    write_metadata(environment.packages, "acme-malformed", by_hand)
    write_metadata(environment.packages, "acme-latin", OFFER % "acme_größe".encode("latin-1"))
    foreign = "[console_scripts]\nmaß = maß:main\n".encode("latin-1")
    write_metadata(environment.packages, "stranger-latin", foreign)
    return environment


OFFER = b"[attnkit]\n%s = acme_somewhere\n"


def write_metadata(packages: Path, name: str, entry_points: bytes) -> Path:
    """Write a distribution's metadata as installers do, and return its folder."""
    folder = packages / f"{name.replace('-', '_')}-0.1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_bytes(entry_points)
    return folder
