"""Swapping by name: `survey` a model, `explain` a plan, `swap` it.

    attnkit.survey(model)            # where attention is, and what each place needs
    attnkit.explain(model, "flash")  # dry run: what would run there, or every reason why not
    attnkit.swap(model, "flash")     # all or nothing, verified on a probe, undone by restore()

`attnkit.plans` reads plans, `attnkit.swapping` does the swap, `attnkit.verification` measures it,
`attnkit.sites` has the protocol of the adapters.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from attnkit.errors import ArgumentError, SwapRefusedError
from attnkit.hookspecs import EXTENSION_GROUP
from attnkit.host_versions import untested
from attnkit.placements import LENGTH, obstacles, supposed
from attnkit.plan_sources import PlanSource, written_out
from attnkit.plans import Assignment, assign
from attnkit.promises import Relation
from attnkit.registry import default
from attnkit.sites import (
    ROOT,
    Attachment,
    Call,
    Host,
    Kind,
    Mixer,
    Needs,
    Request,
    Site,
    Survey,
    with_remarks,
)
from attnkit.table import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from attnkit.added import Added
    from attnkit.problem import Problem
    from attnkit.swapping import Swap

__all__ = [
    "Attachment",
    "Call",
    "Decision",
    "Explanation",
    "Host",
    "Kind",
    "Mixer",
    "Needs",
    "Request",
    "Site",
    "Survey",
    "explain",
    "survey",
    "swap",
]

_DEGREES: tuple[Relation, ...] = ("exact", "approximate", "different")


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


def survey(model: nn.Module) -> Survey:
    """Find the attention and feed-forward sites of a model and what each of them needs.

    In the order of the model's modules. Where several hosts know a module, the first that can
    put something there has it.
    """
    _check_module(model)
    found: dict[str, Site] = {}
    for host in default().hosts():
        remark = untested(host.name, host.tested)
        for site in host.sites(model):
            if site.path not in found or (found[site.path].obstacle and not site.obstacle):
                found[site.path] = site.model_copy(update={"remark": remark})
    order = {name or ROOT: number for number, (name, _) in enumerate(model.named_modules())}
    # a host may name what is no module; it comes last
    return Survey(sorted(found.values(), key=lambda site: order.get(site.path, len(order))))


def explain(model: nn.Module, plan: PlanSource) -> Explanation:
    """Say what `swap` would do, without doing it.

    What only a call shows (the masks that arrive, arguments of one model alone) is not known
    here; `swap` finds it out on its probe, before anything is changed.

    Args:
        model: Any `torch.nn.Module`.
        plan: A variant, or a mapping of path patterns to variants, see `attnkit.plans`; a
            function of a site or the path of a file with one, see `attnkit.plan_sources`.

    Raises:
        RegistryError: A name cannot be resolved to a variant.
        ArgumentError: A pattern of the plan takes no site.
    """
    sites = _sites(model)
    assignments = assign(written_out(plan, sites), sites)
    modes = _modes(model)
    return Explanation(decide(each, training=modes[each.site.path]) for each in assignments)


def swap(
    model: nn.Module,
    plan: PlanSource,
    *,
    sample: Mapping[str, object] | None = None,
    accept: Relation = "exact",
) -> Swap:
    """Replace the layers' mathematics by variants, by name: all sites of the plan or none.

    The model's parameters, modules, configuration and outputs' types stay. Before anything is
    changed, every site is tried on the very tensors that reach it in a run of the model on
    ``sample``, and measured against the model's own function in float64; afterwards the outputs
    of the whole model are compared; see `attnkit.verification` for the bounds.

    Args:
        model: Any `torch.nn.Module` that a host knows.
        plan: A variant, or a mapping of path patterns to variants, see `attnkit.plans`; a
            function of a site or the path of a file with one, see `attnkit.plan_sources`.
        sample: Keyword arguments of the model's forward, to verify on. None makes some.
        accept: The largest change of the mathematics that is wanted. ``exact``: none, rounding
            apart. ``approximate`` and ``different``: verified against the variant's own float64
            definition; how far the outputs move is measured and written in the receipt.

    Returns:
        The swap: its receipt, and ``restore()``; also a context manager.

    Raises:
        RegistryError: A name cannot be resolved to a variant.
        ArgumentError: A pattern of the plan takes no site.
        SwapRefusedError: Some sites cannot take their variant; all are listed with all reasons.
        VerificationError: The swap ran and did not compute what it should; it was undone.
        SwapError: The model cannot be run for the verification.
    """
    return swap_filled(model, plan, None, sample=sample, accept=accept)


def swap_filled(
    model: nn.Module,
    plan: PlanSource,
    fill: Callable[[Sequence[Added]], None] | None,
    *,
    sample: Mapping[str, object] | None,
    accept: Relation,
) -> Swap:
    """Do what `swap` does, with weights for the modules that it brings.

    Args:
        model: See `swap`.
        plan: See `swap`.
        fill: Called with the new modules, before anything is tried, to put weights into them.
        sample: See `swap`.
        accept: See `swap`; of the new modules as the variants make them.
    """
    from attnkit.swapping import carry_out

    if accept not in _DEGREES:
        raise ArgumentError(f"accept must be one of {', '.join(_DEGREES)}, got {accept!r}")
    sites = _sites(model)
    written = written_out(plan, sites)
    assignments = assign(written, sites)
    refused, modes = [], _modes(model)
    for assignment in assignments:
        reasons = decide(assignment, training=modes[assignment.site.path]).reasons
        if not reasons and _DEGREES.index(assignment.relation) > _DEGREES.index(accept):
            reasons = (_unaccepted(assignment, accept),)
        if reasons:
            refused.append((assignment.site.path, reasons))
    if refused:
        raise SwapRefusedError(refusal(refused))
    hosts = {host.name: host for host in default().hosts()}
    remarks = _remarks(assignments)
    return carry_out(model, written, assignments, hosts, sample, accept, remarks, fill)


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


def decide(assignment: Assignment, *, training: bool = False) -> Decision:
    """Say what runs at a site, or every reason why nothing can.

    Args:
        assignment: What a plan puts there.
        training: Whether the site drops probabilities, if it ever does.
    """
    reasons = tuple(_obstacles(assignment))
    chosen = None
    if not reasons:
        from attnkit.choice import explain_choice

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


def _unaccepted(assignment: Assignment, accept: Relation) -> str:
    name, size = assignment.variant.name, assignment.window_size
    narrows = size is not None and assignment.relation != assignment.variant.relation
    what = (
        f"window_size {size} hides keys that the layer sees"
        if narrows
        else (f"variant {name!r} computes something else")
    )
    return (
        f"relation: {what} ({assignment.relation}), accept is {accept!r}; allow it by "
        f"accept={assignment.relation!r}"
    )


def _modes(model: nn.Module) -> dict[str, bool]:
    """Return which sites are in training mode, by path; what is no module has its model's."""
    modes: dict[str, bool] = defaultdict(lambda: bool(model.training))
    modes.update((name, module.training) for name, module in model.named_modules() if name)
    return modes


