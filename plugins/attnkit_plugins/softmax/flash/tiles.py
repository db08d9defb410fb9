"""Softmax attention in tiles, eagerly and in graphs; `attnkit.kernels.tiles` has the tiles.

``torch.compile`` unrolls loops: traced as they stand, the tiles would be another graph for every
length. In a graph they are therefore an operator of torch, one node whatever the length. Eager
calls do without, as an operator costs them tens of microseconds.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from attnkit.interface import SoftmaxRules
from attnkit.kernels import tiles
from attnkit.kernels.onednn import fast_products
from attnkit.masks import Mask, Sizes
from attnkit.masks.codes import decode, encode

# measured in float32 on one AVX-512 core with L 512 and 2048, 2 and 8 heads
TILE_ROWS = 128
TILE_ELEMENTS = 1 << 18


def attend(query: Tensor, key: Tensor, value: Tensor, **rules: Unpack[SoftmaxRules]) -> Tensor:
    """Attend tile by tile; see `attnkit.interface.SoftmaxFunction`.

    Note:
        O(L S) time, O(L + S) extra memory, forward and backward.
    """
    assert rules["dropout_p"] == 0.0
    bias, sinks = rules["bias"], rules["sinks"]
    mask, scale, softcap = rules["mask"], rules["scale"], rules["softcap"]
    if torch.compiler.is_compiling():
        found: Tensor
        found, _ = _forward(query, key, value, bias, sinks, *encode(mask), scale, softcap)
        return found
    return tiles.attend(query, key, value, bias, sinks, _rules(mask, scale, softcap))


def _rules(mask: Mask, scale: float, softcap: float | None) -> tiles.Rules:
    return tiles.Rules(mask, scale, softcap, TILE_ROWS, TILE_ELEMENTS)


# the operator: what `tiles.attend` is, in terms that a graph can hold

_NOT_TENSORS = "str words, SymInt[] numbers, Tensor[] mask, float scale, float? softcap"


@torch.library.custom_op(
    "attnkit::flash_tiled",
    mutates_args=(),
    schema=(
        "(Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? sinks, "
        f"{_NOT_TENSORS}) -> (Tensor, Tensor)"
    ),
)
def _forward(query: Tensor, key: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    value, bias, sinks, *code, scale, softcap = given
    rules = _rules(decode(*code), scale, softcap)
    # what tensors hold was not known while the graph was traced
    batch, heads, length, _ = query.shape
    rules.mask.check(Sizes(batch, heads, length, key.shape[2]))
    with fast_products():
        return tiles.forward(query, key, value, bias, sinks, rules)


@torch.library.custom_op(
    "attnkit::flash_tiled_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? sinks, "
        f"Tensor out, Tensor logsumexp, {_NOT_TENSORS}, bool bias_too) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _backward(grad_out: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *kept, words, numbers, mask, scale, softcap, bias_too = given
    rules = _rules(decode(words, numbers, mask), scale, softcap)
    with fast_products():
        found = tiles.backward(grad_out, tiles.Kept(*kept), rules, bias_too)
    absent = grad_out.new_empty(0)
    return (
        found.query,
        found.key,
        found.value,
        absent if found.bias is None else found.bias,
        absent.clone() if found.sinks is None else found.sinks,
    )


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows = query.shape[:3]
    return query.new_empty(*rows, value.shape[3]), query.new_empty(*rows, 1, dtype=wide)


@_backward.register_fake
def _(grad_out: Tensor, *given: Any) -> tuple[Tensor, ...]:
    query, key, value, bias, sinks, *_, bias_too = given
    likes = (query, key, value, bias if bias_too else None, sinks)
    return tuple(query.new_empty(0) if x is None else x.new_empty(x.shape) for x in likes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bias, sinks, words, numbers, mask, scale, softcap = inputs
    ctx.save_for_backward(query, key, value, bias, sinks, *output, *mask)
    ctx.rest = (words, numbers, scale, softcap)
    ctx.mark_non_differentiable(output[1])


def _give_back(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    words, numbers, scale, softcap = ctx.rest
    bias_too = ctx.needs_input_grad[3]
    found = _backward(grad_out, *tensors[:7], words, numbers, tensors[7:], scale, softcap, bias_too)
    bias, sinks = found[3] if bias_too else None, None if tensors[4] is None else found[4]
    # torch takes a list without numbers for one without tensors, and wants a list back
    none: list[None] | None = None if numbers else []
    return (*found[:3], bias, sinks, None, none, [None] * len(tensors[7:]), None, None)


_forward.register_autograd(_give_back, setup_context=_keep)
