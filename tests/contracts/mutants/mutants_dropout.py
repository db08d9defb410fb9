"""Deliberately wrong dropout, and a right one.

`MUTANTS` says which check must catch it, and on which subject.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_layers import DropsNoMore, DropsWithoutEnd

from attnkit.layers.softmax import SoftmaxLayer
from attnkit.masks.constructors import Mask, full
from attnkit_plugins.softmax.multi_head import VARIANT as MULTI_HEAD
from attnkit_plugins.softmax.multi_head.eager import attend

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.interface import Variant

FULL = full()


def ignored(query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any) -> Tensor:
    return attend(query, key, value, dropout_p=0.0, **given)


def not_rescaled(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    out = attend(query, key, value, dropout_p=dropout_p, **given)
    return out * (1 - dropout_p)


def of_outputs(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    """Drops whole rows where single probabilities are meant."""
    out = attend(query, key, value, dropout_p=0.0, **given)
    if not dropout_p:
        return out
    return out * (torch.rand(out.shape[:3]) >= dropout_p)[..., None] / (1 - dropout_p)


def half_at_most(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    return attend(query, key, value, dropout_p=min(dropout_p, 0.5), **given)


def same_for_a_group(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    """Query heads that share keys and values share what is dropped."""
    groups, outs = key.shape[1], []
    per_group = query.shape[1] // groups
    state = torch.get_rng_state()
    for head in range(per_group):
        torch.set_rng_state(state)
        some = slice(head, None, per_group)
        bias, sinks = given["bias"], given["sinks"]
        bias = bias[:, some] if bias is not None and bias.shape[1] > 1 else bias
        sinks = None if sinks is None else sinks[some]
        own = {**given, "bias": bias, "sinks": sinks}
        outs.append(attend(query[:, some], key, value, dropout_p=dropout_p, **own))
    return torch.stack(outs, 2).flatten(1, 2)


def same_every_time(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return attend(query, key, value, dropout_p=dropout_p, **given)


def other_backward(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    """The backward pass draws again."""
    forward = attend(query, key, value, dropout_p=dropout_p, **given)
    backward = attend(query, key, value, dropout_p=dropout_p, **given)
    return forward.detach() + backward - backward.detach()


def _dropped(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float, axis: int, **given: Any
) -> Tensor:
    """Attend with one mask of dropout for all along an axis of (B, H, L, S)."""
    if not dropout_p:
        return attend(query, key, value, dropout_p=0.0, **given)
    ones = torch.eye(key.shape[2]).expand(*key.shape[:3], -1).to(value)
    weights = attend(query, key, ones, dropout_p=0.0, **given)
    shape = list(weights.shape)
    shape[axis] = 1
    kept = torch.rand(shape) >= dropout_p
    shared = query.shape[1] // value.shape[1]
    return weights * kept / (1 - dropout_p) @ value.repeat_interleave(shared, 1)


def same_for_all_heads(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    return _dropped(query, key, value, dropout_p, 1, **given)


def same_for_all_queries(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    return _dropped(query, key, value, dropout_p, 2, **given)


def same_for_all_samples(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    return _dropped(query, key, value, dropout_p, 0, **given)


def _two_ways(
    query: Tensor, key: Tensor, value: Tensor, p: float, again: float, **given: Any
) -> Tensor:
    """Drop in the output and in the gradient of values; drop again in those of the logits."""
    if not p:
        return attend(query, key, value, dropout_p=p, **given)
    out = attend(query.detach(), key.detach(), value, dropout_p=p, **given)
    for_logits = attend(query, key, value.detach(), dropout_p=again, **given)
    return out + for_logits - for_logits.detach()


def backward_drops_nothing(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    """The gradient of the logits does not know of dropout, that of the values does."""
    return _two_ways(query, key, value, dropout_p, again=0.0, **given)


def backward_redraws(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    return _two_ways(query, key, value, dropout_p, again=dropout_p, **given)


def _if_dropping(**instead: Any) -> Callable[..., Tensor]:
    """Return a function that takes other arguments where it drops."""

    def function(
        query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
    ) -> Tensor:
        given |= instead if dropout_p else {}
        return attend(query, key, value, dropout_p=dropout_p, **given)

    return function


def tiled_if_dropping(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    if dropout_p:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat(1, times, 1, 1), value.repeat(1, times, 1, 1)
    return attend(query, key, value, dropout_p=dropout_p, **given)


def untaught_bias_if_dropping(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None,
    dropout_p: float,
    **given: Any,
) -> Tensor:
    if bias is not None and dropout_p:
        bias = bias.detach() + 0 * bias
    return attend(query, key, value, bias=bias, dropout_p=dropout_p, **given)


def fewer_dropped_beside_a_bias(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, **given: Any
) -> Tensor:
    """What is left is right, but more is left than should be."""
    if given["bias"] is None or not dropout_p:
        return attend(query, key, value, dropout_p=dropout_p, **given)
    few = 0.4 * dropout_p
    out = attend(query, key, value, dropout_p=few, **given)
    return out * ((1 - few) / (1 - dropout_p))


class SeesAllInTraining(SoftmaxLayer):
    """Leaves the mask out where it drops."""

    def forward(self, x: Tensor, *, mask: Mask = FULL, **named: Any) -> Any:
        return super().forward(x, mask=FULL if self.training else mask, **named)


def _dropping(
    name: str, function: Callable[..., Tensor], layer: type[SoftmaxLayer] = SoftmaxLayer
) -> Variant:
    (right,) = (one for one in MULTI_HEAD.implementations if one.name == "eager")
    promises = right.promises.model_copy(update={"devices": ("cpu",)})
    right = replace(right, name="reference", function=attend, promises=promises)
    wrong = replace(right, name="wrong", function=function)
    return replace(
        MULTI_HEAD,
        name=f"mutant_dropout_{name}",
        promises=MULTI_HEAD.promises.model_copy(update={"devices": ("cpu",)}),
        layer=layer,
        implementations=(right, wrong),
    )


def _first(name: str, function: Callable[..., Tensor], kills: str, subject: str) -> Any:
    made = _dropping(name, function)
    if subject == "layer":
        # the layer takes the cheapest: leave it no other
        made = replace(made, implementations=(replace(made.implementations[1], name="reference"),))
    return made, kills, subject


RIGHT = _dropping("none", attend)

MUTANTS = (
    _first("ignored", ignored, "N6.modes", "layer"),
    _first("same_every_time", same_every_time, "N6.modes", "layer"),
    (_dropping("without_end", attend, DropsWithoutEnd), "N6.modes", "layer"),
    (_dropping("no_more", attend, DropsNoMore), "N6.modes", "layer"),
    _first("half_at_most", half_at_most, "N6.mean", "wrong"),
    _first("same_for_a_group", same_for_a_group, "N6.independence", "wrong"),
    _first("not_rescaled", not_rescaled, "N6.mean", "wrong"),
    _first("of_outputs", of_outputs, "N6.mean", "wrong"),
    _first("other_backward", other_backward, "N6.backward", "wrong"),
    _first("same_for_all_heads", same_for_all_heads, "N6.independence", "wrong"),
    _first("same_for_all_queries", same_for_all_queries, "N6.independence", "wrong"),
    _first("same_for_all_samples", same_for_all_samples, "N6.independence", "wrong"),
    _first("backward_drops_nothing", backward_drops_nothing, "N6.gradients", "wrong"),
    _first("backward_redraws", backward_redraws, "N6.gradients", "wrong"),
    _first("sees_all", _if_dropping(mask=FULL), "N6.company", "wrong"),
    _first("bias_left_out", _if_dropping(bias=None), "N6.company", "wrong"),
    _first("softcap_left_out", _if_dropping(softcap=None), "N6.company", "wrong"),
    _first("scale_forgotten", _if_dropping(scale=24**-0.5), "N6.company", "wrong"),
    _first("sinks_left_out", _if_dropping(sinks=None), "N6.company", "wrong"),
    _first("heads_tiled", tiled_if_dropping, "N6.company", "wrong"),
    _first("fewer_beside_a_bias", fewer_dropped_beside_a_bias, "N6.company", "wrong"),
    _first("bias_untaught", untaught_bias_if_dropping, "N6.company", "wrong"),
    (_dropping("sees_all_in_training", attend, SeesAllInTraining), "N6.visibility", "layer"),
)
