"""What a plan means at each site of a model: what would run there, or every reason why not.

`attnkit.swaps.api` asks before it swaps; `attnkit.placements` has the reasons of variants that are
no softmax attention.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from attnkit.placements import LENGTH, obstacles, supposed
from attnkit.promises import Relation
from attnkit.sites import ROOT, Site, with_remarks
from attnkit.text import table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from attnkit.problem import Problem
    from attnkit.swaps.plan import Assignment


class Decision(BaseModel):
    """What a plan means for one site."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        problem = _problem(assignment, training=training)
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
    site, variant = assignment.site, assignment.variant
    if site.obstacle:
        yield site.obstacle
    if variant.family != "softmax":
        yield from obstacles(assignment)
        return
    if site.needs.cross:
        yield from _beyond_crossing(assignment)
    for part in sorted(set(variant.promises.needs) - {"window"}):
        yield f"mask: variant {variant.name!r} needs masks with {part}, no option of a plan has any"
    needed = "window" in variant.promises.needs and not site.needs.cross
    if needed and assignment.window_size is None and site.needs.window is None:
        yield (
            f"window_size: variant {variant.name!r} needs one, the site has none; give "
            f"{{'variant': {variant.name!r}, 'window_size': ...}}"
        )


def _beyond_crossing(assignment: Assignment) -> Iterator[str]:
    """Say what a variant cannot do where keys come from elsewhere than queries."""
    variant = assignment.variant
    if not variant.promises.cross:
        yield (
            f"cross: the layer is cross-attention, variant {variant.name!r} does not promise query "
            "and key lengths that differ; leave the layer out"
        )
    if assignment.window_size is not None or "window" in variant.promises.needs:
        yield "window_size: in cross-attention no key is near a query; leave the layer out"


def _modes(model: nn.Module) -> dict[str, bool]:
    """Return which sites are in training mode, by path; what is no module has its model's."""
    modes: dict[str, bool] = defaultdict(lambda: bool(model.training))
    modes.update((name, module.training) for name, module in model.named_modules() if name)
    return modes


def _problem(assignment: Assignment, *, training: bool) -> Problem:
    from attnkit.problem import Problem

    if assignment.variant.family != "softmax":
        return supposed(assignment)
    site, needs = assignment.site, assignment.site.needs
    width = needs.head_dim or 64
    windows = [w for w in (needs.window, assignment.window_size) if w is not None]
    return Problem(
        family="softmax",
        device=site.device,
        dtype=site.dtype,
        batch=1,
        # as little as there can be: `swap` sees the rest
        heads=needs.heads or 1,
        kv_heads=needs.kv_heads or needs.heads or 1,
        query_length=LENGTH,
        key_length=2 * LENGTH if needs.cross else LENGTH,
        head_dim=width,
        value_head_dim=width,
        causal=bool(needs.causal),
        mask_parts=frozenset({"window"}) if windows else frozenset(),
        window=min(windows, default=None),
        bias=needs.bias,
        scale=needs.scale is not None and needs.scale != width**-0.5,
        softcap=needs.softcap is not None,
        sinks=needs.sinks,
        dropout=training and needs.dropout > 0,
    )


def _cells(decision: Decision) -> tuple[str, ...]:
    site = decision.site
    told = decision.chosen or "no: " + "\n".join(decision.reasons)
    return (site.path, str(site.needs), decision.variant, decision.relation, told)
