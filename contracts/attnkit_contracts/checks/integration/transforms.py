"""I, continued: under the function transforms of ``torch.func`` it is what it was."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from attnkit_contracts.catalogue import Measured, call_check
from attnkit_contracts.inputs.calls import normal
from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import agree, gradients, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

    Function = Callable[[dict[str, Tensor]], Tensor]


def _promised(promises: Promises) -> Iterator[Mapping[str, Any]]:
    for each in promises.transforms:
        if each == "vmap" or promises.gradients:
            yield {"transform": each}


@call_check(
    "I10.transforms",
    "Under torch.func it gives what it gives: vmap the same outputs as one call after the other, "
    "grad the gradients of a backward pass, jvp the derivative along a direction that the "
    "gradients say.",
    cases=_promised,
    dtypes=("float32",),
    tier="standard",
    verdict="R",
)
def transforms(subject: Subject, transform: str) -> Measured:
    """Compare with the same calls without it."""
    call = subject.draw("I10", length=12)
    function: Function = subject.function(call)
    with warnings.catch_warnings():
        # torch's of itself: kernels that vmap calls sample by sample, what jvp loads
        warnings.filterwarnings("ignore", "There is a performance drop")
        warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
        return worst(_CASES[transform](subject, call, function))


def _mapped(subject: Subject, call: Call, function: Function) -> Iterator[Measured]:
    calls = call, subject.draw("I10 other", length=12).masked(call.mask)
    names = [name for name in call.tensors if name in calls[1].tensors]
    stacked = {name: torch.stack([one.tensors[name] for one in calls]) for name in names}
    with torch.no_grad():
        mapped = torch.func.vmap(function)(stacked)
        for number, one in enumerate(calls):
            wanted = function(dict(one.tensors))
            yield agree(subject.bound(one), wanted, mapped[number], f"call {number} of two")


def _differentiated(subject: Subject, call: Call, function: Function) -> Iterator[Measured]:
    grad_out = _grad_out(subject, call)
    got = torch.func.grad(lambda tensors: (function(tensors) * grad_out).sum())(dict(call.tensors))
    wanted = gradients(subject, call, grad_out)
    yield subject.agree_gradients(call, grad_out, wanted, got, "by torch.func.grad")


def _pushed(subject: Subject, call: Call, function: Function) -> Iterator[Measured]:
    grad_out, draw = _grad_out(subject, call), subject.random("I10 direction")
    along = {
        name: subject.cast(normal(draw, *tensor.shape)) for name, tensor in call.tensors.items()
    }
    out, pushed = torch.func.jvp(function, (dict(call.tensors),), (along,))  # type: ignore[misc]  # of three only with has_aux
    yield agree(subject.bound(call), function(dict(call.tensors)), out, "the output of jvp")
    # <grad_out, J along> = <J^T grad_out, along>; errors of single terms add up like noise
    wanted, limits = (
        gradients(subject, call, grad_out),
        subject.gradient_bounds(call, {"out": grad_out}),
    )
    terms = [(wanted[name].double() * along[name]).sum() for name in along]
    unit = sum((limits[name].unit * along[name].double()).square().sum() for name in along) ** 0.5
    off = ((pushed.detach().double() * grad_out).sum() - sum(terms)).abs() / unit
    gate = 2 * units.backward_gate(subject.dtype)
    yield Measured(float(off), gate, "probe units", "the derivative of jvp along a direction")


def _grad_out(subject: Subject, call: Call) -> Tensor:
    with torch.no_grad():
        shape = subject(call).shape
    return subject.normal("I10 grad", *shape)


_CASES = {"vmap": _mapped, "grad": _differentiated, "jvp": _pushed}
