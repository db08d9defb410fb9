"""Makes a variant of any function, so that the suite can judge it: torch's, a kernel's, a model's.

    variant = adapt(
        "torch.nn.functional:scaled_dot_product_attention",
        promises="causal, bidirectional, cross, gqa, scale, dense, padding, gradients, float32",
        causal_argument="is_causal",
        causal_corner="upper_left",
        gqa_argument="enable_gqa",
    )
    attnkit_contracts.check(variant, implementations=["function"])

What is declared is how the function is called, never what it may get wrong: the adapter lays
tensors out, writes masks in the function's convention, and passes everything else as it is. All
that can be declared is in `attnkit_contracts.foreign.conventions`.

`attnkit_contracts.foreign.layers` does the same for layers.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from attnkit.errors import ArgumentError, UnsupportedError
from attnkit.interface import Implementation, LayerConfig, Variant
from attnkit.problem import SoftmaxProblem
from attnkit.promises import ALL_DTYPES
from attnkit_contracts.foreign import doors
from attnkit_contracts.foreign.conventions import Convention

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit.problem import Problem

FUNCTION = "function"
"""Name of the implementation that calls the function."""

NO_LAYER = "attnkit_contracts.foreign:no_layer"
"""The layer of a variant that has none."""


@doors.takes_fields_of(Convention)
def adapt(function: str | Callable[..., Any], convention: Convention) -> Variant:
    """Return a variant that calls a function: ``"package.module:attribute"``, or a callable.

    Keywords are the fields of `attnkit_contracts.foreign.conventions.Convention`.

    Raises:
        ArgumentError: The declaration contradicts itself, or the name is taken.
    """
    # torch is imported here: naming a variant's layer must not
    from attnkit_contracts.foreign.function_calls import RecurrenceCall, SoftmaxCall

    target, claims = doors.load_target(function), convention.claims
    _check_names(target, convention)
    call = RecurrenceCall if convention.is_recurrence else SoftmaxCall
    return Variant(
        name=doors.free_name(convention.name, target),
        family=convention.family,
        summary=doors.summary(target),
        source="a function given to attnkit_contracts.adapt",
        relation="different" if convention.is_recurrence else "exact",
        promises=claims,
        config=LayerConfig,
        layer=NO_LAYER,
        implementations=(
            Implementation(
                name="reference",
                function=f"attnkit.reference:{convention.family}",
                summary="float64",
                promises=claims.model_copy(update={"dropout": False, "dtypes": ALL_DTYPES}),
                cost=lambda _: 2.0,
            ),
            Implementation(
                name=FUNCTION,
                function=call(target, convention, doors.source("adapt", function, convention)),
                summary="the function",
                promises=claims,
                cost=lambda _: 1.0,
                refuses=lambda problem: _refusal(problem, convention),
            ),
        ),
    )


def no_layer(*_: object, **__: object) -> None:
    """Stand for the layer that a function does not have, and refuse."""
    raise UnsupportedError("a function has no layer: it was given to attnkit_contracts.adapt")


def _check_names(target: Callable[..., Any], convention: Convention) -> None:
    """Refuse the name of an argument that a function does not have, where it can be told."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        # of a function in C
        return
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return
    names = {each.name for each in parameters}
    for option, name in convention.own_names():
        if name not in names:
            raise ArgumentError(
                f"{option}: {doors.plain_name(target)} has no argument {name!r}, it has "
                f"{', '.join(sorted(names))}"
            )


def _refusal(problem: Problem, convention: Convention) -> str | None:
    """Say why a call cannot be passed on; None where it can."""
    for what in convention.always:
        if not getattr(problem, what):
            return f"{what}: the function cannot do without"
    if not isinstance(problem, SoftmaxProblem):
        return None
    unequal = problem.query_length != problem.key_length
    by_flag = convention.mask == "none" and convention.causal_corner == "upper_left"
    if by_flag and problem.causal and unequal:
        return "causal with L != S: the flag is aligned upper-left, and there is no mask"
    return None
