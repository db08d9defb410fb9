"""How a variant that is no softmax attention takes the place of a part of somebody's model.

A variant declares a `Placement`: what a plan may say about it, what it cannot stand in for, and
what to build there. A recurrence takes the place of an attention function, between the layer's
own projections (see `attnkit.swaps.recurrence_site`); a feed-forward variant that of a feed-forward
layer, or of the experts in one (see `attnkit.swaps.feedforward_site`).

Imports no torch: a variant's declaration imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from attnkit.frozen import Frozen
from attnkit.promises import Decay, Relation
from attnkit.sites import Site


class SiteOptions(Frozen):
    """What a plan may say beside any variant; a variant adds its own fields."""

    implementation: str = Field(default="auto", description="implementation to run, or 'auto'")
    fallback: tuple[str, ...] = Field(
        default=(), description="implementations to try if that one cannot"
    )


class WindowOptions(SiteOptions):
    """What a plan may say beside a softmax variant."""

    window_size: int | None = Field(
        default=None,
        gt=0,
        strict=True,
        description="keys that a query sees at most, self included; narrows the mask",
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
            `attnkit.hosts.parts.RecurrenceBuilder`, of a feed-forward variant a
            `attnkit.hosts.parts.FeedforwardBuilder`.
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
