"""Which implementation runs: exactly the one that was named, or the cheapest of those that can.

A call is a `Problem`. An implementation can take it if it promises all that the problem needs,
does not refuse it, finds its packages, and has passed a small real call
(`attnkit.choice.first_call`) on this device and dtype. Nothing else is ever chosen; `fallback` is
the caller's to give. One that promises a call and fails is passed over with a warning, and the
float64 reference never takes its place.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import Field

from attnkit.choice.first_call import Failed, Lease, first_call
from attnkit.errors import ArgumentError, RegistryError, UnsupportedError
from attnkit.families import SOFTMAX
from attnkit.frozen import Frozen
from attnkit.interface import Implementation, Variant, load
from attnkit.problem import Problem, unmet
from attnkit.registry.registry import default

STAND_IN = "the float64 reference never stands in for what fails; ask for it by name"
AUTO = "auto"
OWNER = "attnkit"


@dataclass(frozen=True)
class Chosen:
    """An implementation that takes a call.

    Attributes:
        variant: Whose implementation it is.
        name: The implementation's name.
        function: What to call; its signature is the family's, see `attnkit.interface`.
        lasting: Whether it may be remembered; not where the small call of a preferred one failed,
            which may yet succeed.
        lease: How long it is remembered; None for as long as the registry is unchanged.
    """

    variant: Variant
    name: str
    function: Callable[..., Any]
    lasting: bool = True
    lease: Lease | None = None

    @property
    def key(self) -> str:
        """``variant.implementation``."""
        return f"{self.variant.name}.{self.name}"


class Candidate(Frozen):
    """What was found out about one implementation."""

    variant: str
    implementation: str
    cost: float | None = Field(description="estimated seconds; None for one that cannot")
    reasons: tuple[str, ...] = Field(description="why it cannot; empty for one that can")

    def __str__(self) -> str:
        """Say it in one line."""
        told = "; ".join(self.reasons) or f"{(self.cost or 0) * 1e6:.3g} us estimated"
        return f"{self.variant}.{self.implementation}: {told}"


class Choice(Frozen):
    """What runs, and why not the others."""

    chosen: str | None = Field(description="variant.implementation, or None if nothing can")
    candidates: tuple[Candidate, ...] = Field(
        description="in the order of preference, then those that cannot"
    )

    def __str__(self) -> str:
        """Show one line per candidate."""
        return "\n".join([f"chosen: {self.chosen or 'none'}", *map(str, self.candidates)])


def explain_choice(variant: Variant | str, problem: Problem, implementation: str = AUTO) -> Choice:
    """Return what `choose` takes for a problem, and why not the others."""
    found = _considered(variant, problem, implementation)
    chosen = None if found.chosen is None else f"{found.chosen[0].name}.{found.chosen[1].name}"
    return Choice(chosen=chosen, candidates=found.candidates)


class _Considered(NamedTuple):
    """What was found out about everything that was asked for.

    Attributes:
        chosen: Whose implementation, and which; None if nothing can.
        candidates: In the order of preference, then those that cannot.
        failed: What promises the call and fails, by its name.
    """

    chosen: tuple[Variant, Implementation] | None
    candidates: tuple[Candidate, ...]
    failed: dict[str, Failed]


def _considered(variant: Variant | str, problem: Problem, implementation: str) -> _Considered:
    candidates, chosen, failed = [], None, dict[str, Failed]()
    offers = _offers(variant, implementation, problem.family)
    for offer in sorted(offers, key=lambda offer: _preference(offer, problem)):
        reasons = _reasons(offer[1], problem)
        if not reasons and chosen is None:
            if failed and _is_reference(*offer):
                reasons = (STAND_IN,)
            elif (failure := first_call(*offer, problem)) is not None:
                reasons = (failure.why,)
                failed[f"{offer[0].name}.{offer[1].name}"] = failure
            else:
                chosen = offer
        candidates.append(
            Candidate(
                variant=offer[0].name,
                implementation=offer[1].name,
                cost=None if reasons else offer[1].cost(problem),
                reasons=reasons,
            )
        )
    candidates.sort(key=lambda candidate: bool(candidate.reasons))
    return _Considered(chosen, tuple(candidates), failed)


def _preference(offer: tuple[Variant, Implementation], problem: Problem) -> tuple[bool, float]:
    """Order by estimated cost, and the reference last: it is taken where it is alone."""
    return _is_reference(*offer), offer[1].cost(problem)


def _is_reference(variant: Variant, implementation: Implementation) -> bool:
    return len(variant.implementations) > 1 and implementation == variant.implementations[0]


def resolve(variant: Variant | str) -> tuple[Variant, ...]:
    """Return the variants that are meant: one, or for ``auto`` attnkit's own exact softmax ones."""
    registry = default()
    if isinstance(variant, str):
        if variant != AUTO:
            return (registry.get(variant),)
        own = registry.offered_by(OWNER)
        return tuple(v for v in own if v.family == SOFTMAX.name and v.relation == "exact")
    if not isinstance(variant, Variant):
        raise ArgumentError(
            f"variant must be a name or an attnkit.Variant, got {type(variant).__name__}"
        )
    if registry.entries(variant.name) and not registry.offers(variant):
        raise ArgumentError(
            f"variant {variant.name!r} is not the one that is registered under this name; "
            "give yours another name"
        )
    return (variant,)


