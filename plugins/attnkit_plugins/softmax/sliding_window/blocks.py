"""Sliding-window attention by blocks of queries, each against only the keys in its reach.

A block of R queries reaches at most R + w - 1 keys (R + 2 w - 2 where later keys are visible), a
slice of the keys. So a block is one product, one softmax and another product, and its logits are
overwritten by the next block's. Backward recomputes them from the rows' logsumexp.

Query heads that share a key/value head are stacked as rows of one matrix, so no key is repeated.
Everything runs in float32 (float64 for float64), and with logarithms to base 2: on a CPU torch's
exp2 takes a fifth of the time of its exp.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnkit.kernels.onednn import fast_products
from attnkit.masks.constructors import Sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attnkit.masks.constructors import Mask

    Span = tuple[int, int]

# measured with w from 64 to 1024: fewer rows cost calls, more rows cost keys outside the window
BLOCK_ROWS = 64
LOG2_E = math.log2(math.e)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """Attend block by block; see `attnkit.interface.SoftmaxFunction`.

    Note:
        O(L w) time; O(L + S + w) extra memory, forward and backward.
    """
    assert dropout_p == 0.0
    # torch gives apply no types
    with fast_products():
        out: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
            query, key, value, bias, sinks, _Rules(mask, scale, softcap)
        )
    return out


class _Rules(NamedTuple):
    """What is not a tensor."""

    mask: Mask
    scale: float
    softcap: float | None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        sinks: Tensor | None,
        rules: _Rules,
    ) -> Tensor:
        call = _Call(query, key, value, bias, rules)
        out = query.new_zeros(*query.shape[:3], value.shape[3])  # (B, H, L, Ev)
        logsumexp = query.new_zeros((*query.shape[:3], 1), dtype=call.wide)  # to base 2
        sink = None
        if sinks is not None:
            sink = LOG2_E * sinks.to(call.wide)[:, None, None]  # (H, 1, 1)
            # rows out of reach of all keys see their sink alone
            logsumexp += sink
        for rows, columns in call.blocks():
            at = slice(*rows)
            out[:, :, at], logsumexp[:, :, at] = _attend_block(call, rows, columns, sink)
        ctx.save_for_backward(query, key, value, bias, sinks, out, logsumexp)
        ctx.rules = rules
        return out

    @staticmethod
    @once_differentiable
    # the decorator has types that hide the signature
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        with fast_products():
            return _gradients(ctx, grad_out)


def _gradients(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of what `_Attend.forward` takes."""
    query, key, value, bias, sinks, out, logsumexp = ctx.saved_tensors
    call = _Call(query, key, value, bias, ctx.rules)
    # the share of each row that the softmax's normalisation takes back, (B, H, L, 1)
    taken_back = (grad_out.to(call.wide) * out).sum(-1, keepdim=True)
    grad_query = torch.zeros_like(query, memory_format=torch.contiguous_format)
    grad_key, grad_value = torch.zeros_like(call.keys), torch.zeros_like(call.values)
    grad_bias = None
    if call.bias is not None and ctx.needs_input_grad[3]:
        grad_bias = call.bias.new_zeros(call.bias.shape, dtype=call.wide)
    for rows, columns in call.blocks():
        at, to = slice(*rows), slice(*columns)
        logits, slope = call.logits(rows, columns)
        p = logits.sub_(logsumexp[:, :, at]).exp2_()  # (B, H, rows, columns)
        grad_rows = call.fold(grad_out[:, :, at])  # (B Hkv, G rows, Ev)
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
        grad_query[:, :, at] = call.unfold(folded @ call.keys[:, to], rows).mul_(call.scale)
        grad_key[:, to].baddbmm_(folded.mT, call.query_rows(rows), alpha=call.scale)
    return (
        grad_query,
        grad_key.view(key.shape).to(key.dtype),
        grad_value.view(value.shape).to(value.dtype),
        None if bias is None or grad_bias is None else grad_bias.view_as(bias).to(bias.dtype),
        _grad_sinks(sinks, logsumexp, taken_back),
        None,
    )


