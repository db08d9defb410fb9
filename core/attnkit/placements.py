"""How a variant that is no softmax attention takes the place of a part of somebody's model.

A variant declares a `Placement`: what a plan may say about it, what it cannot stand in for, and
what to build there. A recurrence takes the place of an attention function, between the layer's
own projections (see `attnkit.swaps.recurrence_site`); a feed-forward variant that of a feed-forward
layer, or of the experts in one (see `attnkit.swaps.feedforward_site`).

Imports no torch: a variant's declaration imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from attnkit.problem import Problem
    from attnkit.promises import Decay, Relation
    from attnkit.sites import Site
    from attnkit.swaps.plan import Assignment

LENGTH = 128
"""Query and key length that a dry run supposes."""


class SiteOptions(BaseModel):
    """What a plan may say beside any variant; a variant adds its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    implementation: str = Field(default="auto", description="implementation to run, or 'auto'")
    fallback: tuple[str, ...] = Field(
        default=(), description="implementations to try if that one cannot"
    )


def _nothing(site: Site, options: Any) -> tuple[str, ...]:
    return ()


def _no_decay(options: Any) -> Decay:
    return "none"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a variant needs to stand at a site of a model.

    Attributes:
        build: ``"package.module:function"`` or a callable: of a recurrence a
            `attnkit.swaps.recurrence_site.Builder`, of a feed-forward variant a
            `attnkit.swaps.feedforward_site.Builder`.
        options: What a plan may say.
        relation: Of such a swap, at the start.
        refuses: Reasons why it cannot stand at a site with these options.
        decay: The form of ``log_decay`` that a recurrence has with these options.
        weights: Makes the variant's own record of the weights of existing experts from
            ``gate_up`` (E, 2F, D) and ``down`` (E, D, F); None if it cannot run them.
    """

    build: str | Callable[..., Any]
    options: type[SiteOptions] = SiteOptions
    relation: Relation = "different"
    refuses: Callable[[Site, Any], Iterable[str]] = _nothing
    decay: Callable[[Any], Decay] = _no_decay
    weights: str | Callable[..., Any] | None = None


def obstacles(assignment: Assignment) -> Iterator[str]:
    """Say why a variant with a placement, or without one, cannot stand at a site."""
    site, variant = assignment.site, assignment.variant
    if variant.placement is None:
        yield (
            f"variant {variant.name!r} (family {variant.family}) declares no placement: it cannot "
            "take the place of a part of a model"
        )
        return
    if variant.family == "recurrence":
        yield from _beyond_a_recurrence(assignment)
    yield from variant.placement.refuses(site, assignment.options)


def supposed(assignment: Assignment) -> Problem:
    """Return the problem that a dry run supposes a recurrence or a feed-forward site to have."""
    from attnkit.problem import Problem

    site, variant, options = assignment.site, assignment.variant, assignment.options
    needs, placement = site.needs, variant.placement
    assert placement is not None
    recurrent = variant.family == "recurrence"
    experts = needs.num_experts or getattr(options, "num_experts", None) or 1
    heads = (needs.heads or 2) if recurrent else experts
    width = (needs.head_dim if recurrent else needs.embed_dim) or 64
    return Problem(
        family=variant.family,
        device=site.device,
        dtype=site.dtype,
        batch=1,
        heads=heads,
        kv_heads=heads,
        query_length=LENGTH,
        key_length=LENGTH,
        head_dim=width,
        value_head_dim=width,
        causal=recurrent,
        decay=placement.decay(options),
        state=recurrent,
    )


def _beyond_a_recurrence(assignment: Assignment) -> Iterator[str]:
    site, name = assignment.site, assignment.variant.name
    needs = site.needs
    if site.input_dim is None:
        yield (
            f"state: variant {name!r} needs the layer's input and a place for its state; the host "
            f"{site.host!r} offers neither at {site.layer}"
        )
    if needs.causal is not True:
        yield f"causal: {name!r} sees no later key, the layer is not known to be causal"
    if needs.cross:
        yield f"cross: the layer is cross-attention, {name!r} takes keys of its own tokens"
    if needs.heads is None:
        yield "heads: their number is not known, the layer does not tell it"
    if needs.window is not None:
        yield (
            f"window: the layer sees {needs.window} keys, a recurrence forgets gradually; "
            "set the config's sliding_window to None first if all keys may be seen"
        )
    told = {
        "softcap": "caps logits",
        "sinks": "adds a logit per head to the denominator",
        "bias": "adds a tensor to the logits",
        "dropout": "drops probabilities",
    }
    for part, what in told.items():
        if getattr(needs, part):
            yield f"{part}: the layer {what}, a recurrence has none"