def implementations_of(variant: Variant) -> tuple[Implementation, ...]:
    """Return the variant's own, and what extensions add to it if it is registered."""
    registry = default()
    # of a name that several offer nobody can say whose variant an extension means
    if len(registry.entries(variant.name)) == 1:
        return registry.implementations(variant.name)
    return variant.implementations


CHOSEN: dict[str, Chosen] = {}


def choose_now(
    variant: Variant | str, problem: Problem, implementation: str, fallback: tuple[str, ...]
) -> Chosen:
    """Choose, outside of any graph, once per question."""
    # by identity: the entry keeps its variant alive, so the number stays its own
    whose = variant if isinstance(variant, str) else id(variant)
    key = (whose, problem, implementation, fallback)
    remembered = default().remembered
    chosen: Chosen | None = remembered.choices.get(key)
    if chosen is None or (chosen.lease is not None and not chosen.lease.lasts()):
        chosen = _choose_anew(variant, problem, implementation, fallback)
        if chosen.lasting:
            remembered.keep(remembered.choices, key, chosen)
    return chosen


def _choose_anew(
    variant: Variant | str, problem: Problem, implementation: str, fallback: tuple[str, ...]
) -> Chosen:
    refused: list[Candidate] = []
    failed: dict[str, Failed] = {}
    for name in (implementation, *fallback):
        found = _considered(variant, problem, name)
        failed |= found.failed
        if found.chosen is not None:
            whose, one = found.chosen
            lasting = all(failure.believed for failure in failed.values())
            lease = Lease() if failed else None
            chosen = Chosen(whose, one.name, load(one.function), lasting, lease)
            CHOSEN[chosen.key] = chosen
            for broken, failure in failed.items():
                failure.warn(f"{broken} promises this call and fails, {chosen.key} runs instead")
            return chosen
        refused += found.candidates
    raise UnsupportedError(_refusal(variant, problem, refused))


def _offers(
    variant: Variant | str, implementation: str, family: str
) -> list[tuple[Variant, Implementation]]:
    registry, variants = default(), resolve(variant)
    for each in variants:
        if each.family != family:
            raise ArgumentError(
                f"variant {each.name!r} is of family {each.family!r}, this call is of family "
                f"{family!r}; run it through {registry.family(each.family).door}"
            )
    offers = [(each, one) for each in variants for one in implementations_of(each)]
    named = [offer for offer in offers if implementation in (AUTO, offer[1].name)]
    if offers and not named:
        names = ", ".join(dict.fromkeys(one.name for _, one in offers))
        whose = f"variant {variants[0].name!r}" if len(variants) == 1 else "any built-in variant"
        raise ArgumentError(
            f"no implementation {implementation!r} of {whose}; there are: {names}, or 'auto'"
        )
    return named


def _reasons(implementation: Implementation, problem: Problem) -> tuple[str, ...]:
    reasons = [str(reason) for reason in unmet(problem, implementation.promises)]
    reasons += [
        f"package {name} is not installed"
        for name in implementation.packages
        if importlib.util.find_spec(name) is None
    ]
    # a refusal may presume what the promises say
    refusal = None if reasons else implementation.refuses(problem)
    return (*reasons, refusal) if refusal else tuple(reasons)


def _refusal(variant: Variant | str, problem: Problem, refused: list[Candidate]) -> str:
    name = variant if isinstance(variant, str) else variant.name
    lines = [f"variant {name!r} cannot take this call:", *(f"  {each}" for each in refused)]
    told = {f"{each.variant}.{each.implementation}" for each in refused}
    able = ", ".join(each for each in _able(variant, problem) if each not in told) or "none"
    return "\n".join([*lines, f"what can: {able}"])


def _able(variant: Variant | str, problem: Problem) -> list[str]:
    """Name the implementations of this variant that can, and the variants of its family."""
    registry, name = default(), variant if isinstance(variant, str) else variant.name
    offers = _offers(variant, AUTO, problem.family) if name != AUTO else []
    able = [f"{name}.{each.name}" for _, each in offers if not _reasons(each, problem)]
    for other in registry.names():
        try:
            found = registry.get(other)
        except RegistryError:
            continue  # who asks for this name is told; here it just cannot help
        each_can = (not _reasons(each, problem) for each in implementations_of(found))
        if other != name and found.family == problem.family and any(each_can):
            able.append(other)
    return able
