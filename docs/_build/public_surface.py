"""What is public: the modules that code outside of this project may import, and their names.

`PUBLIC` is the one list; ``docs/reference/stability.md`` shows it, `strangers` finds what goes
beside it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ROOT = Path(__file__).parents[2]
FOLDERS = {"attnkit": "core", "attnkit_contracts": "contracts"}


class Module(NamedTuple):
    """A public module.

    Attributes:
        what: What it is for.
        names: Which of its names are public, separated by spaces; empty for all: its ``__all__``,
            or what it defines, or gives on, without an underscore in front.
    """

    what: str
    names: str = ""


PUBLIC: Mapping[str, Mapping[str, Module]] = {
    "to use variants": {
        "attnkit": Module("the front door"),
        "attnkit.errors": Module("what it raises"),
        "attnkit.choice": Module("which implementation runs, and why"),
        "attnkit.choice.decision": Module("the same", "explain_choice"),
        "attnkit.choice.front": Module("the same", "choose"),
        "attnkit.choice.outputs": Module("the same", "check_output check_outputs"),
        "attnkit.choice.transforms": Module("the same", "transforms"),
        "attnkit.operations.attention": Module("what a call asks for", "problem_of"),
        "attnkit.registry": Module("what is installed"),
        "attnkit.registry.registry": Module("the same", "default"),
        "attnkit.state": Module("states of layers and recurrences"),
        "attnkit.swaps": Module("what a swap says"),
    },
    "to write a variant": {
        "attnkit.interface": Module("what a plugin declares"),
        "attnkit.promises": Module("what it promises"),
        "attnkit.problem": Module(
            "what a call asks for",
            "Problem SoftmaxProblem RecurrenceProblem FeedforwardProblem",
        ),
        "attnkit.families": Module("a family of variants that attnkit does not have", "Family"),
        "attnkit.reference": Module("the definitions"),
        "attnkit.masks": Module("masks"),
        "attnkit.masks.constructors": Module("the same"),
        "attnkit.masks.padded_tokens": Module("padded tokens set to 0"),
        "attnkit.masks.codes": Module("a mask as text, numbers and tensors", "decode encode"),
        "attnkit.masks.reader": Module("from a mask tensor to a mask", "read_mask"),
        "attnkit.masks.recognition": Module("the structure of a dense mask", "lift lift_causal"),
        "attnkit.masks.tensors": Module("a mask whose tensor was not read", "Unread"),
        "attnkit.layers": Module("layers, and what they share"),
        "attnkit.layers.construction": Module("what a layer is made with", "MadeLayer New"),
        "attnkit.layers.heads": Module(
            "the geometry of heads", "GroupedHeadsConfig HeadsConfig check_multiple"
        ),
        "attnkit.layers.recurrent": Module(
            "what layers of recurrences share", "Past RecurrentLayer split_heads"
        ),
        "attnkit.layers.softmax": Module("the same", "SoftmaxLayer"),
        "attnkit.layers.definition": Module(
            "softmax layers in float64, and steps of other definitions",
            "Weights heads_of project side_by_side softmax turned unpadded visible",
        ),
        "attnkit.layers.softmax_config": Module("its configuration", "SoftmaxConfig"),
        "attnkit.at_rest": Module(
            "what weights say between two calls", "input_like weight_at_rest"
        ),
        "attnkit.operations.arguments": Module(
            "rules for arguments", "check_mask check_state check_tokens dtype_name"
        ),
        "attnkit.operations.recurrence": Module("the call of a recurrence", "recurrence"),
        "attnkit.operations.recurrence_run": Module("its packed sequences", "Layout layout_of"),
        "attnkit.kernels.implementations": Module("what many implementations declare"),
        "attnkit.kernels.costs": Module("what softmax costs"),
        "attnkit.kernels.tiles": Module(
            "softmax attention in tiles",
            "LOG2_E Gradients Kept Rules attend backward forward",
        ),
        "attnkit.kernels.stepwise": Module("a recurrence token by token", "recur"),
        "attnkit.kernels.chunks": Module("a recurrence in chunks"),
        "attnkit.kernels.onednn": Module(
            "float32 products by oneDNN", "fast fast_products gain stays_exact"
        ),
        "attnkit.placements": Module(
            "how a variant takes the place of a layer", "Placement SiteOptions"
        ),
        "attnkit.swaps.families": Module(
            "how the variants of a family stand in a model",
            "Assignment Attempt Measure Standing SwapFamily",
        ),
        "attnkit.hosts.parts": Module("what a variant builds for a site of a model"),
    },
    "to write a host": {
        "attnkit.hosts": Module("what an adapter implements"),
        "attnkit.hosts.protocol": Module("the same"),
        "attnkit.swaps.api": Module("what an adapter finds", "Kind Needs Site"),
        "attnkit.sites": Module("the same", "ROOT Kind Needs Site Survey"),
        "attnkit.hosts.mounts": Module(
            "putting something into a model, and taking it out",
            "Mount Mounted mount original site_at site_path submodule",
        ),
        "attnkit.hosts.sdpa_calls": Module(
            "calls of torch's attention function",
            "autocast calls_attention fit intercept mixed",
        ),
        "attnkit.hosts.own_modules": Module(
            "modules that a user declares", "Declaration declaration"
        ),
        "attnkit.hosts.outputs": Module("running a model", "named_tensors numbers run_model"),
        "attnkit.hosts.leak_probes": Module(
            "inputs that show a leak",
            "by_shape everything exchanged is_causal neighbours second_half sees",
        ),
    },
    "to check, and to write checks": {
        "attnkit_contracts": Module("the suite"),
        "attnkit_contracts.foreign": Module("code that is no plugin", "no_layer"),
        "attnkit_contracts.catalogue": Module(
            "what a check is and raises",
            "BrokenError Check InconclusiveError Measured SkippedEnvError check",
        ),
        "attnkit_contracts.subjects.subject": Module("what a check is run on", "Subject"),
        "attnkit_contracts.subjects.layers": Module("a layer as such", "LayerSubject MixerLayer"),
        "attnkit_contracts.judging": Module("how outputs are compared"),
        "attnkit_contracts.judging.units": Module("how large an error may be", "roundoff"),
    },
}
"""By purpose, the modules. A shorter list is a better one."""

MODULES = {name: module for modules in PUBLIC.values() for name, module in modules.items()}


class Use(NamedTuple):
    """A name of attnkit that some code imports; no name where it is the module."""

    path: Path
    line: int
    module: str
    name: str

    def __str__(self) -> str:
        what = f"{self.name} of {self.module}" if self.name else self.module
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {what}"


def names(module: str) -> list[str]:
    """Return the public names of a public module, as the list or else its text has them."""
    told = MODULES[module].names.split()
    if told:
        return told
    found = defined(module)
    if "__all__" in found:
        return list(ast.literal_eval(cast("ast.expr", found["__all__"])))
    return sorted(name for name, value in found.items() if not (name[0] == "_" or _is_type(value)))


def defined(module: str) -> dict[str, ast.expr | None]:
    """Return what a module's text defines or gives on at its top, with the values it assigns."""
    found: dict[str, ast.expr | None] = {}
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    # types that only a type checker sees stand in a block of their own
    blocks = (node.body for node in tree.body if isinstance(node, ast.If))
    for node in (*tree.body, *(each for block in blocks for each in block)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = None
        elif isinstance(node, ast.ImportFrom):
            found |= {each.name: None for each in node.names if each.asname == each.name}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (each for target in targets for each in ast.walk(target)):
                if isinstance(target, ast.Name):
                    found[target.id] = node.value
    return found


def used(paths: Iterable[Path]) -> Iterator[Use]:
    """Find what Python files and the examples of pages import of attnkit."""
    for path in paths:
        text = path.read_text(encoding="utf-8")
        sources = _examples(text) if path.suffix == ".md" else ((0, text),)
        for above, source in sources:
            for line, module, name in _imports(ast.parse(source)):
                if module.split(".")[0] in FOLDERS:
                    yield Use(path, above + line, *_resolved(module, name))


def strangers(paths: Iterable[Path]) -> list[Use]:
    """Return what is imported and not public."""
    return [
        use
        for use in used(paths)
        if use.module not in MODULES or (use.name and use.name not in names(use.module))
    ]


def built_ins() -> list[Path]:
    """Return the files of the built-in variants and hosts."""
    return sorted((ROOT / "plugins").rglob("*.py"))


def examples() -> list[Path]:
    """Return the plugins of strangers in the tests, and the pages that show how to write code."""
    pages = [
        page for folder in ("how-to", "tutorial") for page in (ROOT / "docs" / folder).iterdir()
    ]
    distributions = (ROOT / "tests" / "core" / "distributions").rglob("*.py")
    return sorted([*distributions, *pages, ROOT / "README.md"])


def _file(module: str) -> Path:
    package, *rest = module.split(".")
    base = ROOT.joinpath(FOLDERS[package], package, *rest)
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _resolved(module: str, name: str) -> tuple[str, str]:
    """Tell a module that is imported by name from a value: a face's value hides its module."""
    is_value = module in MODULES and name in names(module)
    if name and not is_value and _file(f"{module}.{name}").exists():
        return f"{module}.{name}", ""
    return module, name


def _is_type(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "TypeVar"


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            reference = re.fullmatch(r"(attnkit[\w.]*):(\w+)", node.value)
            if reference:
                yield node.lineno, reference[1], reference[2]


def _examples(text: str) -> Iterator[tuple[int, str]]:
    """Yield the imports in a page's Python, one a piece, and the number of the line above."""
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        above = text.count("\n", 0, block.start()) + 1
        for number, line in enumerate(block[1].splitlines()):
            source = line.removeprefix(">>> ")
            if re.match(r"(from|import) attnkit", source):
                yield above + number, source
