"""What a plan means at each site of a model: what would run there, or every reason why not.

`attnkit.swaps.api` asks before it swaps; `attnkit.placements` has the reasons of variants that are
no softmax attention.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from attnkit.frozen import Frozen
from attnkit.promises import Relation
from attnkit.sites import ROOT, Site, with_remarks
from attnkit.swaps.families import Assignment, swap_family
from attnkit.swaps.obstacles import unplaced
from attnkit.text import table

if TYPE_CHECKING:
    from torch import nn


class Decision(Frozen):
    """What a plan means for one site."""

    site: Site
    variant: str
    relation: Relation = Field(description="of the swap, at this site")
    chosen: str | None = Field(description="variant.implementation, or None if nothing can")
    reasons: tuple[str, ...] = Field(description="why not; empty if it can")


class Explanation(tuple[Decision, ...]):
    """A dry run: one decision per site; prints as a table."""

    __slots__ = ()

    @property
    def possible(self) -> bool:
        """Whether every site can take its variant."""
        return not any(decision.reasons for decision in self)

    def __str__(self) -> str:
        head = ("site", "needs", "variant", "relation", "runs")
        shown = table(head, (_cells(decision) for decision in self))
        return with_remarks(shown, [decision.site for decision in self])


def decide(assignment: Assignment, *, training: bool = False) -> Decision:
    """Say what runs at a site, or every reason why nothing can.

    Args:
        assignment: What a plan puts there.
        training: Whether the site drops probabilities, if it ever does.
    """
    reasons = tuple(_obstacles(assignment))
    chosen = None
    if not reasons:
        from attnkit.choice.decision import explain_choice

        names = (assignment.options.implementation, *assignment.options.fallback)
        family = swap_family(assignment.variant)
        assert family is not None
        problem = family.supposed(assignment, training)
        choices = [explain_choice(assignment.variant, problem, name) for name in names]
        chosen = next((choice.chosen for choice in choices if choice.chosen), None)
        if chosen is None:
            reasons = tuple(str(each) for choice in choices for each in choice.candidates)
    return Decision(
        site=assignment.site,
        variant=assignment.variant.name,
        relation=assignment.relation,
        chosen=chosen,
        reasons=reasons,
    )


def decide_all(
    model: nn.Module, assignments: Sequence[Assignment], sites: Sequence[Site]
) -> Iterator[Decision]:
    """Decide for every site, and say of those that would answer another one's calls too."""
    modes = _modes(model)
    apart = {each.site.path for each in assignments if each.site.intercepts}
    others = [site for site in sites if site.path not in apart and site.kind == "attention"]
    for each in assignments:
        decision = decide(each, training=modes[each.site.path])
        told = tuple(_enclosing(each.site, others))
        if told:
            reasons = (*decision.reasons, *told)
            decision = decision.model_copy(update={"chosen": None, "reasons": reasons})
        yield decision


def _enclosing(site: Site, others: Sequence[Site]) -> Iterator[str]:
    """Say which of some other sites are inside one that would answer their calls."""
    head = "" if site.path == ROOT else f"{site.path}."
    inside = [each for each in others if each.path.startswith(head)]
    if site.intercepts and inside:
        paths = ", ".join(each.path for each in inside)
        both = " or swap both" if all(each.intercepts for each in inside) else ""
        yield (
            f"inside: {site.layer} holds {paths}, whose calls of torch's attention function would "
            f"be answered here too; leave {site.path} out of the plan{both}"
        )


def _obstacles(assignment: Assignment) -> Iterator[str]:
    if assignment.site.obstacle:
        yield assignment.site.obstacle
    family = swap_family(assignment.variant)
    if family is None:
        yield unplaced(assignment)
    else:
        yield from family.obstacles(assignment)


def _modes(model: nn.Module) -> dict[str, bool]:
    """Return which sites are in training mode, by path; what is no module has its model's."""
    modes: dict[str, bool] = defaultdict(lambda: bool(model.training))
    modes.update((name, module.training) for name, module in model.named_modules() if name)
    return modes


def _cells(decision: Decision) -> tuple[str, ...]:
    site = decision.site
    told = decision.chosen or "no: " + "\n".join(decision.reasons)
    return (site.path, str(site.needs), decision.variant, decision.relation, told)


def refusal(refused: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    """Word one refusal for all sites; sites with the same reasons share a paragraph."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for path, told in refused:
        groups.setdefault(told, []).append(path)
    count = f"{len(refused)} site{'s' if len(refused) > 1 else ''}"
    lines = [f"the swap is refused at {count}, the model is as it was:"]
    for told, paths in groups.items():
        lines += [f"  {', '.join(paths)}", *(f"    {line}" for r in told for line in r.split("\n"))]
    return "\n".join(lines)
