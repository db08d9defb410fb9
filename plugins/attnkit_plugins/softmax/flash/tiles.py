"""Softmax attention in tiles: an online softmax forward, recomputed tiles backward.

No L x S tensor exists at any time. For each tile of queries the keys within reach pass by, tile
by tile, while three running numbers per row are kept: the largest logit, the sum of exponentials
under it, and the weighted sum of values (Dao et al. 2022, algorithm 1). Backward needs only the
row's logsumexp to recompute any tile of probabilities (algorithm 4 there).

Query heads that share a key/value head are stacked as rows of one matrix, so no key is repeated.
Everything runs in float32 (float64 for float64): half products are as exact as float32 ones only
where their sums are kept in float32, which a CPU does not offer, and many CPUs crawl in them.
Logarithms are to base 2: on a CPU torch's exp2 takes a fifth of the time of its exp.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from attnkit.masks.constructors import Sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attnkit.masks.constructors import Mask

    Span = tuple[int, int]

# measured in float32 on one AVX-512 core with L 512 and 2048, 2 and 8 heads
TILE_ROWS = 128
TILE_ELEMENTS = 1 << 18
LOG2_E = math.log2(math.e)


class Rules(NamedTuple):
    """What is not a tensor."""

    mask: Mask
    scale: float
    softcap: float | None


class Kept(NamedTuple):
    """What `backward` needs: what `forward` took, and what it returned."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    sinks: Tensor | None
    out: Tensor
    logsumexp: Tensor


class Gradients(NamedTuple):
    """One for each tensor that was given; None for what was not."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    sinks: Tensor | None


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    rules: Rules,
) -> tuple[Tensor, Tensor]:
    """Return the outputs, (B, H, L, Ev), and each row's logsumexp to base 2, (B, H, L, 1)."""
    call = _Call(query, key, value, bias, rules)
    out = query.new_empty(*query.shape[:3], value.shape[3])
    logsumexp = query.new_empty((*query.shape[:3], 1), dtype=call.wide)
    for rows in call.row_tiles():
        at = slice(*rows)
        out[:, :, at], logsumexp[:, :, at] = _attend_rows(call, rows, sinks)
    return out, logsumexp


def backward(grad_out: Tensor, kept: Kept, rules: Rules, bias_too: bool) -> Gradients:
    """Return the gradients of the tensors that `forward` took, from what it returned.

    A bias that needs none (``bias_too`` is False) costs no sums and gets None.
    """
    query, key, value, bias, sinks, out, logsumexp = kept
    call = _Call(query, key, value, bias, rules)
    # the share of each row that the softmax's normalisation takes back, (B, H, L, 1)
    taken_back = (grad_out.to(call.wide) * out).sum(-1, keepdim=True)
    grad_query = torch.zeros_like(query, memory_format=torch.contiguous_format)
    grad_key, grad_value = torch.zeros_like(call.keys), torch.zeros_like(call.values)
    grad_bias = None
    if call.bias is not None and bias_too:
        grad_bias = call.bias.new_zeros(call.bias.shape, dtype=call.wide)
    for rows in call.row_tiles():
        at = slice(*rows)
        queries, grad_rows = call.fold(query[:, :, at]), call.fold(grad_out[:, :, at])
        grad_queries = torch.zeros_like(queries)  # (B Hkv, G rows, E)
        for columns in call.column_tiles(rows):
            to = slice(*columns)
            logits, slope = call.logits(queries, rows, columns)
            p = logits.sub_(logsumexp[:, :, at]).exp2_()  # (B, H, rows, columns)
            grad_value[:, to].baddbmm_(call.fold(p).mT, grad_rows)
            grad_p = call.product("grad", grad_rows, call.values[:, to].mT, rows)
            grad_logits = grad_p.sub_(taken_back[:, :, at]).mul_(p)
            # 0 * inf: hidden values may be too large to multiply
            call.hide(grad_logits, rows, columns, 0.0)
            if grad_bias is not None:
                part = _cut(grad_bias, rows, columns)
                part += grad_logits.sum_to_size(part.shape)
            if slope is not None:
                grad_logits.mul_(slope)
            folded = call.fold(grad_logits)  # (B Hkv, G rows, columns)
            grad_queries.baddbmm_(folded, call.keys[:, to], alpha=call.scale)
            grad_key[:, to].baddbmm_(folded.mT, queries, alpha=call.scale)
        grad_query[:, :, at] = call.unfold(grad_queries, rows)
    return Gradients(
        grad_query,
        grad_key.view(key.shape).to(key.dtype),
        grad_value.view(value.shape).to(value.dtype),
        None if bias is None or grad_bias is None else grad_bias.view_as(bias).to(bias.dtype),
        _grad_sinks(sinks, logsumexp, taken_back),
    )


