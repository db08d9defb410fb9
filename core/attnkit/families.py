"""A family: the signature that variants share, and all that attnkit asks by it.

A variant names its family. attnkit has four; a plugin offers further ones by the hook
`attnkit_families`, a session by `attnkit.register`, with no line of attnkit changed. What needs
torch is named as ``"package.module:attribute"``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attnkit.placements import SiteOptions, WindowOptions
from attnkit.problem import FeedforwardProblem, Problem, RecurrenceProblem, SoftmaxProblem
from attnkit.promises import (
    CommonPromises,
    FeedforwardPromises,
    Promises,
    RecurrencePromises,
    SoftmaxPromises,
)
from attnkit.sites import Kind


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family.

    Attributes:
        name: What a variant's ``family`` says.
        summary: One line: what its variants have in common.
        door: How a variant of it is run, for messages: "attnkit.attention".
        problem: The record that a call of its operation is seen as.
        promises: What its variants may claim; a mixer anything.
        operation: Whether its variants have one, and so a float64 reference.
        kind: Kind of the sites where its variants can stand in a model.
        options: What a plan may say beside a variant that declares no placement.
        first_call: A function of (function, variant, problem) that makes a small real call;
            None where none can be made up.
        swap: An `attnkit.swaps.families.SwapFamily`: how its variants stand at a site; None if
            they cannot.
        suite: An `attnkit_contracts.SuiteFamily`: how the conformance suite judges its
            operation; None where layers alone are judged, or the suite knows the name.
    """

    name: str
    summary: str
    door: str
    problem: type[Problem] = Problem
    promises: type[CommonPromises] = Promises
    operation: bool = False
    kind: Kind = "attention"
    options: type[SiteOptions] = SiteOptions
    first_call: str | Callable[..., None] | None = None
    swap: str | object | None = None
    suite: str | object | None = None


SOFTMAX = Family(
    name="softmax",
    summary="query, key and value under a mask, weighed by a softmax",
    door="attnkit.attention",
    problem=SoftmaxProblem,
    promises=SoftmaxPromises,
    operation=True,
    options=WindowOptions,
    first_call="attnkit.choice.first_call:run_softmax",
    swap="attnkit.swaps.softmax_site:FAMILY",
)
RECURRENCE = Family(
    name="recurrence",
    summary="query, key and value over a state instead of a cache",
    door="attnkit.recurrence",
    problem=RecurrenceProblem,
    promises=RecurrencePromises,
    operation=True,
    first_call="attnkit.choice.first_call:run_recurrence",
    swap="attnkit.swaps.recurrence_site:FAMILY",
)
FEEDFORWARD = Family(
    name="feedforward",
    summary="tokens through the experts that a router chose",
    door="its layer, attnkit.create",
    problem=FeedforwardProblem,
    promises=FeedforwardPromises,
    kind="feedforward",
    swap="attnkit.swaps.feedforward_site:FAMILY",
)
MIXER = Family(
    name="mixer", summary="a layer alone, whatever it computes", door="its layer, attnkit.create"
)

BUILT_IN: dict[str, Family] = {
    each.name: each for each in (SOFTMAX, RECURRENCE, FEEDFORWARD, MIXER)
}
"""attnkit's own, by name."""
