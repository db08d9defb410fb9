"""Swapping by name: `survey` a model, `explain` a plan, `swap` it.

    attnkit.survey(model)            # where attention is, and what each place needs
    attnkit.explain(model, "flash")  # dry run: what would run there, or every reason why not
    attnkit.swap(model, "flash")     # all or nothing, verified on a probe, undone by restore()

`attnkit.swaps.plan` reads plans, `attnkit.swaps.decisions` says what they mean,
`attnkit.swaps.transaction` does the swap, `attnkit.swaps.verification` measures it,
`attnkit.sites` has the protocol of the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnkit.errors import ArgumentError, SwapRefusedError
from attnkit.hookspecs import EXTENSION_GROUP
from attnkit.hosts.answers import sites_of
from attnkit.registry.registry import default
from attnkit.sites import ROOT, Survey
from attnkit.sites import Kind as Kind
from attnkit.sites import Needs as Needs
from attnkit.sites import Site as Site
from attnkit.swaps.decisions import Explanation, decide, decide_all, refusal
from attnkit.swaps.plan import assign
from attnkit.swaps.plan_files import PlanSource, written_out
from attnkit.versions import untested

if TYPE_CHECKING:
    from torch import nn

    from attnkit.promises import Relation
    from attnkit.swaps.families import Assignment
    from attnkit.swaps.transaction import Swap
    from attnkit.swaps.weights import Added

_DEGREES: tuple[Relation, ...] = ("exact", "approximate", "different")


def survey(model: nn.Module) -> Survey:
    """Find the attention and feed-forward sites of a model and what each of them needs.

    In the order of the model's modules. Where several hosts know a module, the first that can
    put something there has it.
    """
    _check_module(model)
    found: dict[str, Site] = {}
    for host in default().hosts():
        remark = untested(host.name, host.tested)
        for site in sites_of(host, model):
            if site.path not in found or (found[site.path].obstacle and not site.obstacle):
                found[site.path] = site.model_copy(update={"remark": remark})
    order = {name or ROOT: number for number, (name, _) in enumerate(model.named_modules())}
    # of a module with two names, the other one; it comes last
    return Survey(sorted(found.values(), key=lambda site: order.get(site.path, len(order))))


def explain(model: nn.Module, plan: PlanSource) -> Explanation:
    """Say what `swap` would do, without doing it.

    What only a call shows (the masks that arrive, arguments of one model alone) is not known
    here; `swap` finds it out on its probe, before anything is changed.

    Args:
        model: Any `torch.nn.Module`.
        plan: A variant, or a mapping of path patterns to variants, see `attnkit.swaps.plan`; a
            function of a site or the path of a file with one, see `attnkit.swaps.plan_files`.

    Raises:
        RegistryError: A name cannot be resolved to a variant.
        ArgumentError: A pattern of the plan takes no site, or is no string.
    """
    sites = _sites(model)
    assignments = assign(written_out(plan, sites), sites)
    return Explanation(decide_all(model, assignments, sites))


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
    of the whole model are compared; see `attnkit.swaps.verification.outputs` for the bounds.

    Args:
        model: Any `torch.nn.Module` that a host knows.
        plan: A variant, or a mapping of path patterns to variants, see `attnkit.swaps.plan`; a
            function of a site or the path of a file with one, see `attnkit.swaps.plan_files`.
        sample: Keyword arguments of the model's forward, to verify on. None makes some.
        accept: The largest change of the mathematics that is wanted. ``exact``: none, rounding
            apart. ``approximate`` and ``different``: verified against the variant's own float64
            definition; how far the outputs move is measured and written in the receipt.

    Returns:
        The swap: its receipt, and ``restore()``; also a context manager.

    Raises:
        RegistryError: A name cannot be resolved to a variant.
        ArgumentError: A pattern of the plan takes no site, or is no string.
        SwapRefusedError: Some sites cannot take their variant; all are listed with all reasons.
        VerificationError: The swap ran and did not compute what it should; it was undone.
        SwapError: The model cannot be run for the verification, or not on ``sample``.
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

    ``fill`` is called with them before anything is tried, to put weights into them; ``accept`` is
    about the modules as the variants make them.
    """
    from attnkit.swaps.transaction import carry_out

    if accept not in _DEGREES:
        raise ArgumentError(f"accept must be one of {', '.join(_DEGREES)}, got {accept!r}")
    sites = _sites(model)
    written = written_out(plan, sites)
    assignments = assign(written, sites)
    refused = []
    decisions = decide_all(model, assignments, sites)
    for assignment, decision in zip(assignments, decisions, strict=True):
        reasons = decision.reasons
        if not reasons and _DEGREES.index(assignment.relation) > _DEGREES.index(accept):
            reasons = (_unaccepted(assignment, accept),)
        if reasons:
            refused.append((assignment.site.path, reasons))
    if refused:
        raise SwapRefusedError(refusal(refused))
    hosts = {host.name: host for host in default().hosts()}
    remarks = _remarks(assignments)
    return carry_out(model, written, assignments, hosts, sample, accept, remarks, fill)


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
