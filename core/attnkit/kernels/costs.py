"""What the estimates of many softmax implementations count; no torch here.

Seconds are those of one thread of an AMD Zen 5 with torch 2.13.
"""

from __future__ import annotations

from attnkit.problem import SoftmaxProblem


def passes(problem: SoftmaxProblem) -> float:
    """Say how many forward passes a call takes as long as."""
    return 3.5 if problem.gradients else 1.0


def rows(problem: SoftmaxProblem) -> int:
    """Count B H."""
    return problem.batch * problem.heads


def widths(problem: SoftmaxProblem) -> int:
    """Return E + Ev."""
    return problem.head_dim + problem.value_head_dim


def logits(problem: SoftmaxProblem) -> float:
    """Count B H L S."""
    return float(problem.query_length * rows(problem) * problem.key_length)


def reading(problem: SoftmaxProblem, heads: int) -> float:
    """Return the seconds to read keys and values of so many heads once."""
    size = {"float64": 8, "float32": 4}.get(problem.dtype, 2)
    return problem.batch * heads * problem.key_length * widths(problem) * size / 45e9


def reference(problem: SoftmaxProblem) -> float:
    """Estimate `attnkit.reference.softmax`."""
    each = 4e-9 + 45e-12 * widths(problem)
    return passes(problem) * (60e-6 + each * logits(problem))
