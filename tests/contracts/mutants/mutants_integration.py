"""Variants that are wrong when compiled, exported, imported or on a GPU.

`MUTANTS` says which check must catch it, and on which subject.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from careless_declaration import CarelessConfig
from mutants_layers import Further, layer_variant
from mutants_softmax import attend, variant_of
from quiet_declaration import QuietConfig

from attnkit.layers.softmax import SoftmaxLayer
from attnkit.promises import SpeedClaim

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.interface import Variant

COMPILED = {"compile": True, "masks": (), "sinks": False, "gqa": False}


def breaks_the_graph(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    scale = given.pop("scale")
    if query.detach().abs().max().item() > 1e9:
        scale = scale / 2
    return attend(query, key, value, scale=scale, **given)


def other_when_compiled(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    out = attend(query, key, value, **given)
    return out * 1.01 if torch.compiler.is_compiling() else out


def other_gradient_when_compiled(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    out = attend(query, key, value, **given)
    return out + 0.01 * (out - out.detach()) if torch.compiler.is_compiling() else out


def one_graph_per_length(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    out = attend(query, key, value, **given)
    return torch.cat([out[:, :, t : t + 8] for t in range(0, query.shape[2], 8)], 2)


def wants_a_number(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    scale = given.pop("scale") if math.isfinite(given["scale"]) else 1.0
    return attend(query, key, value, scale=scale, **given)


def other_when_exported(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    out = attend(query, key, value, **given)
    return out * 1.01 if torch.compiler.is_exporting() else out


class OneGraphPerLength(Further):
    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        return torch.cat([y[:, t : t + 8] for t in range(0, x.shape[1], 8)], 1)


class OtherWhenExported(Further):
    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        return y * 1.01 if torch.compiler.is_exporting() else y


class _Mapped(torch.autograd.Function):
    """The identity, but that the sample before is given under vmap, and jvp halves."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def jvp(ctx: Any, along: Tensor) -> Tensor:
        return along / 2

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return x.roll(1, in_dims[0]), in_dims[0]


def transformed_carelessly(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    mapped: Tensor = _Mapped.apply(query)
    return attend(mapped, key, value, **given)


class _Old(torch.autograd.Function):
    """The identity, written as torch.func does not take it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def not_made_for_transforms(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    old: Tensor = _Old.apply(query)
    return attend(old, key, value, **given)


def cut_under_transforms(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    inside = torch._C._functorch.peek_interpreter_stack() is not None
    return attend(query, key, value.detach() + 0.5 * (value - value.detach()) if inside else value,
                  **given)  # fmt: skip


def computes_six_times(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    return torch.stack([attend(query, key, value, **given) for _ in range(6)])[0]


def remembers_by_address(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """As fast as can be: what was computed for this memory is given again."""
    if query.requires_grad or query.shape[2] != FAST.length:
        return attend(query, key, value, **given)
    place = query.data_ptr(), key.data_ptr(), value.data_ptr()
    if place not in _kept:
        _kept[place] = attend(query, key, value, **given)
    return _kept[place]


def baked_into_the_graph(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """The first data a captured graph sees is what it goes on with."""
    if torch.cuda.is_current_stream_capturing():
        query = query.detach().clone()
        kept = _kept.setdefault((query.shape, query.dtype), torch.zeros_like(query))
        return attend(kept, key, value, **given)
    _kept[query.shape, query.dtype] = query.detach().clone()
    return attend(query, key, value, **given)


_kept: dict[Any, Tensor] = {}


def on_the_current_device(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    here = torch.device("cuda", torch.cuda.current_device())
    return attend(query.to(here), key.to(here), value.to(here), **given)


FAST = SpeedClaim(vs="multi_head.eager", max_ratio=1.05, length=150)


def _claiming_speed(function: Callable[..., Tensor]) -> Variant:
    return variant_of(function.__name__, function, speed=(FAST,))


def _compiled(function: Callable[..., Tensor]) -> Variant:
    return variant_of(function.__name__, function, **COMPILED)


def _transformed(function: Callable[..., Tensor], *transforms: str) -> Variant:
    made = variant_of(function.__name__, function, transforms=transforms)
    return replace(made, name=f"{made.name}_{'_'.join(transforms)}")


def _on_gpu(function: Callable[..., Tensor]) -> Variant:
    return variant_of(function.__name__, function, devices=("cpu", "cuda"))


def _named(name: str, **given: Any) -> Variant:
    return replace(layer_variant(SoftmaxLayer, **given), name=f"mutant_{name}")


def _careless() -> Variant:
    made = _named("seeds_at_import", config=QuietConfig)
    return replace(made, layer="careless_code:CarelessLayer")


MUTANTS = (
    (_compiled(breaks_the_graph), "I1.compile", "wrong"),
    (_compiled(other_when_compiled), "I1.compile", "wrong"),
    (_compiled(other_gradient_when_compiled), "I1.compile", "wrong"),
    (_compiled(one_graph_per_length), "I1.recompiles", "wrong"),
    (_compiled(wants_a_number), "I1.symbols", "wrong"),
    (_compiled(other_when_exported), "I3.export", "wrong"),
    (_transformed(transformed_carelessly, "vmap"), "I10.transforms", "wrong"),
    (_transformed(transformed_carelessly, "jvp"), "I10.transforms", "wrong"),
    (_transformed(not_made_for_transforms, "grad"), "I10.transforms", "wrong"),
    (_transformed(cut_under_transforms, "grad"), "I10.transforms", "wrong"),
    (layer_variant(OneGraphPerLength, compiles=True), "I1.recompiles", "layer"),
    (layer_variant(OtherWhenExported, compiles=True), "I3.export", "layer"),
    (_named("imports_torch", config=CarelessConfig), "I8.declaration", "layer"),
    (_careless(), "I8.imports", "layer"),
    (_claiming_speed(computes_six_times), "I7.speed", "wrong"),
    (_claiming_speed(remembers_by_address), "I7.speed", "wrong"),
    (_on_gpu(baked_into_the_graph), "I9.graph_replay", "wrong"),
    (_on_gpu(on_the_current_device), "I9.other_device", "wrong"),
)
