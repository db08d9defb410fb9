"""N, continued: layers against the float64 definition of the whole layer, where a variant has one.

Projections, convolutions, biases, gates, norms and skips are judged here, and what a layer hands to
its operation. Pieces and states are compared with what a layer gives at once, see `checks.state`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from attnkit.errors import ConfigError, UnsupportedError
from attnkit.masks.constructors import Sizes
from attnkit.precision import LOW
from attnkit_contracts.catalogue import Measured, layer_check
from attnkit_contracts.inputs.calls import PLACED
from attnkit_contracts.inputs.options import joint_options
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject

LENGTH = 20
BATCH = 5
"""Samples, more than most calls have."""

LARGE = 8.0
"""How much larger than usual inputs are that reach every branch of an activation."""


definition_check = partial(layer_check, needs_definition=True)
"""Decorates a check of layers whose variant brings a definition."""


@definition_check(
    "N1.layer",
    "r <= gate for the output, in evaluation and in training, against the float64 definition that "
    "the variant brings of its layer: for 1 and 20 tokens, larger ones, every promised mask part.",
    verdict="R",
)
def layer(subject: LayerSubject) -> Measured:
    """Compare with the definition; biases, norms and the like are not what they begin with."""
    subject.varied()
    found = []
    for what, call in _calls(subject):
        limit = subject.judged(call)["out"]
        found.append(judge.near(limit, subject(call), what))
        if what == "plain":
            subject.layer.train()
            found.append(judge.near(limit, subject(call), "in training"))
            subject.layer.eval()
    return judge.worst(found)


def _calls(subject: LayerSubject) -> Iterator[tuple[str, Call]]:
    call = subject.clear_call("N1", length=LENGTH, batch=BATCH)
    yield "plain", call
    if not subject.tokenwise:
        yield "one token", subject.clear_call("N1 one", length=1)
    # in half precision, too little is left of what cancels to tell the sign of
    if not (subject.tokenwise or subject.dtype in LOW):
        yield "large", call.map(lambda _, x: x * LARGE)
    sizes = Sizes(BATCH, 1, LENGTH, LENGTH)
    open_mask = subject.mask(sizes, wide=PLACED)
    for part in subject.promises.masks:
        yield part, call.masked(open_mask & subject.part(part, sizes))


@definition_check(
    "N2.layer",
    "r_grad <= gate for the gradient of the input and of every weight, against the float64 "
    "definition that the variant brings of its layer.",
    applies=lambda promises: promises.gradients,
    verdict="R",
)
def layer_backward(subject: LayerSubject) -> Measured:
    """Compare with the gradients of the definition."""
    subject.varied()
    return judge.worst(
        _errors(subject, subject.clear_call("N2", length=LENGTH, batch=BATCH), "plain")
    )


@definition_check(
    "N1.layer_options",
    "r <= gate for the output, whichever two options of the layer come together, against the "
    "float64 definition that the variant brings of its layer.",
    dtypes=("float32", "bfloat16"),
    verdict="R",
)
def layer_options(subject: LayerSubject) -> Measured:
    """Build a layer for every set of a covering design of options; see `inputs.cover`."""
    found = []
    for options in joint_options(subject.config):
        where = ", ".join(f"{name}={value!r}" for name, value in options.items())
        try:
            built = subject.remade(**options).varied()
            call = built.clear_call(f"N1 {where}", length=LENGTH)
            out = built(call)
        except (ConfigError, UnsupportedError):
            continue
        found.append(judge.near(built.judged(call)["out"], out, where))
    return judge.worst(found) if found else judge.exactly(0, "options")


def _errors(subject: LayerSubject, call: Call, where: str) -> Iterator[Measured]:
    leaves = call.leaves()
    with torch.enable_grad():
        out = subject(leaves)
    grad_out = subject.normal("N2 grad", *out.shape)
    inputs: Mapping[str, Any] = {**leaves.tensors, **subject.weights()}
    got = torch.autograd.grad(out, list(inputs.values()), grad_out, materialize_grads=True)
    limits = subject.judged(call, {"out": grad_out})
    for name, gradient in zip(inputs, got, strict=True):
        told = f"the gradient of {name}, {where}"
        yield judge.near(limits[judge.gradient_of(name)], gradient, told)
