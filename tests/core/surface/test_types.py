"""What type checkers say of code that uses the installed wheel: right code and deliberate mistakes.

One call of each checker for all files: both take longest to read torch.
"""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

pytestmark = pytest.mark.slow

README = Path(__file__).parents[3] / "README.md"


class Environment(Protocol):
    """The fixture ``strangers``, see `conftest.py`."""

    python: Path


RIGHT = """\
import attnkit
import attnkit_contracts
import torch
from attnkit.interface import Layer
from typing_extensions import assert_type

layer = attnkit.create("multi_head", embed_dim=64, num_heads=8, is_causal=True)
x = torch.randn(2, 10, 64)
assert_type(layer(x), torch.Tensor)
assert_type(layer(x, mask=attnkit.causal() & attnkit.sliding_window(2)), torch.Tensor)
first, state = layer(x[:, :7], state=layer.init_state(batch_size=2))
assert_type(first, torch.Tensor)
last, state = layer(x[:, 7:], state=state)
state.truncate(3).reorder(torch.tensor([1, 0]))
module: torch.nn.Module = layer.to("cpu").eval()
also: Layer = layer
contract: str = attnkit.api_version
judged = attnkit_contracts.adapt(torch.add, promises="causal", layout="BLHE", fixed={"alpha": 1})
assert_type(judged, attnkit.Variant)
attnkit_contracts.adapt_layer("torch.nn:GRU", promises=["causal"], construct={"input_size": 4})
"""

WRONG = """\
import attnkit
import attnkit_contracts
import torch

x = torch.randn(2, 10, 64)
layer = attnkit.create("multi_head", embed_dim=64)
attnkit.nonsense  # wrong
attnkit.create(3)  # wrong
layer.init_state("2")  # wrong
layer.init_state()  # wrong
layer(x, stat=None)  # wrong
layer(x, mask=x)  # wrong
layer(x).tokens  # wrong
layer(x, state=layer.init_state(2)).shape  # wrong
attnkit.attention(x, x)  # wrong
attnkit.attention(x, x, x, masks=None)  # wrong
attnkit_contracts.adapt("torch:add", promises="causal", layouts="BLHE")  # wrong
attnkit_contracts.adapt("torch:add", promises="causal", layout="HBLE")  # wrong
attnkit_contracts.adapt_layer("torch.nn:GRU")  # wrong
"""


class Said(NamedTuple):
    """By file, the lines that a checker complains of, and all that it said."""

    lines: dict[str, list[int]]
    text: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("typed")
    examples = doctest.DocTestParser().get_examples(README.read_text(encoding="utf-8"))
    (folder / "readme.py").write_text("".join(example.source for example in examples))
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text(WRONG)
    return folder


def by_mypy(folder: Path, python: Path, cache: Path) -> Said:
    options = ["--strict", "--python-executable", str(python), "--cache-dir", str(cache)]
    done = run("mypy", folder, *options, "--config-file", "")
    found = re.findall(r"^(\w+\.py):(\d+): error", done, re.MULTILINE)
    return Said(gathered((name, int(line)) for name, line in found), done)


def by_pyright(folder: Path, python: Path, _: Path) -> Said:
    done = run("pyright", folder, "--outputjson", "--pythonpath", str(python))
    told: list[dict[str, Any]] = json.loads(done[done.index("{") :])["generalDiagnostics"]
    return Said(
        gathered(
            (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
            for each in told
            if each["severity"] == "error"
        ),
        done,
    )


def run(tool: str, folder: Path, *options: str) -> str:
    command = [
        sys.executable,
        "-m",
        tool,
        *options,
        *sorted(each.name for each in folder.iterdir()),
    ]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True).stdout


def gathered(found: Any) -> dict[str, list[int]]:
    lines: dict[str, set[int]] = {}
    for name, line in found:
        lines.setdefault(name, set()).add(line)
    return {name: sorted(at) for name, at in lines.items()}


@pytest.mark.parametrize("checker", [by_mypy, by_pyright])
def test_checkers_pass_what_is_right_and_flag_each_mistake(
    checker: Any, files: Path, strangers: Environment, request: pytest.FixtureRequest
) -> None:
    # kept between runs: reading torch the first time takes mypy twenty seconds
    cache = Path(request.config.cache.mkdir("types"))  # type: ignore[union-attr]
    said = checker(files, strangers.python, cache)
    mistakes = [n for n, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")]
    assert said.lines == {"wrong.py": mistakes}, said.text