def _remarks(assignments: Sequence[Assignment]) -> tuple[str, ...]:
    """Return what to know of the hosts, and of sites that cannot be trained with their variant."""
    told = dict.fromkeys(each.site.remark for each in assignments if each.site.remark)
    for each in assignments:
        dropout = each.site.needs.dropout
        if dropout and decide(each, training=True).reasons:
            told[
                f"in training the layers drop {dropout:g} of the probabilities, and variant "
                f"{each.variant.name!r} will refuse; set their dropout to 0, or take a variant "
                "that promises dropout"
            ] = None
    return tuple(told)


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


def _sites(model: nn.Module) -> Survey:
    sites = survey(model)
    if not sites:
        hosts = ", ".join(host.name for host in default().hosts()) or "none"
        broken = [f"; {each}" for each in default().broken() if each.entry.group == EXTENSION_GROUP]
        raise SwapRefusedError(
            f"no site in {type(model).__name__}: none of its modules belongs to a known host; "
            f"hosts: {hosts}{''.join(broken)}"
        )
    return sites


def _check_module(model: Any) -> None:
    import torch

    if not isinstance(model, torch.nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _cells(decision: Decision) -> tuple[str, ...]:
    site = decision.site
    told = decision.chosen or "no: " + "\n".join(decision.reasons)
    return (site.path, str(site.needs), decision.variant, decision.relation, told)
