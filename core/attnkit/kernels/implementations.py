"""How variants declare what they share: promises, costs, whole implementations; no torch here.

    implementations=(reference_recurrence(PROMISES), stepwise(PROMISES), ...)

Costs of recurrences are seconds in float32 on one thread of a Zen 5 CPU, torch 2.13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from attnkit.interface import Implementation
from attnkit.promises import ALL_DTYPES, ALL_MASK_PARTS, Promises

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit.problem import RecurrenceProblem, SoftmaxProblem

SOFTMAX = Promises(
    causal=True,
    bidirectional=True,
    cross=True,
    masks=ALL_MASK_PARTS,
    gqa=True,
    value_width=True,
    bias=True,
    scale=True,
    softcap=True,
    sinks=True,
    gradients=True,
    dtypes=ALL_DTYPES,
    devices=("cpu", "cuda"),
    deterministic=True,
    compile=True,
)
"""What `attnkit.reference:softmax` takes: everything but dropout."""

RECURRENCE = Promises(
    causal=True,
    masks=("padding", "documents"),
    gqa=True,
    value_width=True,
    state=True,
    reorder=True,
    gradients=True,
    dtypes=ALL_DTYPES,
    devices=("cpu",),
    deterministic=True,
    compile=True,
    memory="L",
    time="L",
)
"""What a recurrence takes by itself; a variant adds its decays and whether it has a scale."""

ChunkSize = Annotated[int, Field(gt=0, description="tokens per chunk of the chunked form")]


def reference_softmax(
    promises: Promises, cost: Callable[[SoftmaxProblem], float]
) -> Implementation:
    """Declare the definition, restricted to what a variant promises."""
    return Implementation(
        name="reference",
        function="attnkit.reference:softmax",
        summary="float64, all logits at once",
        promises=promises,
        cost=cost,
    )


def reference_recurrence(promises: Promises) -> Implementation:
    """Declare the definition, restricted to what a variant promises."""
    return Implementation(
        name="reference",
        function="attnkit.reference:recurrence",
        summary="float64, token by token",
        promises=promises,
        cost=_reference_cost,
    )


def stepwise(promises: Promises) -> Implementation:
    """Declare `attnkit.kernels.stepwise`."""
    return Implementation(
        name="recurrent",
        function="attnkit.kernels.stepwise:recur",
        summary="token by token in at least float32",
        promises=promises,
        cost=_stepwise_cost,
    )


def passes(problem: RecurrenceProblem) -> int:
    """Say how many forward passes of a recurrence a call takes as long as."""
    return 3 if problem.gradients else 1


def state_numbers(problem: RecurrenceProblem) -> float:
    """Count the numbers in all states, three times over in training."""
    numbers = problem.batch * problem.heads * problem.head_dim * problem.value_head_dim
    return passes(problem) * numbers


def _reference_cost(problem: RecurrenceProblem) -> float:
    return problem.query_length * (200e-6 * passes(problem) + 4e-9 * state_numbers(problem))


def _stepwise_cost(problem: RecurrenceProblem) -> float:
    step = 16e-6 * passes(problem) + 3e-10 * state_numbers(problem)
    return 20e-6 + problem.query_length * step
