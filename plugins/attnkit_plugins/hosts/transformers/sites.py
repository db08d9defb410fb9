"""The sites of a transformers model, and what each layer needs, read from its attributes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from attnkit.hosts.mounts import original, site_at, site_path
from attnkit.hosts.sdpa_calls import calls_attention
from attnkit.swaps.api import Needs, Site
from attnkit_plugins.hosts.transformers.bond import own_config
from attnkit_plugins.hosts.transformers.experts import (
    dense_obstacle,
    experts_obstacle,
    feedforward_needs,
    is_experts,
)
from attnkit_plugins.hosts.transformers.interface import Caller, caller, crosses
from attnkit_plugins.hosts.transformers.rewriter import rewritten, seen_as

HOST = "transformers"

READABLE = (None, "eager", "sdpa")
"""Implementations whose masks `masks` reads."""

_FEEDFORWARD = re.compile(r"(MLP|Mlp|FeedForward|FFN|ActDense)(Block|Network)?$")

_APART = (("fc1", "fc2"), ("intermediate", "output"), ("ffn", "ffn_output"))
"""Children that are the feed-forward part of a layer between them, beside all else in it."""


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return the attention and feed-forward sites of a model, in the order of its modules."""
    sites = (site for path, module in model.named_modules() for site in _site(path, module))
    found = {site.path: site for site in sites}
    # a wrapper around a layer that calls the interface is no site of its own
    inner = {path for path, site in found.items() if not site.obstacle}
    return tuple(
        site
        for path, site in found.items()
        if not (site.obstacle and any(other.startswith(f"{path}.") for other in inner))
    )


def _site(path: str, module: nn.Module) -> Iterator[Site]:
    layer: type = original(type(module))
    stand_in = rewritten(layer)
    if stand_in is not None:
        layer, module = stand_in, seen_as(module, stand_in)
    found = caller(layer)
    if found is not None and hasattr(module, "config"):
        needs = _attention(path, module, found)
        told, width = _obstacle(module), _input_dim(module)
        yield site_at(HOST, path, module, "attention", needs, told, input_dim=width)
    elif not layer.__module__.startswith("transformers."):
        return
    elif calls_attention(layer):
        needs, told = _calling(path, module), _obstacle_of_caller(module)
        yield site_at(HOST, path, module, "attention", needs, told, intercepts=True)
    elif is_experts(module):
        told = experts_obstacle(module)
        needs = Needs(**feedforward_needs(module))
        yield site_at(HOST, path, module, "feedforward", needs, told)
    elif "Attention" in layer.__name__ and len(_matrices(module)) + len(_own(module)) > 1:
        told = (
            f"{layer.__name__} does not call transformers' attention interface; declare it as a "
            f"module of your own: attnkit.declare({layer.__name__}, method=..., query=..., "
            "key=..., value=...)"
        )
        yield site_at(HOST, path, module, "attention", Needs(), told)
    elif _FEEDFORWARD.search(layer.__name__) and len(_matrices(module)) > 1:
        told = dense_obstacle(site_path(path), module)
        yield site_at(HOST, path, module, "feedforward", _feedforward(module), told)
    elif layer.__name__.endswith("Layer"):
        yield from _apart(path, module)


def _apart(path: str, module: nn.Module) -> Iterator[Site]:
    """Say of a layer whose feed-forward part is no module that there is none to replace."""
    for first, second in _APART:
        if hasattr(module, first) and hasattr(module, second):
            told = (
                f"{original(type(module)).__name__} computes its feed-forward part by its "
                f"{first!r} and {second!r}, there is no one module to replace"
            )
            # the layer's own name would stand for all that is in it
            yield site_at(HOST, f"{path}.{first}".lstrip("."), module, "feedforward", Needs(), told)


def _input_dim(module: nn.Module) -> int | None:
    """Return D of a layer whose cache can keep a state: one with a place of its own in it."""
    layer: type = type(module)
    found, index = caller(layer), getattr(module, "layer_idx", None)
    if found is None or not _keeps(layer, found) or not isinstance(index, int):
        return None
    config = own_config(module)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[index] if kinds and index < len(kinds) else "full_attention"
    # elsewhere the place also holds what another part of the layer keeps, or is another layer's
    alone = DYNAMIC_LAYER_TYPE_MAPPING.get(kind) in (DynamicLayer, DynamicSlidingWindowLayer)
    return getattr(config, "hidden_size", None) if alone else None


