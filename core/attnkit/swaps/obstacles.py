"""Why a variant cannot stand at a site, by its family; told before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnkit.swaps.families import Assignment

LENGTH = 128
"""Query and key length that a dry run supposes."""


def unplaced(assignment: Assignment) -> str:
    """Say that a variant has no way into a model."""
    variant = assignment.variant
    return (
        f"variant {variant.name!r} (family {variant.family}) declares no placement: it cannot "
        "take the place of a part of a model"
    )


def beyond_attention(assignment: Assignment) -> Iterator[str]:
    """Say what a softmax variant cannot do at a site."""
    site, variant = assignment.site, assignment.variant
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


def beyond_a_placement(assignment: Assignment) -> Iterator[str]:
    """Say what a variant itself says against a site, or that it has no way into a model."""
    placement = assignment.variant.placement
    if placement is None:
        yield unplaced(assignment)
    else:
        yield from placement.refuses(assignment.site, assignment.options)


def beyond_a_recurrence(assignment: Assignment) -> Iterator[str]:
    """Say what a recurrence cannot do at a site."""
    if assignment.variant.placement is not None:
        yield from _beyond_a_state(assignment)
    yield from beyond_a_placement(assignment)


def _beyond_a_state(assignment: Assignment) -> Iterator[str]:
    site, name = assignment.site, assignment.variant.name
    needs = site.needs
    if site.input_dim is None:
        yield (
            f"state: variant {name!r} needs the layer's input and a place of its own for its "
            f"state; the host {site.host!r} does not offer both at {site.layer}"
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
