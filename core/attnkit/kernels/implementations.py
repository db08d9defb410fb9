"""How variants declare what they share: promises, costs, whole implementations; no torch here.

    implementations=recurrences(PROMISES, "package.chunks:scan", summary, cost)

Costs of recurrences are seconds in float32 on one thread of a Zen 5 CPU, torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from attnkit.interface import Implementation
from attnkit.problem import RecurrenceProblem, SoftmaxProblem
from attnkit.promises import ALL_DTYPES, ALL_MASK_PARTS, ALL_TRANSFORMS, Promises, SpeedClaim

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
    transforms=ALL_TRANSFORMS,
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
    transforms=ALL_TRANSFORMS,
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


def recurrences(
    promises: Promises,
    function: str,
    summary: str,
    cost: Callable[[RecurrenceProblem], float],
    speed: tuple[SpeedClaim, ...] = (),
) -> tuple[Implementation, ...]:
    """Declare the three forms of a recurrence, restricted to what a variant promises.

    Args:
        promises: Of all three.
        function: The chunked form, ``"package.module:attribute"``.
        summary: Of the chunked form.
        cost: Of the chunked form; see `chunked_cost`.
        speed: What the chunked form promises beside.

    Returns:
        ``reference``, the definition; ``recurrent``, `attnkit.kernels.stepwise`; ``chunked``.
    """
    forms = (
        ("reference", "attnkit.reference:recurrence", "float64, token by token", _reference_cost),
        (
            "recurrent",
            "attnkit.kernels.stepwise:recur",
            "token by token in at least float32",
            _stepwise_cost,
        ),
        ("chunked", function, summary, cost),
    )
    # its gradient is a function of its own
    chunked = promises.model_copy(update={"speed": speed, "transforms": ()})
    claims = (promises, promises, chunked)
    return tuple(
        Implementation(name=name, function=path, summary=told, promises=claimed, cost=seconds)
        for (name, path, told, seconds), claimed in zip(forms, claims, strict=True)
    )


def chunked_cost(problem: RecurrenceProblem, *, start: float, token: float, number: float) -> float:
    """Estimate a chunked form from seconds per call, per token, and per number of a state."""
    per_token = token * _passes(problem) + number * _state_numbers(problem)
    return start * _passes(problem) + problem.query_length * per_token


def _passes(problem: RecurrenceProblem) -> int:
    """Say how many forward passes of a recurrence a call takes as long as."""
    return 3 if problem.gradients else 1


def _state_numbers(problem: RecurrenceProblem) -> float:
    """Count the numbers in all states, three times over in training."""
    numbers = problem.batch * problem.heads * problem.head_dim * problem.value_head_dim
    return _passes(problem) * numbers


def _reference_cost(problem: RecurrenceProblem) -> float:
    return problem.query_length * (200e-6 * _passes(problem) + 4e-9 * _state_numbers(problem))


def _stepwise_cost(problem: RecurrenceProblem) -> float:
    step = 16e-6 * _passes(problem) + 3e-10 * _state_numbers(problem)
    return 20e-6 + problem.query_length * step
