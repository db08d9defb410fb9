"""I, continued: what promises to be compiled is traced whole, and computes the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.problem import LENGTH_CLASSES
from attnkit_contracts.backward import agree_gradients
from attnkit_contracts.catalogue import BrokenError, Level, Measured, check
from attnkit_contracts.inputs import normal
from attnkit_contracts.judging import agree, bound, gradients, named_gradients, worst
from attnkit_contracts.layers import LayerSubject
from attnkit_contracts.operations import RecurrenceOperation, SoftmaxOperation

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit_contracts.inputs import Call
    from attnkit_contracts.subjects import Subject

ANYWHERE: tuple[Level, ...] = ("operation", "layer")

BACKEND = "aot_eager"
"""Traces forward and backward as every backend does, and needs no C++ compiler."""

LENGTHS = (16, 17, 48, 64, 65, 100, 200)
"""They lie around edges of blocks."""


def bare(subject: Subject, call: Call) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return what the subject calls, without what it writes down for reports."""
    target, mask = subject.target, call.mask
    extras: dict[str, Any] = dict(call.extras)
    if isinstance(subject, LayerSubject):
        layer = subject.layer
        return lambda tensors: layer(tensors["x"], mask=mask)
    if isinstance(subject, SoftmaxOperation):
        return lambda tensors: attnkit.attention(
            **{**extras, **tensors},
            mask=mask,
            variant=target.variant,
            implementation=target.implementation,
        )
    assert isinstance(subject, RecurrenceOperation)
    options = subject.options()
    return lambda tensors: attnkit.recurrence(
        target.variant,
        **{**extras, **tensors},
        mask=mask,
        options=options,
        implementation=target.implementation,
    )[0]


def _compiled(subject: Subject, call: Call, graphs: list[object]) -> Callable[..., Tensor]:
    """Return the subject as a compiled function of a call's tensors; counts its graphs."""
    torch._dynamo.reset()
    function = bare(subject, call)

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return torch._dynamo.lookup_backend(BACKEND)(module, inputs)

    @torch.compile(backend=backend, fullgraph=True)
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


@check(
    "I1.compile",
    "torch.compile(fullgraph=True) traces it, forward and backward, and the result is within the "
    "gate of what it is without.",
    levels=ANYWHERE,
    applies=lambda promises: promises.compile,
    dtypes=("float32",),
    tier="standard",
    verdict="R",
)
def compiled(subject: Subject) -> Measured:
    """Compare with the same call without torch.compile."""
    call = subject.draw("I1", length=24)
    plain, graphs = subject(call), list[object]()
    run = _compiled(subject, call, graphs)
    out = _traced(run, call)
    found = [agree(bound(subject, call), plain, out, "compiled")]
    if not graphs:
        raise BrokenError("nothing was compiled: the call ran without torch.compile")
    if subject.promises.gradients:
        leaves = call.leaves()
        out = run(dict(leaves.tensors))
        grad_out = subject.cast(normal(subject.random("I1 grad"), *out.shape))
        received = torch.autograd.grad(out, list(leaves.tensors.values()), grad_out)
        got = named_gradients(leaves.tensors, received)
        wanted = gradients(subject, call, grad_out)
        found.append(agree_gradients(subject, call, grad_out, wanted, got, "compiled"))
    torch._dynamo.reset()
    return worst(found)


@check(
    "I1.recompiles",
    "A layer is compiled once for the first length, and once for each class of further lengths "
    "among which the same implementation is chosen; not once for every length.",
    levels=("layer",),
    applies=lambda promises: promises.compile and not promises.needs,
    dtypes=("float32",),
    tier="standard",
)
def recompiles(subject: Subject) -> Measured:
    """Count the graphs."""
    graphs = list[object]()
    run = _compiled(subject, subject.draw("I1", length=16), graphs)
    for length in LENGTHS:
        with torch.no_grad():
            _traced(run, subject.draw("I1", length=length))
    torch._dynamo.reset()
    classes = {min(each for each in LENGTH_CLASSES if each >= n) for n in LENGTHS[1:]}
    return Measured(len(graphs), 1 + len(classes), f"graphs for {len(LENGTHS)} lengths")


@check(
    "I3.export",
    "torch.export of a layer gives what the layer gives.",
    levels=("layer",),
    applies=lambda promises: promises.compile and not promises.needs,
    dtypes=("float32",),
    tier="standard",
    verdict="R",
)
def export(subject: LayerSubject) -> Measured:
    """Export with one input, and run with another of the same length."""
    call, other = subject.draw("I3", length=24), subject.draw("I3 other", length=24)
    with torch.no_grad():
        exported = torch.export.export(subject.layer, (call.tensors["x"],), strict=False)
        out = exported.module()(other.tensors["x"])
    return agree(bound(subject, other), subject(other), out, "exported")
