"""New Python processes that need not import torch first: forks of one that has it loaded.

Importing torch and its compiler takes three seconds, most of what a test of a command line takes.
`run` is ``subprocess.run([sys.executable, ...])`` without them. Its process has the path, the
arguments, the variables and the folder of a fresh one, and imports attnkit, plugins of pytest and
whatever was installed since anew: the one that it is forked from has loaded libraries alone.

What a process loads or costs, what it has installed, and how it ends if it crashes is not to be
tested so. One process per worker of pytest is kept; it ends with its worker.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import multiprocessing
import os
import runpy
import site
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

LOADED = ("torch._dynamo", "torch.utils.checkpoint", "pydantic", "typer", "pytest")
"""What is imported beforehand; nothing that finds plugins of its own by what is installed."""


def run(
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    executable: str | Path = sys.executable,
    merged: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments: a script, ``-m`` and a module, or ``-c`` and code.

    Args:
        arguments: Of the interpreter.
        cwd: The folder to run it in.
        env: All its variables.
        executable: The interpreter: this one, or that of a virtual environment made with it.
        merged: Whether what goes to stderr is written to stdout.
    """
    given = [str(each) for each in arguments]
    variables = dict(os.environ if env is None else env)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LOADED, __name__])
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        files = out.name, out.name if merged else err.name
        asked = (str(executable), given, str(cwd or Path.cwd()), variables, files, _library())
        process = context.Process(target=_become, args=asked)
        process.start()
        process.join()
        told = [each.read().decode() for each in (out, err)]
    return subprocess.CompletedProcess([executable, *given], process.exitcode or 0, *told)


@functools.cache
def _library() -> list[str]:
    """Return where Python's own modules are."""
    told = [sys.executable, "-ISc", "import sys; print(*sys.path, sep='\\n')"]
    return subprocess.check_output(told, text=True).split()


def _become(
    executable: str,
    arguments: list[str],
    cwd: str,
    variables: dict[str, str],
    files: tuple[str, str],
    library: list[str],
) -> None:
    """Make this process what a fresh one is, and run what it is asked to."""
    for stream, path in zip((sys.stdout, sys.stderr), files, strict=True):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, stream.fileno())
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    first, *rest = arguments
    path = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [*path, *library]
    _install(executable)
    beside = {"-m": cwd, "-c": ""}.get(first, str(Path(first).absolute().parent))
    sys.path.insert(0, beside)
    try:
        _run(first, rest)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()


def _install(executable: str) -> None:
    """See what is installed for an interpreter, as it is now."""
    sys.executable = executable
    sys.prefix, sys.exec_prefix = sys.base_prefix, sys.base_exec_prefix
    site.PREFIXES = [sys.prefix, sys.exec_prefix]
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()
    # finds the virtual environment beside the interpreter, and reads its .pth files
    site.main()


def _run(first: str, rest: list[str]) -> None:
    if first == "-m":
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv[:] = [first, *rest[1:]]
        main: Any = ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:] = [first, *rest]
        runpy.run_path(first, run_name="__main__")
