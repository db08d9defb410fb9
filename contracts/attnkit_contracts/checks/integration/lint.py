"""I, continued: importing a plugin is cheap, and does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import util
from typing import TYPE_CHECKING, Any

from attnkit.errors import UnsupportedError
from attnkit.interface import load
from attnkit.registry import registry
from attnkit_contracts.catalogue import BrokenError, Measured, layer_check
from attnkit_contracts.foreign.layers import Recipe
from attnkit_contracts.judging.outputs import exactly
from attnkit_contracts.subjects.target import offered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attnkit.interface import Variant
    from attnkit_contracts.subjects.layers import LayerSubject

DECLARATION = """
import json, os, random, socket, sys
plan = json.loads(sys.argv[1])
sys.path[:0] = plan["path"]
import attnkit
found = {"network": []}
def connect(self, address):
    found["network"].append(str(address))
    raise OSError("a plugin must not use the network when it is imported")
socket.socket.connect = connect
before = {"random": random.getstate(), "environment": dict(os.environ), "path": list(sys.path)}
loaded = set(sys.modules)
__import__(plan["module"])
after = {"random": random.getstate(), "environment": dict(os.environ), "path": list(sys.path)}
found["changed"] = [name for name in before if before[name] != after[name]]
heavy = {"torch", "numpy", "transformers", "triton", "tensorflow", "jax"}
found["heavy"] = sorted(heavy & set(sys.modules) - loaded)
print(json.dumps(found))
"""
"""Run in a process of its own, before torch is imported."""

CODE = """
import json, sys
plan = json.loads(sys.argv[1])
sys.path[:0] = plan["path"]
import torch
from attnkit_contracts.instruments.process_state import changes, process_state
before = process_state()
for module in plan["modules"]:
    __import__(module)
print(json.dumps({"changed": changes(before)}))
"""
"""Run in a process of its own; what it compares is global to all code of a process."""


@layer_check(
    "I8.declaration",
    "Importing a variant's declaration imports no torch, opens no connection, and changes no "
    "random numbers, environment or path.",
    dtypes=("float32",),
    plugins_only=True,
)
def declaration(subject: LayerSubject) -> Measured:
    """Import it in a process of its own."""
    found = _run(DECLARATION, {"module": _home(subject.target.variant), "path": sys.path})
    if found["heavy"]:
        raise BrokenError(f"importing the declaration imports {', '.join(found['heavy'])}")
    if found["network"]:
        raise BrokenError(f"importing the declaration connects to {found['network'][0]}")
    if found["changed"]:
        raise BrokenError(f"importing the declaration changes {', '.join(found['changed'])}")
    return exactly(0, "side effects")


@layer_check(
    "I8.imports",
    "Importing a variant's code leaves torch's global state as it is: dtype, threads, random "
    "numbers, modes, its functions.",
    dtypes=("float32",),
    tier="standard",
)
def imports(subject: LayerSubject) -> Measured:
    """Import declaration, layer and implementations in a process of their own."""
    variant = subject.target.variant
    modules = [_home(variant), *dict.fromkeys(_modules(variant))]
    found = _run(CODE, {"modules": modules, "path": sys.path})
    if found["changed"]:
        raise BrokenError(f"importing {variant.name} changes {', '.join(found['changed'])}")
    return exactly(0, "changes")


def _home(variant: Variant) -> str:
    """Return the module that declares a variant."""
    for entry in registry.default().entries(variant.name):
        if entry.module:
            return entry.module.partition(":")[0]
    name = variant.config.__module__
    if not name.startswith("attnkit.") and _can_import(name):
        return name
    raise UnsupportedError(f"{variant.name} was declared in this session: no module to import")


def _modules(variant: Variant) -> Iterator[str]:
    layer = variant.layer.factory if isinstance(variant.layer, Recipe) else variant.layer
    for part in (layer, *(one.function for one in offered(variant))):
        home = part.partition(":")[0] if isinstance(part, str) else load(part)
        name = home if isinstance(home, str) else getattr(home, "__module__", "")
        if name and _can_import(name):
            yield name


def _can_import(name: str) -> bool:
    try:
        return name != "__main__" and util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _run(script: str, plan: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(  # our own script, in this interpreter
        [sys.executable, "-c", script, json.dumps(plan)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise BrokenError(f"importing it fails: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