def _attend_block(
    call: _Call, rows: Span, columns: Span, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the outputs (B, H, rows, Ev) and logsumexp (B, H, rows, 1) of one block."""
    logits, _ = call.logits(rows, columns)
    peak = logits.amax(-1, keepdim=True)  # (B, H, rows, 1)
    if sink is not None:
        peak = torch.maximum(peak, sink)
    # a row that sees nothing is measured from 0: -inf - -inf would be NaN
    base = peak.masked_fill_(peak == float("-inf"), 0.0)
    p = logits.sub_(base).exp2_()
    total = p.sum(-1, keepdim=True)
    if sink is not None:
        total += (sink - base).exp2_()
    total.masked_fill_(total == 0, 1.0)
    weighted = call.product("out", call.fold(p), call.values[:, slice(*columns)], rows)
    return weighted.div_(total), base + total.log2()


def _grad_sinks(sinks: Tensor | None, logsumexp: Tensor, taken_back: Tensor) -> Tensor | None:
    if sinks is None:
        return None
    sink = LOG2_E * sinks.to(logsumexp.dtype)[:, None, None]
    share = (sink - logsumexp).exp2_()  # (B, H, L, 1)
    return share.mul_(taken_back).sum((0, 2, 3)).neg_().to(sinks.dtype)


class _Call:
    """The tensors of one call, by blocks; G query heads of a key/value head are folded as rows."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, rules: _Rules
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
        self.hidden: dict[tuple[int, int, int], Tensor] = {}

    def fold(self, tile: Tensor) -> Tensor:
        """(B, H, rows, X) -> (B Hkv, G rows, X), in the dtype of the arithmetic."""
        return tile.to(self.wide).reshape(self.keys.shape[0], -1, tile.shape[3])

    def unfold(self, tile: Tensor, rows: Span) -> Tensor:
        """(B Hkv, G rows, X) -> (B, H, rows, X)."""
        return tile.view(*self.sizes[:2], rows[1] - rows[0], tile.shape[2])

    def query_rows(self, rows: Span) -> Tensor:
        """Return a block of queries, (B Hkv, G rows, E)."""
        return self.fold(self.query[:, :, slice(*rows)])

    def blocks(self) -> Iterator[tuple[Span, Span]]:
        """Cut the queries, and for each block bound the keys; leave out blocks that see none."""
        for start in range(0, self.sizes.queries, BLOCK_ROWS):
            rows = start, min(start + BLOCK_ROWS, self.sizes.queries)
            low, high = self.mask.reach(*rows, self.sizes)
            if low < high:
                yield rows, (low, high)

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

    def logits(self, rows: Span, columns: Span) -> tuple[Tensor, Tensor | None]:
        """Return the logits of a block to base 2, (B, H, rows, columns), and the cap's slope."""
        query, keys = self.query_rows(rows), self.keys[:, slice(*columns)].mT
        slope = None
        if self.softcap is None:
            logits = self.product("logits", query, keys, rows, self.scale * LOG2_E)
        else:
            bent = self.product("logits", query, keys, rows, self.scale / self.softcap)
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
        low, high = columns[1], columns[1]
        if not self.mask.parts - {"window"} and self.mask.window is not None:
            first, last = (row + self.sizes.keys - self.sizes.queries for row in rows)
            ahead = 1 if self.mask.is_causal else self.mask.window
            high = max(columns[0], min(columns[1], first + ahead))
            low = max(columns[0], min(high, last - self.mask.window))
        if columns[0] < low:
            yield columns[0], low
        if high < columns[1]:
            yield high, columns[1]


def _cut(bias: Tensor, rows: Span, columns: Span) -> Tensor:
    """Return a view of the part of a broadcastable (B, H, L, S) that a block reads."""
    at = slice(*rows) if bias.shape[2] != 1 else slice(None)
    to = slice(*columns) if bias.shape[3] != 1 else slice(None)
    return bias[:, :, at, to]
