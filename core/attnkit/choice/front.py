"""`choose`: the implementation that takes a problem, in a graph of ``torch.compile`` or outside."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from attnkit.choice.decision import AUTO, CHOSEN, Chosen, choose_now
from attnkit.interface import Variant
from attnkit.problem import Problem


def choose(
    variant: Variant | str,
    problem: Problem,
    implementation: str = AUTO,
    fallback: Iterable[str] = (),
) -> Chosen:
    """Return the implementation that takes a problem.

    Args:
        variant: A variant or its name; ``auto`` for all exact softmax variants of attnkit itself.
        problem: The call.
        implementation: A name, or ``auto`` for the cheapest that can.
        fallback: Names to try, in this order, if ``implementation`` cannot.

    Raises:
        UnsupportedError: Nothing that was asked for can take it; the message has every reason.
        ArgumentError: No implementation has this name.
    """
    if torch.compiler.is_compiling():
        # not on top: it loads all of torch's compiler, which takes longer than most calls
        from attnkit.choice.graphs import key_while_compiling

        name = variant if isinstance(variant, str) else variant.name
        return CHOSEN[key_while_compiling(name, problem, implementation, tuple(fallback))]
    return choose_now(variant, problem, implementation, tuple(fallback))
