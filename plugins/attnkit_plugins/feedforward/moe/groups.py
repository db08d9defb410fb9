"""All experts in two grouped matrix products, over slots sorted by expert. Static shapes only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear, silu

from attnkit.errors import UnsupportedError

if TYPE_CHECKING:
    from attnkit_plugins.feedforward.moe.weights import ExpertWeights


def feedforward(x: Tensor, experts: Tensor, gates: Tensor, *, weights: ExpertWeights) -> Tensor:
    """Sort the slots by expert and multiply group by group; see `feedforward.moe`."""
    count, (tokens, top_k) = len(weights.gate_up), experts.shape
    used = (experts >= 0).reshape(-1)  # (T * k,)
    # an unused slot rides along with the last expert, as a row of zeros with a share of zero:
    # no shape depends on the routing, and no row is left unwritten
    owner = torch.where(used, experts.reshape(-1), count - 1)
    owner, order = owner.sort(stable=True)  # (T * k,)
    stops = torch.searchsorted(owner, torch.arange(count, device=x.device), right=True)  # (E,)
    visible = used.index_select(0, order)[:, None]  # (T * k, 1)
    rows = torch.where(visible, x.index_select(0, order // top_k), x.new_zeros(()))  # (T * k, D)
    gate, up = _by_group(rows, weights.gate_up, stops).chunk(2, dim=-1)  # (T * k, F) each
    output = _by_group(silu(gate) * up, weights.down, stops)  # (T * k, D)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    # summed slot by slot, not scattered: the sum has one order on every device
    terms = output.index_select(0, place).view(tokens, top_k, -1).to(gates.dtype)  # (T, k, D)
    return torch.bmm(gates[:, None], terms)[:, 0].to(x.dtype)  # (T, D)


def _by_group(rows: Tensor, weight: Tensor, stops: Tensor) -> Tensor:
    """Multiply the rows up to ``stops[e]`` by weight[e]^T: (n, in), (E, out, in) to (n, out)."""
    if _takes(rows, weight):
        return grouped_mm(rows, weight.transpose(1, 2), offs=stops.to(torch.int32))
    if torch.compiler.is_compiling():
        raise UnsupportedError(
            "implementation 'grouped' compiles only in bfloat16 with embed_dim and hidden_dim in "
            f"multiples of 8, got weights {tuple(weight.shape)} "
            f"{str(weight.dtype).removeprefix('torch.')}; take implementation='dense'"
        )
    counts = stops.diff(prepend=stops.new_zeros(1)).tolist()
    parts = zip(torch.split(rows, counts), weight.unbind(), strict=True)
    return torch.cat([linear(part, matrix) for part, matrix in parts])


def _takes(rows: Tensor, weight: Tensor) -> bool:
    """Say whether grouped_mm takes these: no float64, rows of whole 16-byte pieces."""
    aligned = all(size * weight.element_size() % 16 == 0 for size in weight.shape[1:])
    # torch 2.13 runs float32 and float16 too, but traces bfloat16 only
    traced = torch.compiler.is_compiling() and rows.dtype != torch.bfloat16
    return aligned and not traced and rows.dtype != torch.float64
