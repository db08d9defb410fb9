"""All that a call of an operation gives at once: the output, the final state, every gradient.

The definition is run once for all of them, where `judging.bound` and `backward.gradient_bounds`
would run it once each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit_contracts.definitions import oracle
from attnkit_contracts.inputs.calls import normal
from attnkit_contracts.judging import units
from attnkit_contracts.judging.gradients import analytic_bounds
from attnkit_contracts.judging.outputs import estimated, is_exact, named_gradients
from attnkit_contracts.subjects.operations import RecurrenceOperation, SoftmaxOperation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.judging.outputs import Bound

Operation = SoftmaxOperation | RecurrenceOperation

OUTPUT, STATE = "the output", "the final state"


def gradient_of(name: str) -> str:
    """Return what the gradient of a tensor is called."""
    return f"the gradient of {name}"


def grads_for(subject: Operation, call: Call) -> dict[str, Tensor]:
    """Return normal gradients of what a call gives; none where none are promised."""
    if not subject.promises.gradients:
        return {}
    draw = subject.random("grads")
    query, value = call.tensors["query"], call.tensors["value"]
    heads = max(query.shape[1], value.shape[1])
    shape = (query.shape[0], heads, query.shape[2], value.shape[3])
    output = subject.cast(normal(draw, *shape))
    if isinstance(subject, SoftmaxOperation):
        return {OUTPUT: output}
    shape = (*value.shape[:2], *subject.options().state_shape(query.shape[3], value.shape[3]))
    state = subject.wide(normal(draw, *shape))
    return {OUTPUT: torch.where(_real(call)[:, None, :, None], output, 0.0), STATE: state}


def _real(call: Call) -> Tensor:
    """Return which tokens of a recurrence are no padding, (B, L)."""
    value = call.tensors["value"]
    return oracle.real_tokens(call.mask, value.shape[0], value.shape[2], value.device)


def answers(subject: Operation, call: Call, grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all that a subject gives; what it puts out at padded tokens of a recurrence is 0."""
    leaves = call.leaves() if grads else call
    with torch.set_grad_enabled(bool(grads)):
        found = outputs(subject, leaves)
    if isinstance(subject, RecurrenceOperation):
        found[OUTPUT] = torch.where(_real(call)[:, None, :, None], found[OUTPUT], 0.0)
    if not grads:
        return found
    gradients = torch.autograd.grad(
        [found[name] for name in grads],
        list(leaves.tensors.values()),
        list(grads.values()),
        allow_unused=True,
    )
    named = named_gradients(leaves.tensors, gradients)
    return found | {gradient_of(name): gradient for name, gradient in named.items()}


def outputs(subject: Operation, call: Call) -> dict[str, Tensor]:
    """Return the output, and of a recurrence the final state."""
    if isinstance(subject, SoftmaxOperation):
        return {OUTPUT: subject(call)}
    return dict(zip((OUTPUT, STATE), subject.both(call), strict=True))


def bounds(subject: Operation, call: Call, grads: Mapping[str, Tensor]) -> dict[str, Bound]:
    """Return the definition's answers, shaped as those of `answers`, and their units."""
    if isinstance(subject, SoftmaxOperation) and is_exact(subject):
        output, gradients = analytic_bounds(subject, call, grads.get(OUTPUT))
        return {OUTPUT: output} | {gradient_of(n): limit for n, limit in gradients.items()}

    def definition(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if isinstance(subject, SoftmaxOperation):
            return {OUTPUT: subject.definition(call)(tensors)}
        out, state = subject.exact(call, tensors)
        real = _real(call)
        real = real.repeat(len(out) // len(real), 1)[:, None, :, None]
        return {OUTPUT: torch.where(real, out, 0.0), STATE: state}

    def estimate(probes: int) -> dict[str, tuple[Tensor, Tensor]]:
        found, gradients = units.whole_noise(
            definition,
            call.tensors,
            grads,
            subject.dtype,
            probes=probes,
            together=isinstance(subject, RecurrenceOperation),
        )
        return found | {gradient_of(name): each for name, each in gradients.items()}

    probes = units.GRADIENT_PROBES if grads else units.PROBES
    limits = estimated(estimate, units.forward_gate(subject.dtype), probes)
    backward = units.backward_gate(subject.dtype)
    return limits | {
        name: limits[name]._replace(gate=backward)
        for name in map(gradient_of, call.tensors)
        if name in limits
    }
