"""Softmax attention in tiles: an online softmax forward, recomputed tiles backward.

No L x S tensor exists at any time. For each tile of queries the keys within reach pass by, tile
by tile, while three running numbers per row are kept: the largest logit, the sum of exponentials
under it, and the weighted sum of values (Dao et al. 2022, algorithm 1). Backward needs only the
row's logsumexp to recompute any tile of probabilities (algorithm 4 there).

`attend` is the whole of it, differentiable; `forward` and `backward` are its halves, for an
operator of your own. `Rules` say the mask and how large a tile is:

    def attend(query, key, value, *, mask, bias, scale, softcap, sinks, dropout_p):
        return tiles.attend(query, key, value, bias, sinks, Rules(mask, scale, softcap, rows=128))

Query heads that share a key/value head are stacked as rows of one matrix, so no key is repeated.
Everything runs in float32 (float64 for float64): half products are as exact as float32 ones only
where their sums are kept in float32, which a CPU does not offer, and many CPUs crawl in them.
Logarithms are to base 2: on a CPU torch's exp2 takes a fifth of the time of its exp.

Source: Dao et al. 2022, https://arxiv.org/abs/2205.14135.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnkit.kernels.onednn import fast_products
from attnkit.masks.constructors import Mask, Sizes

if TYPE_CHECKING:
    Span = tuple[int, int]

LOG2_E = math.log2(math.e)


class Rules(NamedTuple):
    """What is not a tensor.

    Attributes:
        mask: Of all keys; it has been checked against the sizes of the call.
        scale: Multiplies the logits.
        softcap: The logits become ``softcap * tanh(logits / softcap)``; None caps nothing.
        rows: Queries per tile.
        elements: Logits per tile, of all samples and heads together; a tile has at least 128 keys
            all the same. None takes all keys in reach of a tile's queries at once.
    """

    mask: Mask
    scale: float
    softcap: float | None
    rows: int
    elements: int | None = None


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


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    rules: Rules,
) -> Tensor:
    """Attend tile by tile.

    Args:
        query: (B, H, L, E).
        key: (B, Hkv, S, E).
        value: (B, Hkv, S, Ev).
        bias: Broadcastable to (B, H, L, S), or None.
        sinks: (H,), or None.
        rules: What is not a tensor.

    Returns:
        (B, H, L, Ev) in the dtype of ``query``; a row that sees nothing is 0.

    Note:
        O(L S) time, less what the mask's `reach` leaves out; O(L + S) extra memory, forward and
        backward. Differentiable once. ``torch.compile`` unrolls the loop over tiles.
    """
    # torch gives apply no types
    with fast_products():
        out: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
            query, key, value, bias, sinks, rules
        )
    return out


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        out, logsumexp = forward(*given)
        *tensors, ctx.rules = given
        ctx.save_for_backward(*tensors, out, logsumexp)
        return out

    @staticmethod
    @once_differentiable
    # the decorator has types that hide the signature
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        with fast_products():
            kept = Kept(*ctx.saved_tensors)
            return (*backward(grad_out, kept, ctx.rules, ctx.needs_input_grad[3]), None)


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
        grad_queries = None
        for columns in call.column_tiles(rows):
            to = slice(*columns)
            logits, slope = call.logits(queries, rows, columns)
            p = logits.sub_(logsumexp[:, :, at]).exp2_()  # (B, H, rows, columns)
            grad_value[:, to].baddbmm_(call.fold(p).mT, grad_rows)
            grad_p = call.unfold(call.product("grad", grad_rows, call.values[:, to].mT), rows)
            grad_logits = grad_p.sub_(taken_back[:, :, at]).mul_(p)
            # 0 * inf: hidden values may be too large to multiply
            call.hide(grad_logits, rows, columns, 0.0)
            if grad_bias is not None:
                part = _cut(grad_bias, rows, columns)
                part += grad_logits.sum_to_size(part.shape)
            if slope is not None:
                grad_logits.mul_(slope)
            folded = call.fold(grad_logits)  # (B Hkv, G rows, columns)
            if grad_queries is None:  # (B Hkv, G rows, E)
                grad_queries = call.product("out", folded, call.keys[:, to], call.scale)
            else:
                grad_queries.baddbmm_(folded, call.keys[:, to], alpha=call.scale)
            grad_key[:, to].baddbmm_(folded.mT, queries, alpha=call.scale)
        if grad_queries is not None:
            grad_query[:, :, at] = call.unfold(grad_queries, rows)
    return Gradients(
        grad_query,
        grad_key.view(key.shape).to(key.dtype),
        grad_value.view(value.shape).to(value.dtype),
        None if bias is None or grad_bias is None else grad_bias.view_as(bias).to(bias.dtype),
        _grad_sinks(sinks, logsumexp, taken_back),
    )


def _attend_rows(
    call: _Call, rows: Span, sinks: Tensor | None
) -> tuple[Tensor | float, Tensor | float]:
    """Return the outputs (B, H, rows, Ev) and logsumexp (B, H, rows, 1) of one tile of queries."""
    queries = call.fold(call.query[:, :, slice(*rows)])  # (B Hkv, G rows, E)
    peak = base = total = summed = None
    if sinks is not None:
        peak = LOG2_E * sinks.to(call.wide)[:, None, None]  # (H, 1, 1)
        total = (peak > float("-inf")).to(call.wide)
    for columns in call.column_tiles(rows):
        keys = slice(*columns)
        logits, _ = call.logits(queries, rows, columns)
        highest = logits.amax(-1, keepdim=True)  # (B, H, rows, 1)
        if peak is not None:
            highest = torch.maximum(highest, peak)
        # a row that has seen nothing yet is measured from 0: -inf - -inf would be NaN
        base = highest.masked_fill(highest == float("-inf"), 0.0)
        p = logits.sub_(base).exp2_()  # (B, H, rows, columns)
        added = p.sum(-1, keepdim=True)
        if peak is None or total is None:
            total = added
        else:
            shrink = (peak - base).exp2_()
            total = added.add_(shrink * total)
            if summed is not None:
                summed.mul_(call.fold(shrink))
        if summed is None:  # (B Hkv, G rows, Ev)
            summed = call.product("out", call.fold(p), call.values[:, keys])
        else:
            summed.baddbmm_(call.fold(p), call.values[:, keys])
        peak = highest
    if summed is None or base is None or total is None:
        # out of reach of all keys: these rows see their sink alone
        return 0.0, 0.0 if peak is None else peak.masked_fill(peak == float("-inf"), 0.0)
    total.masked_fill_(total == 0, 1.0)
    return call.unfold(summed, rows).div_(total), base + total.log2()


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
        self.mask, self.scale, self.softcap, self.rows, self.elements = rules
        self.wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.query = query
        self.keys = key.to(self.wide).flatten(0, 1)  # (B Hkv, S, E)
        self.values = value.to(self.wide).flatten(0, 1)  # (B Hkv, S, Ev)
        # (L, S) -> (1, 1, L, S)
        self.bias = None if bias is None else bias[(None,) * (4 - bias.dim())]
        self.buffers: dict[str, Tensor] = {}
        self.hidden: dict[tuple[int, int, int], Tensor] = {}

    def fold(self, tile: Tensor) -> Tensor:
        """(B, H, rows, X) -> (B Hkv, G rows, X), in the dtype of the arithmetic."""
        return tile.to(self.wide).reshape(self.keys.shape[0], -1, tile.shape[3])

    def unfold(self, tile: Tensor, rows: Span) -> Tensor:
        """(B Hkv, G rows, X) -> (B, H, rows, X)."""
        return tile.view(*self.sizes[:2], rows[1] - rows[0], tile.shape[2])

    def row_tiles(self) -> Iterator[Span]:
        """Cut the queries."""
        return _cuts(0, self.sizes.queries, self.rows)

    def column_tiles(self, rows: Span) -> Iterator[Span]:
        """Cut the keys that these queries may reach."""
        low, high = self.mask.reach(*rows, self.sizes)
        width = max(1, high - low)
        if self.elements is not None:
            here = self.sizes.batch * self.sizes.heads * (rows[1] - rows[0])
            width = max(self.elements // here, 128)
        return _cuts(low, high, width)

    def product(self, buffer: str, left: Tensor, right: Tensor, alpha: float = 1.0) -> Tensor:
        """Return ``alpha * left @ right``, (B Hkv, G rows, X), over the buffer's last use.

        A fresh tensor of this size is a fresh page of memory: to fault it in costs more than
        the product.
        """
        shape = (*left.shape[:2], right.shape[2])
        if self.buffers.get(buffer, left[:0]).numel() < math.prod(shape):
            self.buffers[buffer] = left.new_empty(math.prod(shape))
        out = self.buffers[buffer][: math.prod(shape)].view(shape)
        return out.baddbmm_(left, right, beta=0, alpha=alpha)

    def logits(self, queries: Tensor, rows: Span, columns: Span) -> tuple[Tensor, Tensor | None]:
        """Return a tile of logits to base 2, (B, H, rows, columns), and the cap's slope."""
        keys = self.keys[:, slice(*columns)].mT
        factor = self.scale * LOG2_E if self.softcap is None else self.scale / self.softcap
        logits = self.unfold(self.product("logits", queries, keys, factor), rows)
        slope = None
        if self.softcap is not None:
            # inf - inf: hidden keys may be too large to multiply
            self.hide(logits, rows, columns, 0.0)
            logits.tanh_()
            slope = 1 - logits * logits
            logits.mul_(self.softcap * LOG2_E)
        if self.bias is not None:
            logits.add_(_cut(self.bias, rows, columns).to(self.wide), alpha=LOG2_E)
        self.hide(logits, rows, columns, float("-inf"))
        return logits, slope

    def hide(self, tile: Tensor, rows: Span, columns: Span, fill: float) -> None:
        """Overwrite what the mask hides."""
        for low, high in self._edges(rows, columns):
            place = low - rows[0], high - low, rows[1] - rows[0]
            hidden = self.hidden.get(place)
            if hidden is None:
                hidden = ~self.mask.tile(rows, (low, high), self.sizes, tile.device)
                if not self.mask.parts - {"window"}:
                    # the same wherever queries and keys lie like this
                    self.hidden[place] = hidden
            tile[..., low - columns[0] : high - columns[0]].masked_fill_(hidden, fill)

    def _edges(self, rows: Span, columns: Span) -> Iterator[Span]:
        """Cut out the keys that all rows see, where the mask tells without being evaluated."""
        start, stop = columns
        low, high = stop, stop
        if not self.mask.parts - {"window"}:
            first, last = (row + self.sizes.keys - self.sizes.queries for row in rows)
            ahead = 1 if self.mask.is_causal else self.mask.window
            if ahead is not None:
                high = max(start, min(stop, first + ahead))
            behind = start if self.mask.window is None else last - self.mask.window
            low = max(start, min(high, behind))
        if start < low:
            yield start, low
        if high < stop:
            yield high, stop


def _cut(bias: Tensor, rows: Span, columns: Span) -> Tensor:
    """Return a view of the part of a broadcastable (B, H, L, S) that a tile reads."""
    at = slice(*rows) if bias.shape[2] != 1 else slice(None)
    to = slice(*columns) if bias.shape[3] != 1 else slice(None)
    return bias[:, :, at, to]


def _cuts(low: int, high: int, step: int) -> Iterator[Span]:
    return ((start, min(start + step, high)) for start in range(low, high, step))
