"""A few lines of Python that show a wrong call with torch, attnkit and the variant alone."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import sys
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch

from attnkit.errors import AttnkitError
from attnkit.frozen import Same
from attnkit.masks.constructors import (
    Blocks,
    Dense,
    Documents,
    Or,
    Padding,
    PrefixLM,
    causal,
    full,
)
from attnkit.registry import registry
from attnkit.registry.discovery import SESSION
from attnkit_contracts.diagnosis.faults import fault_of
from attnkit_contracts.diagnosis.smallest import is_small
from attnkit_contracts.inputs.calls import showing_weights
from attnkit_contracts.subjects.layers import sample_options
from attnkit_contracts.subjects.target import Written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from attnkit.interface import Variant
    from attnkit.masks.constructors import Mask
    from attnkit_contracts.diagnosis.observations import Fault
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.judging.outputs import Bound
    from attnkit_contracts.subjects.subject import Subject

SEEDS = 4
LONG = 160
"""Characters of a mask that is no longer written out where a call is described."""

EXPECTED_NUMBERS = 256

RECIPES = {
    "log_decay": "-torch.rand({shape}, dtype={dtype})",
    "beta": "torch.rand({shape}, dtype={dtype})",
    "initial_state": "torch.randn({shape}, dtype={dtype})",
}
"""How tensors are drawn, by name; the others are `torch.randn`."""

POSITIONAL = ("x", "query", "key", "value", "grad_out")
"""The tensors that a call is not given by name."""

ANYWHERE = Written([], "VARIANT", "VARIANT")
"""How lines name a variant that no script can import."""

DEFAULT = "torch.randn({shape}, dtype={dtype})"


def script(subject: Subject, call: Call, lines: Sequence[str]) -> str:
    """Return the script, which ends in an error as long as the call is wrong.

    It is empty where the variant, or what is wrong with the call, cannot be written down. The
    ``lines`` make its tensors, see `inputs`.
    """
    where, fault = whereabouts(subject.target.variant), fault_of(subject, call)
    body = [] if where is None or fault is None else _shown(subject, call, where, fault)
    if where is None or not body:
        return ""
    head = ["import torch", "", "import attnkit", *where.imports, ""]
    plain = "\n".join([*head, *lines, "", *body])
    # what is wrong without gradients alone is looked at without
    without = "\n".join([*head, "torch.set_grad_enabled(False)", *lines, "", *body])
    return next((each for each in (plain, without) if _fails(each)), "")


def after_another(subject: Subject, call: Call, lines: Sequence[str], script: str) -> Iterator[str]:
    """Yield the script of a call with another call of the same sizes made before."""
    where = whereabouts(subject.target.variant)
    if where is None:
        return
    other = causal() if not call.mask.is_causal else full()
    names = [name for name in call.tensors if name in POSITIONAL and name != "grad_out"]
    for mask, drawn in ((other, False), (call.mask, True), (other, True)):
        kept = [f"{name}_ = {name}" for name in names] if drawn else []
        new = [f"{name} = torch.randn_like({name})" for name in names] if drawn else []
        back = [f"{name} = {name}_" for name in names] if drawn else []
        told = "# another call of the same sizes, on which the next one must not depend"
        earlier = _call_lines(subject, call.masked(mask), where, "earlier")
        before = [told, *kept, *new, *earlier, *back, ""]
        head, _, body = script.partition("\n".join(lines))
        yield "\n".join([head.rstrip("\n"), "", *lines, "", *before, body.lstrip("\n")])


def _fails(script: str) -> bool:
    """Return whether a script ends in an error here."""
    try:
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            exec(script, {"__name__": "__main__"})
    # any error: that is what it is to end in
    except Exception:
        return True
    return False


def related_script(subject: Subject, call: Call, shows: Callable[[Call], Sequence[str]]) -> str:
    """Return a script of lines that show more than one call to be wrong, or one not refused.

    Those for a call, behind the ones that make its tensors and a ``layer``, are returned by
    ``shows``; none if the call is right.
    """
    where = whereabouts(subject.target.variant)
    written = None if where is None else inputs(call, lambda other: bool(shows(other)))
    if where is None or written is None:
        return ""
    call, lines = written
    made = [] if subject.layer is None else made_lines(subject, where)
    imports = ["import torch", "", "import attnkit", *where.imports]
    return "\n".join([*imports, "", *lines, *made, "", *shows(call)])


def call_lines(subject: Subject, call: Call, where: Written) -> list[str]:
    """Return lines that define ``call()``, which makes a call and returns its output."""
    name, arguments = subject.written("got", where, _given(call))
    lines = ["def call():", *_called(name, arguments), "return got"]
    return [lines[0], *(f"    {line}" for line in lines[1:]), ""]


def _shown(subject: Subject, call: Call, variant: Written, fault: Fault) -> list[str]:
    """Return lines that make a call and end in an error if it is wrong; none if too many."""
    if not subject.is_defined and fault.kind == "values":
        return []
    if "grad_out" in call.tensors:
        made = _gradient_lines(subject, call, variant, fault)
    else:
        made = _call_lines(subject, call, variant, "got", output=fault.name)
    if fault.got is None or fault.limit is None:
        return _around_a_write(made, fault.name) if fault.kind == "write" else made
    shown = [*made, 'print("got     ", got)']
    if fault.kind == "shape":
        return [*shown, f"assert got.shape == {tuple(fault.limit.exact.shape)}, got.shape"]
    if fault.kind == "dtype":
        return [*shown, f"assert got.dtype == torch.{subject.target.dtype}, got.dtype"]
    if not subject.is_defined:
        return [*shown, "assert got.isfinite().all()"]
    return _compared(fault.limit, subject.target.dtype, placed(fault.got), shown)


def _compared(limit: Bound, dtype: str, there: str, shown: list[str]) -> list[str]:
    """Return lines that compare what a call gives with the definition's answer."""
    exact, allowed = limit.exact, (limit.unit * limit.gate).expand_as(limit.exact)
    if exact.numel() > EXPECTED_NUMBERS:
        return []
    digits = 17 if dtype == "float64" else 8
    return [
        "# the float64 definition's answer, and how far off another may be",
        f"expected = {_tensor(exact, 'torch.float64', digits)}{there}",
        f"allowed = {_tensor(allowed, 'torch.float64', 3)}{there}",
        'print("expected", expected)',
        *shown,
        "off = (got.double() - expected).abs()",
        'assert (off <= allowed).all(), f"off by up to {off.max():.3g}"',
    ]