def _obstacle(module: nn.Module) -> str | None:
    config = own_config(module)
    name = getattr(config, "_attn_implementation", None)
    if name not in READABLE:
        return (
            f"the model makes masks for attn_implementation={name!r}, attnkit reads those of "
            "'sdpa' and 'eager': load it with attn_implementation='sdpa'"
        )
    if getattr(config, "output_attentions", False):
        return "config.output_attentions asks for attention weights, a variant returns none"
    if isinstance(module, PreTrainedModel):
        return f"{type(module).__name__} is layer and model in one, its config makes the masks"
    return None


def _attention(path: str, module: nn.Module, found: Caller) -> Needs:
    config = own_config(module)
    heads = _number(int, module, "num_heads", "num_attention_heads", "n_heads") or _number(
        int, config, "num_attention_heads", "n_head", "num_heads"
    )
    groups = _number(int, module, "num_key_value_groups")
    kv_heads = heads // groups if heads and groups else heads
    width = _number(int, module, "head_dim", "attention_head_size", "key_value_proj_dim")
    scale = _number(float, module, "scaling", "scale")
    causal = getattr(module, "is_causal", None)
    return Needs(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        causal=causal if isinstance(causal, bool) else None,
        cross=crosses(path, module),
        window=_window(module, found),
        softcap=_number(float, module, "attn_logit_softcapping", "softcap"),
        scale=None if width and scale == width**-0.5 else scale,
        sinks=isinstance(getattr(module, "sinks", None), torch.Tensor),
        bias="position_bias" in found.code.co_varnames,
        dropout=_dropout(module),
        cache=_keeps(type(module), found),
    )


def _keeps(layer: type[nn.Module], found: Caller) -> bool:
    """Say whether a layer takes a cache, in the method that calls the interface or before it."""
    forward: Any = inspect.unwrap(layer.forward)
    names = {*found.code.co_varnames, *forward.__code__.co_varnames}
    return not names.isdisjoint(("past_key_values", "layer_past"))


def _calling(path: str, module: nn.Module) -> Needs:
    """Say what a layer needs that calls torch's attention function itself."""
    heads = _number(int, module, "num_heads", "num_attention_heads")
    causal = getattr(module, "is_causal", None)
    return Needs(
        heads=heads,
        kv_heads=_number(int, module, "num_kv_heads") or heads,
        head_dim=_number(int, module, "head_dim", "attention_head_size"),
        causal=causal if isinstance(causal, bool) else None,
        cross=crosses(path, module),
        dropout=_dropout(module),
        cache="layer_past" in inspect.signature(module.forward).parameters,
    )


def _obstacle_of_caller(module: nn.Module) -> str | None:
    name = getattr(getattr(module, "config", None), "_attn_implementation", "sdpa")
    if name in (None, "sdpa"):
        return None
    return (
        f"{type(module).__name__} calls torch's attention function under "
        f"attn_implementation='sdpa' only, the model has {name!r}"
    )


def _window(module: nn.Module, found: Caller) -> int | None:
    owner: object = module
    if not hasattr(module, "sliding_window"):
        if "sliding_window" not in (*found.code.co_names, *found.code.co_consts):
            return None
        owner = own_config(module)
    size: int | None = _number(int, owner, "sliding_window")
    return size


def _dropout(module: nn.Module) -> float:
    for name in ("attention_dropout", "attn_dropout", "dropout_p", "dropout"):
        given = getattr(module, name, None)
        share = getattr(given, "p", given)
        if isinstance(share, float | int):
            return float(share)
    return 0.0


def _feedforward(module: nn.Module) -> Needs:
    # the widths of all matrices are those of the model and of the hidden layer, in some order
    first = next(each for each in module.children() if _matrix(each) is not None)
    shape = tuple(_matrices(module)[0].shape)
    hidden, width = shape if isinstance(first, torch.nn.Linear) else shape[::-1]
    told = feedforward_needs(module)
    if isinstance(getattr(module, "gate_up_proj", None), torch.nn.Linear):
        hidden = hidden // 2
    return Needs(embed_dim=width, hidden_dim=hidden, **told)


def _matrices(module: nn.Module) -> list[torch.Tensor]:
    return [w for child in module.children() if (w := _matrix(child)) is not None]


def _matrix(module: nn.Module) -> torch.Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None


def _own(module: nn.Module) -> list[torch.Tensor]:
    return [w for w in module.parameters(recurse=False) if w.dim() > 1]


def _number(kind: type, owner: object, *names: str) -> Any:
    for name in names:
        value = getattr(owner, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool) and value:
            return kind(value)
    return None
