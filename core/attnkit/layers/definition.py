"""The definition of softmax layers in float64, and the steps that definitions of layers share.

A definition is the whole layer as a plain function; see `attnkit.interface.LayerDefinition`. The
layer is measured against it, so it shares no code with it and is written to be checked by eye.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnkit.masks.constructors import Mask, Sizes

if TYPE_CHECKING:
    from attnkit.layers.softmax_config import SoftmaxConfig

Weights = Mapping[str, Tensor]


def project(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Return W x + b, (B, L, outputs), of the ``nn.Linear`` of this name; b where it has one."""
    y = torch.einsum("...d,ed->...e", x, weights[f"{name}.weight"])
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * width) -> (B, heads, L, width): head h has the h-th part of all channels."""
    return torch.stack(x.tensor_split(heads, -1), 1)


def side_by_side(out: Tensor) -> Tensor:
    """(B, H, L, width) -> (B, L, H * width), the inverse of `heads_of`."""
    return torch.cat(out.unbind(1), -1)


def turned(x: Tensor, base: float) -> Tensor:
    """Turn channels c and c + E/2 of x, (B, H, L, E), together by position * base ** (-2 c / E)."""
    length, width = x.shape[2:]
    speed = base ** (-2 * torch.arange(width // 2, device=x.device).double() / width)  # (E / 2,)
    angle = torch.arange(length, device=x.device)[:, None] * speed  # (L, E / 2)
    real, imaginary = x[..., : width // 2], x[..., width // 2 :]
    pair = torch.complex(real, imaginary) * torch.exp(1j * angle)
    return torch.cat((pair.real, pair.imag), -1)


def softmax(
    weights: Weights,
    x: Tensor,
    *,
    config: SoftmaxConfig,
    mask: Mask,
    context: Tensor | None = None,
) -> Tensor:
    """Define `attnkit.layers.softmax.SoftmaxLayer`; see `attnkit.interface.LayerDefinition`."""
    source = x if context is None else context
    sizes = Sizes(len(x), config.num_heads, x.shape[1], source.shape[1])
    shared = config.num_heads // config.kv_heads
    query = heads_of(project(weights, "q_proj", x), config.num_heads)  # (B, H, L, E)
    key = heads_of(project(weights, "k_proj", source), config.kv_heads)  # (B, Hkv, S, E)
    value = heads_of(project(weights, "v_proj", source), config.kv_heads)  # (B, Hkv, S, Ev)
    if config.rotary_base is not None:
        query, key = turned(query, config.rotary_base), turned(key, config.rotary_base)
    # query head h reads key/value head h // shared
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)

    logits = torch.einsum("bhle,bhse->bhls", query, key)
    logits = logits * (query.shape[-1] ** -0.5 if config.scale is None else config.scale)
    if config.softcap is not None:
        logits = config.softcap * torch.tanh(logits / config.softcap)
    seen = mask.to_bool(sizes, x.device).expand(*sizes)
    at = torch.arange(max(sizes.queries, sizes.keys), device=x.device)
    behind = at[: sizes.queries, None] - at[: sizes.keys]  # (L, S)
    if config.is_causal:
        seen = seen & (behind >= 0)
    if config.window_size is not None:
        seen = seen & (behind.abs() < config.window_size)

    sink = weights["sinks"] if config.sinks else x.new_full((sizes.heads,), float("-inf"))
    logits = torch.where(seen, logits, float("-inf"))
    logits = torch.cat((logits, sink[:, None, None].expand(*logits.shape[:3], 1)), -1)
    blind = (logits == float("-inf")).all(-1, keepdim=True)  # sees no key, gives 0
    share = torch.where(blind, 0.0, torch.where(blind, 0.0, logits).softmax(-1))[..., :-1]
    out = torch.einsum("bhls,bhsv->bhlv", share, value)
    return project(weights, "out_proj", side_by_side(out))


def visible(mask: Mask, x: Tensor) -> Tensor:
    """Return which tokens each token of x, (B, L, D), sees of a causal layer, (B, L, L)."""
    batch, length, _ = x.shape
    seen = mask.to_bool(Sizes(batch, 1, length, length), x.device)[:, 0].expand(batch, -1, -1)
    return seen.tril()


def unpadded(mask: Mask, x: Tensor) -> Tensor:
    """Return which tokens of x, (B, L, D), no padding hides, (B, L)."""
    batch, length, _ = x.shape
    keep = torch.ones(batch, length, dtype=torch.bool, device=x.device)
    for part in mask.conjuncts():
        if part.parts == {"padding"}:
            keep = keep & part.to_bool(Sizes(batch, 1, 1, length), x.device)[:, 0, 0]
    return keep
