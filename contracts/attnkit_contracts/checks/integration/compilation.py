"""I, continued: what promises to be compiled is traced whole, and is then what it was."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from attnkit.errors import UnsupportedError
from attnkit.problem import LENGTH_CLASSES
from attnkit_contracts.catalogue import ANYWHERE, BrokenError, Measured, check
from attnkit_contracts.judging.outputs import agree, exactly, gradients, received, worst

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

BACKEND = "aot_eager"
"""Traces forward and backward as every backend does, and needs no C++ compiler."""

LENGTHS = (16, 17, 48, 64, 65, 100, 200)
"""They lie around edges of blocks."""

compiled_check = partial(
    check,
    levels=ANYWHERE,
    applies=lambda promises: promises.compile,
    dtypes=("float32",),
    tier="standard",
)
"""Decorates a check of what promises to be compiled."""


def _compiled(
    subject: Subject, call: Call, graphs: list[object], *, dynamic: bool | None = None
) -> Callable[..., Tensor]:
    """Return the subject as a compiled function of a call's tensors; counts its graphs."""
    torch._dynamo.reset()
    function = subject.function(call)

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return torch._dynamo.lookup_backend(BACKEND)(module, inputs)

    @torch.compile(backend=backend, fullgraph=True, dynamic=dynamic)
    def run(tensors: dict[str, Tensor]) -> Tensor:
        return function(tensors)

    return run


def _traced(run: Callable[..., Tensor], call: Call) -> Tensor:
    """Call a compiled function; what is refused by name is refused here too."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        return run(dict(call.tensors))
    except TorchDynamoException as error:
        if UnsupportedError.__name__ in str(error):
            raise UnsupportedError(str(error)) from error
        raise BrokenError(f"not traced as one graph: {error}") from error


@compiled_check(
    "I1.compile",
    "torch.compile(fullgraph=True) traces it, forward and backward, and the result is within the "
    "gate of what it is without.",
    verdict="R",
)
def compiled(subject: Subject) -> Measured:
    """Compare with the same call without torch.compile."""
    call = subject.draw("I1", length=24)
    plain, graphs = subject(call), list[object]()
    run = _compiled(subject, call, graphs)
    out = _traced(run, call)
    found = [agree(subject.bound(call), plain, out, "compiled")]
    if not graphs:
        raise BrokenError("nothing was compiled: the call ran without torch.compile")
    if subject.promises.gradients:
        leaves = call.leaves()
        out = run(dict(leaves.tensors))
        grad_out = subject.normal("I1 grad", *out.shape)
        got = received(out, leaves.tensors, grad_out)
        wanted = gradients(subject, call, grad_out)
        found.append(subject.agree_gradients(call, grad_out, wanted, got, "compiled"))
    torch._dynamo.reset()
    return worst(found)


@compiled_check(
    "I1.recompiles",
    "It is compiled once for the first length, and once for each class of further lengths among "
    "which the same implementation is chosen; not once for every length.",
    applies=lambda promises: promises.compile and set(promises.needs) <= {"window"},
)
def recompiles(subject: Subject) -> Measured:
    """Count the graphs, until there are too many."""
    graphs = list[object]()
    run = _compiled(subject, subject.draw("I1", length=16), graphs)
    allowed, count, seen = 1, 0, set[int]()
    for count, length in enumerate(LENGTHS, 1):
        call = subject.draw("I1", length=length)
        with torch.no_grad():
            _traced(run, call)
        if count > 1:
            tokens = length * (len(call.tensors["x"]) if subject.tokenwise else 1)
            seen.add(min(each for each in LENGTH_CLASSES if each >= tokens))
        allowed = 1 + len(seen)
        if len(graphs) > allowed:
            break
    torch._dynamo.reset()
    return Measured(len(graphs), allowed, f"graphs for {count} lengths")


@compiled_check(
    "I1.symbols",
    "torch.compile(fullgraph=True, dynamic=True), which has symbols for all sizes and numbers "
    "from the first call on, traces it, and the result is within the gate of what it is without.",
    applies=lambda promises: promises.compile and set(promises.needs) <= {"window"},
    verdict="R",
)
def symbols(subject: Subject) -> Measured:
    """Compare two lengths of one class."""
    run, found = None, list[Measured]()
    for length in (24, 31):
        call = subject.draw("I1 symbols", length=length)
        run = run or _compiled(subject, call, [], dynamic=True)
        with torch.no_grad():
            out = _traced(run, call)
        found.append(agree(subject.bound(call), subject(call), out, f"compiled, L = {length}"))
    torch._dynamo.reset()
    return worst(found)


class _Module(torch.nn.Module):
    """A subject as torch.export takes it."""

    def __init__(self, subject: Subject, call: Call) -> None:
        super().__init__()
        self.layer = subject.layer
        self.function = subject.function(call)

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        """Call it with tensors alone."""
        return self.function(tensors)


def _exported(subject: Subject, call: Call) -> torch.export.ExportedProgram:
    with torch.no_grad():
        module = _Module(subject, call).eval()
        return torch.export.export(module, (dict(call.tensors),), strict=False)


@compiled_check(
    "I3.meta",
    "Run with tensors that hold no numbers, it gives outputs of the shape, dtype and strides that "
    "it gives with real ones.",
)
def meta(subject: Subject) -> Measured:
    """Compare what torch.export notes of the output with the output of what it exported."""
    call = subject.draw("I3", length=33)
    exported = _exported(subject, call)
    with torch.no_grad():
        real = exported.module()(dict(call.tensors))
    outputs: Any = exported.graph.output_node().args[0]
    (node,) = outputs
    told, got = _description(node.meta["val"]), _description(real)
    if told != got:
        raise BrokenError(f"without numbers the output is {told}, with them {got}")
    return exactly(0, "wrong descriptions")


def _description(tensor: Tensor) -> str:
    """Say shape, dtype and strides; the stride of an axis of size 1 means nothing."""
    strides = [s for size, s in zip(tensor.shape, tensor.stride(), strict=True) if size != 1]
    return f"{tuple(tensor.shape)} {tensor.dtype} with strides {tuple(strides)}"


@compiled_check(
    "I3.export",
    "torch.export of it gives what it gives.",
    verdict="R",
)
def export(subject: Subject) -> Measured:
    """Export with one input, and run with another of the same length."""
    call, other = subject.draw("I3", length=24), subject.draw("I3 other", length=24)
    other = other.masked(call.mask)
    exported = _exported(subject, call)
    with torch.no_grad():
        out = exported.module()(dict(other.tensors))
    return agree(subject.bound(other), subject(other), out, "exported")