def _attend_rows(call: _Call, rows: Span, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the outputs (B, H, rows, Ev) and logsumexp (B, H, rows, 1) of one tile of queries."""
    queries = call.fold(call.query[:, :, slice(*rows)])  # (B Hkv, G rows, E)
    peak = call.values.new_full((*call.sizes[:2], rows[1] - rows[0], 1), float("-inf"))
    if sinks is not None:
        peak = peak.maximum(LOG2_E * sinks.to(call.wide)[:, None, None])
    total = (peak > float("-inf")).to(call.wide)
    summed = queries.new_zeros(*queries.shape[:2], call.values.shape[2])  # (B Hkv, G rows, Ev)
    for columns in call.column_tiles(rows):
        logits, _ = call.logits(queries, rows, columns)
        higher = torch.maximum(peak, logits.amax(-1, keepdim=True))
        # a row that has seen nothing yet is measured from 0: -inf - -inf would be NaN
        base = higher.masked_fill(higher == float("-inf"), 0.0)
        shrink = (peak - base).exp2_()
        p = logits.sub_(base).exp2_()  # (B, H, rows, columns)
        total = total.mul_(shrink).add_(p.sum(-1, keepdim=True))
        summed.mul_(call.fold(shrink)).baddbmm_(call.fold(p), call.values[:, slice(*columns)])
        peak = higher
    empty = total == 0
    total.masked_fill_(empty, 1.0)
    return call.unfold(summed, rows).div_(total), (peak + total.log2()).masked_fill_(empty, 0.0)


def _grad_sinks(sinks: Tensor | None, logsumexp: Tensor, taken_back: Tensor) -> Tensor | None:
    if sinks is None:
        return None
    sink = LOG2_E * sinks.to(logsumexp.dtype)[:, None, None]
    share = (sink - logsumexp).exp2_()  # (B, H, L, 1)
    return share.mul_(taken_back).sum((0, 2, 3)).neg_().to(sinks.dtype)


class _Call:
    """The tensors of one call, by tiles; G query heads of a key/value head are folded as rows."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, rules: Rules
    ) -> None:
        batch, heads, length, _ = query.shape
        self.sizes = Sizes(batch, heads, length, key.shape[2])
        self.mask, self.scale, self.softcap = rules
        self.wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.query = query
        self.keys = key.to(self.wide).flatten(0, 1)  # (B Hkv, S, E)
        self.values = value.to(self.wide).flatten(0, 1)  # (B Hkv, S, Ev)
        # (L, S) -> (1, 1, L, S)
        self.bias = None if bias is None else bias[(None,) * (4 - bias.dim())]
        self.buffers: dict[str, Tensor] = {}

    def fold(self, tile: Tensor) -> Tensor:
        """(B, H, rows, X) -> (B Hkv, G rows, X), in the dtype of the arithmetic."""
        return tile.to(self.wide).reshape(self.keys.shape[0], -1, tile.shape[3])

    def unfold(self, tile: Tensor, rows: Span) -> Tensor:
        """(B Hkv, G rows, X) -> (B, H, rows, X)."""
        return tile.view(*self.sizes[:2], rows[1] - rows[0], tile.shape[2])

    def row_tiles(self) -> Iterator[Span]:
        """Cut the queries."""
        return _cuts(0, self.sizes.queries, TILE_ROWS)

    def column_tiles(self, rows: Span) -> Iterator[Span]:
        """Cut the keys that these queries may reach."""
        low, high = self.mask.reach(*rows, self.sizes)
        width = TILE_ELEMENTS // (self.sizes.batch * self.sizes.heads * (rows[1] - rows[0]))
        return _cuts(low, high, max(width, 128))

    def product(
        self, buffer: str, left: Tensor, right: Tensor, rows: Span, alpha: float = 1.0
    ) -> Tensor:
        """Return ``alpha * left @ right``, (B, H, rows, X), written over the buffer's last use.

        A fresh tensor of this size is a fresh page of memory: to fault it in costs more than
        the product.
        """
        shape = (*left.shape[:2], right.shape[2])
        if self.buffers.get(buffer, left[:0]).numel() < math.prod(shape):
            self.buffers[buffer] = left.new_empty(math.prod(shape))
        out = self.buffers[buffer][: math.prod(shape)].view(shape)
        return self.unfold(out.baddbmm_(left, right, beta=0, alpha=alpha), rows)

    def logits(self, queries: Tensor, rows: Span, columns: Span) -> tuple[Tensor, Tensor | None]:
        """Return a tile of logits to base 2, (B, H, rows, columns), and the cap's slope."""
        keys = self.keys[:, slice(*columns)].mT
        slope = None
        if self.softcap is None:
            logits = self.product("logits", queries, keys, rows, self.scale * LOG2_E)
        else:
            bent = self.product("logits", queries, keys, rows, self.scale / self.softcap)
            # inf - inf: hidden keys may be too large to multiply
            self.hide(bent, rows, columns, 0.0)
            bent.tanh_()
            slope = 1 - bent * bent
            logits = bent.mul_(self.softcap * LOG2_E)
        if self.bias is not None:
            logits.add_(_cut(self.bias, rows, columns).to(self.wide), alpha=LOG2_E)
        self.hide(logits, rows, columns, float("-inf"))
        return logits, slope

    def hide(self, tile: Tensor, rows: Span, columns: Span, fill: float) -> None:
        """Overwrite what the mask hides."""
        if not self.sees_all(rows, columns):
            seen = self.mask.tile(rows, columns, self.sizes, tile.device)
            tile.masked_fill_(~seen, fill)

    def sees_all(self, rows: Span, columns: Span) -> bool:
        """Say whether the mask is known to hide nothing here, without evaluating it."""
        if self.mask.parts - {"window"}:
            return False
        offset = self.sizes.keys - self.sizes.queries
        ahead = columns[1] - 1 - (rows[0] + offset)  # the last key, seen from the first query
        behind = rows[1] - 1 + offset - columns[0]  # the first key, seen from the last query
        in_window = self.mask.window is None or max(ahead, behind) < self.mask.window
        return in_window and (ahead <= 0 or not self.mask.is_causal)


def _cut(bias: Tensor, rows: Span, columns: Span) -> Tensor:
    """Return a view of the part of a broadcastable (B, H, L, S) that a tile reads."""
    at = slice(*rows) if bias.shape[2] != 1 else slice(None)
    to = slice(*columns) if bias.shape[3] != 1 else slice(None)
    return bias[:, :, at, to]


def _cuts(low: int, high: int, step: int) -> Iterator[Span]:
    return ((start, min(start + step, high)) for start in range(low, high, step))
