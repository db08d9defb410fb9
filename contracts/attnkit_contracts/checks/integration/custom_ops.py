"""I, continued: custom operations are registered as what they are.

`torch.library.opcheck` alone sees nothing in inputs that need no gradient, and no number in any
case: an operation that returns zeros passes it. So its inputs need gradients here wherever the
call's did, and values and gradients are compared with the definition beside it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import _engine_run_backward
from torch.utils._pytree import tree_map_only

from attnkit_contracts.catalogue import BrokenError, InconclusiveError, Measured, call_check
from attnkit_contracts.instruments.poison_and_meters import Asked, CustomCalls
from attnkit_contracts.judging.outputs import named_gradients, near, worst

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject


@call_check(
    "I2.opcheck",
    "Every custom operation that is called, forward or backward, does what its schema, its fake "
    "kernel and its autograd formula say, and the call gives the defined values and gradients.",
    dtypes=("float32",),
    tier="standard",
    verdict="R",
)
def opcheck(subject: Subject) -> Measured:
    """Note all calls, and run `torch.library.opcheck` on those that are not torch's own."""
    call, calls = subject.draw("I2", length=24), CustomCalls()
    backward = subject.promises.gradients
    leaves = call.leaves() if backward else call
    with torch.set_grad_enabled(backward), calls:
        out = subject(leaves)
    # what is wrong here may keep a backward pass from running at all
    _judge(calls)
    grad_out, got = subject.normal("I2 grad", *out.shape), {}
    if backward:
        got = _gradients(leaves, out, grad_out, calls)
        _judge(calls)
    if not calls.count:
        raise InconclusiveError("no call of torch was seen, so none can be said to be custom")
    names = sorted({asked.name for asked in calls.asked.values()})
    if not names:
        # the record says of how many: then values are the business of other checks
        return Measured(0.0, 0.0, "of 0 custom operations wrongly registered")
    found = [near(subject.bound(call), out.detach(), f"with {', '.join(names)}")]
    if got:
        limits = subject.gradient_bounds(call, {"out": grad_out})
        found += [near(limits[name], gradient, name) for name, gradient in got.items()]
    return worst(found)


def _gradients(
    leaves: Call, out: Tensor, grad_out: Tensor, calls: CustomCalls
) -> dict[str, Tensor]:
    """Return the gradient of every tensor of a call; notes what is called on the way."""
    inputs = tuple(leaves.tensors.values())
    with calls:
        # torch.autograd.grad would leave the mode before it begins
        received = _engine_run_backward(
            (out,), (grad_out,), False, False, inputs, allow_unreachable=True, accumulate_grad=False
        )
    return named_gradients(leaves.tensors, received)


def _judge(calls: CustomCalls) -> None:
    """Raise `BrokenError` with all that `torch.library.opcheck` says against what was called."""
    wrong = [told for asked in calls.asked.values() for told in _complaints(asked)]
    if wrong:
        raise BrokenError("; ".join(wrong), value=float(len(wrong)))


def _complaints(asked: Asked) -> list[str]:
    given: Any = (asked.args, asked.kwargs)
    if asked.differentiated:
        given = tree_map_only(
            torch.Tensor, lambda each: each.requires_grad_(each.is_floating_point()), given
        )
    with warnings.catch_warnings():
        # it runs what is wrong, too, and torch then warns of what it made
        warnings.simplefilter("ignore")
        found = torch.library.opcheck(asked.operation, *given, raise_exception=False)
    return [
        f"{asked.name} fails {test}: {str(told).partition(' (scroll up')[0]}"
        for test, told in found.items()
        if told != "SUCCESS"
    ]