def _around_a_write(made: list[str], name: str) -> list[str]:
    return [
        f"before = {name}.clone()",
        *made,
        'print("before", before)',
        f'print("after ", {name})',
        f'assert torch.equal({name}, before), "{name} is written to"',
    ]


def inputs(call: Call, persists: Callable[[Call], bool]) -> tuple[Call, list[str]] | None:
    """Return a call, and lines that make its tensors: drawn anew if that shows the fault as well.

    None where it cannot be written down.
    """
    laid = [] if call.layout is None else call.layout.lines(call.tensors)
    for seed in range(SEEDS):
        drawn, lines = _drawn(call, seed)
        try:
            if persists(drawn):
                return drawn, [*lines, *laid]
        # the same calls are legal, but a stranger's code may raise what it likes
        except (AttnkitError, RuntimeError, ValueError):
            continue
    if not is_small(call):
        return None
    written = [
        f"{name} = {_tensor(tensor, str(tensor.dtype))}{placed(tensor)}"
        for name, tensor in call.tensors.items()
    ]
    return call, [*written, *laid]


def _drawn(call: Call, seed: int) -> tuple[Call, list[str]]:
    """Return a call with tensors drawn as the lines beside it say."""
    lines, tensors = [f"torch.manual_seed({seed})"], {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, tensor in call.tensors.items():
            shape = ", ".join(map(str, tensor.shape))
            recipe = RECIPES.get(name, DEFAULT).format(shape=shape, dtype=tensor.dtype)
            lines.append(f"{name} = {recipe}{placed(tensor)}")
            numbers = (torch.randn if "randn" in recipe else torch.rand)(
                *tensor.shape, dtype=tensor.dtype
            )
            tensors[name] = (-numbers if recipe.startswith("-") else numbers).to(tensor.device)
    drawn = call.given(**tensors)
    if call.extras.get("dropout_p"):
        # the output then shows what was dropped
        drawn = showing_weights(drawn)
        batch, heads, keys, _ = drawn.tensors["value"].shape
        kind = drawn.tensors["value"].dtype
        unit = f"value = torch.eye({keys}, dtype={kind}).expand({batch}, {heads}, -1, -1)"
        lines = [unit if each.startswith("value =") else each for each in lines]
    # a layout may repeat the first sample, or head
    return drawn.map(lambda name, _: drawn.arguments()[name].contiguous()), lines


def placed(tensor: Tensor) -> str:
    """Return what is put behind a tensor as written, so that it is where this one is."""
    return "" if tensor.device.type == "cpu" else f'.to("{tensor.device.type}")'


def _tensor(tensor: Tensor, dtype: str, digits: int = 17) -> str:
    """Write a tensor down."""
    numbers = _numbers(tensor.detach().cpu().tolist(), digits)
    return f"torch.tensor({numbers}, dtype={dtype})"


def _numbers(numbers: Any, digits: int) -> str:
    if isinstance(numbers, list):
        return f"[{', '.join(_numbers(each, digits) for each in numbers)}]"
    if not math.isfinite(numbers):
        return f"{'-' if numbers < 0 else ''}torch.{'nan' if numbers != numbers else 'inf'}"
    return repr(float(f"{numbers:.{digits}g}"))


def _call_lines(
    subject: Subject, call: Call, variant: Written, name: str, *, output: str = "out"
) -> list[str]:
    """Return lines that make the call, and call an output of it by a name."""
    made = [] if subject.layer is None else made_lines(subject, variant)
    # what is dropped depends on it
    seeded = ["torch.manual_seed(0)"] if call.extras.get("dropout_p") else []
    written = subject.written(name, variant, _given(call), output=output)
    return [*made, *seeded, *_called(*written)]


def _given(call: Call) -> list[str]:
    """Return the arguments of a call beside the tensors of every call."""
    given = [f"mask={mask_source(call.mask)}"] if call.mask.conjuncts() else []
    given += [f"{key}={value!r}" for key, value in call.extras.items() if value is not None]
    return [*given, *(f"{each}={each}" for each in call.tensors if each not in POSITIONAL)]


def _gradient_lines(subject: Subject, call: Call, variant: Written, fault: Fault) -> list[str]:
    """Return lines that ask for the gradient that is wrong; for all if none comes."""
    inputs = [name for name in call.tensors if name != "grad_out"]
    name = fault.name.removeprefix("gradient of ")
    asked = name if fault.limit is not None else f"[{', '.join(inputs)}]"
    return [
        *(f"{each}.requires_grad_()" for each in inputs),
        *_call_lines(subject, call, variant, "out"),
        f"got = torch.autograd.grad(out, {asked}, grad_out)[0]",
    ]


def made_lines(
    subject: Subject, variant: Written, *, name: str = "layer", seed: int | None = None
) -> list[str]:
    """Return lines that make the layer with the weights that it was checked with, or others."""
    target = subject.target
    options = {**sample_options(target.variant), **subject.given}
    if target.implementation != "layer":
        options.setdefault("implementation", target.implementation)
    told = [f"{key}={value!r}" for key, value in options.items()]
    device = "" if target.device == "cpu" else f'"{target.device}", '
    return [
        f"torch.manual_seed({target.seed if seed is None else seed})",
        *_called(f"{name} = attnkit.create", [variant.name, "dtype=torch.float32", *told]),
        f"{name} = {name}.to({device}torch.{target.dtype}).eval()",
    ]


def _called(function: str, arguments: list[str]) -> list[str]:
    """Return a call, on one line if that is short enough."""
    line = f"{function}({', '.join(arguments)})"
    return [line] if len(line) <= 96 else [f"{function}(", *_wrapped(arguments), ")"]


def _wrapped(arguments: list[str]) -> list[str]:
    """Return arguments in lines of at most 96 characters."""
    lines: list[str] = []
    for each in arguments:
        if lines and len(lines[-1]) + len(each) + 2 <= 96:
            lines[-1] += f" {each},"
        else:
            lines.append(f"    {each},")
    return lines


def described(call: Call) -> str:
    """Say a call as Python would, with shapes for tensors; its mask in full if that is short."""
    mask = mask_source(call.mask)
    told, plain = call.describe(), f"mask={call.mask!r}"
    return told.replace(plain, f"mask={mask}") if len(mask) <= LONG else told


def mask_source(mask: Mask) -> str:
    """Return Python that makes a mask."""
    parts = mask.conjuncts()
    return " & ".join(map(_part_source, parts)) if parts else "attnkit.full()"


def _part_source(part: Mask) -> str:
    if isinstance(part, Padding):
        name, counts = "padding", part.lengths
        if counts is None:
            name, counts = "left_padding", part.starts
        assert counts is not None
        return f"attnkit.{name}({counts.tolist()})"
    if isinstance(part, PrefixLM):
        return f"attnkit.prefix_lm({part.prefix.tolist()})"
    if isinstance(part, Documents):
        return f"attnkit.documents(torch.tensor({part.ids.tolist()}))"
    if isinstance(part, Dense):
        return f"attnkit.dense(torch.tensor({part.tensor.tolist()}))"
    if isinstance(part, Blocks):
        return f"attnkit.blocks(torch.tensor({part.block_map.tolist()}), {part.block_size})"
    if isinstance(part, Or):
        return f"({mask_source(part.left)} | {mask_source(part.right)})"
    return repr(part)


def whereabouts(variant: Variant) -> Written | None:
    """Return how a script imports a variant and calls it; None if nothing does.

    An installed variant is called by its name, another one is looked for in the modules that are
    loaded and that a new process can import, or says itself how it is made.
    """
    if any(each.owner != SESSION for each in registry.default().entries(variant.name)):
        return Written([], repr(variant.name), f"attnkit.get_variant({variant.name!r})")
    for made in (variant.layer, *(each.function for each in variant.implementations)):
        source = getattr(made, "source", None)
        if isinstance(source, str):
            door = source.partition("(")[0]
            lines = [f"from attnkit_contracts import {door}", "", f"VARIANT = {source}"]
            return Written(lines, "VARIANT", "VARIANT")
    return _in_a_module(Same(variant), len(sys.modules))


# thousands of modules, for every failure of a wrong variant
@lru_cache(maxsize=256)
def _in_a_module(wanted: Same, loaded: int) -> Written | None:
    """Look through the modules of which so many are loaded."""
    for name, module in list(sys.modules.items()):
        held = list(getattr(module, "__dict__", {}).items())
        if id(wanted.value) not in map(id, map(itemgetter(1), held)) or name.startswith("_"):
            continue
        if _is_importable(name):
            attribute = next(attribute for attribute, value in held if value is wanted.value)
            return Written([f"from {name} import {attribute}"], attribute, attribute)
    return None


def _is_importable(name: str) -> bool:
    module = sys.modules.get(name)
    if getattr(module, "__file__", None) is None:
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False
