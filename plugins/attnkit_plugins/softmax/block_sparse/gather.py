"""Block-sparse attention that touches only the blocks the map names.

Every (sample, head, block of queries) is a row of work with a number of visible key blocks. Rows
with equally many form one batch: their key and value blocks are gathered side by side, and the
batch is one product, one softmax and another product. So work and memory follow the number of
visible blocks, maps may differ by sample and head, and nothing is padded.

Blocks lie at absolute key positions; queries are shifted by S - L, so the first block of queries
may begin empty. The rest of the mask (causal, window, padding ...) is applied inside the blocks.
Everything runs in float32 (float64 for float64), and with logarithms to base 2: on a CPU torch's
exp2 takes a fifth of the time of its exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnkit.interface import SoftmaxRules
from attnkit.kernels.onednn import fast_products
from attnkit.kernels.tiles import LOG2_E
from attnkit.masks import Blocks, Mask, Sizes

# logits of one batch; measured: from 2 ** 17 to 2 ** 20 within 25 %
BATCH_ELEMENTS = 1 << 18


def attend(query: Tensor, key: Tensor, value: Tensor, **rules: Unpack[SoftmaxRules]) -> Tensor:
    """Attend to the visible blocks; see `attnkit.interface.SoftmaxFunction`.

    Note:
        Time grows with the number of visible blocks; O(L + S) extra memory. Reading the map
        synchronises with the device.
    """
    assert rules["bias"] is None
    assert rules["dropout_p"] == 0.0
    plan = _Plan(query, key, rules["mask"], rules["scale"], rules["softcap"])
    # torch gives apply no types
    with fast_products():
        out: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
            query, key, value, rules["sinks"], plan
        )
    return out


class _Batch(NamedTuple):
    """M rows of work with n visible key blocks each."""

    rows: Tensor  # (M,), places in (B, H, query blocks), flattened
    sources: Tensor  # (M, n), places in (B, Hkv, key blocks), flattened
    hidden: Tensor | None  # (M, block, n * block); None where nothing is hidden

    def hide(self, tile: Tensor, fill: float) -> Tensor:
        """Overwrite what the mask hides."""
        return tile if self.hidden is None else tile.masked_fill_(self.hidden, fill)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, plan: _Plan
    ) -> Tensor:
        queries = plan.query_blocks(query)
        keys, values = plan.key_blocks(key), plan.key_blocks(value)
        out = queries.new_zeros(*queries.shape[:2], values.shape[2])  # (rows, block, Ev)
        logsumexp = queries.new_zeros(*queries.shape[:2], 1)  # (rows, block, 1), to base 2
        row_sinks = None if sinks is None else plan.per_row(sinks)
        if row_sinks is not None:
            logsumexp += row_sinks
        for batch in plan.batches():
            logits, _ = plan.logits(queries, keys, batch)
            sink = None if row_sinks is None else row_sinks[batch.rows]  # (M, 1, 1)
            p, logsumexp[batch.rows] = _softmax(logits, sink)
            out[batch.rows] = p @ values[batch.sources].flatten(1, 2)
        ctx.save_for_backward(query, key, value, sinks, out, logsumexp)
        ctx.plan = plan
        return plan.unblock_queries(out).to(query.dtype)

    @staticmethod
    @once_differentiable
    # the decorator has types that hide the signature
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        # a backward pass under autocast would round the products, and not the sums
        with fast_products(), torch.autocast(grad_out.device.type, enabled=False):
            return _gradients(ctx, grad_out)


def _gradients(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of what `_Attend.forward` takes."""
    query, key, value, sinks, out, logsumexp = ctx.saved_tensors
    plan: _Plan = ctx.plan
    queries = plan.query_blocks(query)
    keys, values = plan.key_blocks(key), plan.key_blocks(value)
    grads = plan.query_blocks(grad_out)  # (rows, block, Ev)
    # the share of each row that the softmax's normalisation takes back
    taken_back = (grads * out).sum(-1, keepdim=True)  # (rows, block, 1)
    grad_queries = torch.zeros_like(queries)
    grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
    for batch in plan.batches():
        logits, slope = plan.logits(queries, keys, batch)
        p = logits.sub_(logsumexp[batch.rows]).exp2_()  # (M, block, n * block)
        grad_rows = grads[batch.rows]
        _add_blocks(grad_values, batch.sources, p.mT @ grad_rows)
        grad_p = grad_rows @ values[batch.sources].flatten(1, 2).mT
        # 0 * inf: hidden values may be too large to multiply
        grad_logits = batch.hide(p.mul_(grad_p.sub_(taken_back[batch.rows])), 0.0)
        if slope is not None:
            grad_logits = grad_logits.mul_(slope)
        grad_logits = grad_logits.mul_(plan.scale)
        grad_queries[batch.rows] = grad_logits @ keys[batch.sources].flatten(1, 2)
        _add_blocks(grad_keys, batch.sources, grad_logits.mT @ queries[batch.rows])
    grad_sinks = None
    if sinks is not None:
        share = (plan.per_row(sinks) - logsumexp).exp2_() * taken_back
        by_head = share.view(plan.sizes.batch, plan.sizes.heads, -1).sum((0, 2))
        grad_sinks = by_head.neg_().to(sinks.dtype)
    return (
        plan.unblock_queries(grad_queries).to(query.dtype),
        plan.unblock_keys(grad_keys, key).to(key.dtype),
        plan.unblock_keys(grad_values, value).to(value.dtype),
        grad_sinks,
        None,
    )


class _Plan:
    """Which blocks meet: the lay-out of one call."""

    def __init__(
        self, query: Tensor, key: Tensor, mask: Mask, scale: float, softcap: float | None
    ) -> None:
        batch, heads, length, _ = query.shape
        self.sizes = Sizes(batch, heads, length, key.shape[2])
        self.mask, self.scale, self.softcap = mask, scale, softcap
        self.wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.device = query.device
        parts = mask.conjuncts()
        self.blocks = next(part for part in parts if isinstance(part, Blocks))
        self.others = tuple(part for part in parts if part is not self.blocks)
        self.size = self.blocks.block_size
        self.offset = self.sizes.keys - self.sizes.queries
        # queries before the first one, in its block: they are padding
        self.lead = self.offset % self.size
        self.first = self.offset // self.size
        self.groups = key.shape[1]
        self.count = -(-self.sizes.keys // self.size)

    def batches(self) -> Iterator[_Batch]:
        """Cut the work into batches of rows with equally many visible blocks."""
        visible = self._visible().flatten(0, 2)  # (B * H * query blocks, key blocks)
        counts = visible.sum(-1)
        columns = visible.nonzero()[:, 1]  # row after row
        ends = counts.cumsum(0)
        for count in torch.unique(counts).tolist():
            if count == 0:
                continue
            rows = (counts == count).nonzero()[:, 0]  # (rows of this count,)
            at = (ends[rows] - count)[:, None] + torch.arange(count, device=self.device)
            found = columns[at]  # (rows of this count, n)
            step = max(1, BATCH_ELEMENTS // (count * self.size**2))
            for part, blocks in zip(torch.split(rows, step), torch.split(found, step), strict=True):
                yield self._batch(part, blocks)

    def logits(self, queries: Tensor, keys: Tensor, batch: _Batch) -> tuple[Tensor, Tensor | None]:
        """Return a batch's logits to base 2, (M, block, n * block), and the cap's slope."""
        # (M, block, E), (M, n * block, E)
        query, gathered = queries[batch.rows], keys[batch.sources].flatten(1, 2)
        slope = None
        if self.softcap is None:
            logits = query.mul_(self.scale * LOG2_E) @ gathered.mT
        else:
            bent = query.mul_(self.scale / self.softcap) @ gathered.mT
            bent = batch.hide(bent, 0.0).tanh_()
            slope = 1 - bent * bent
            logits = bent.mul_(self.softcap * LOG2_E)
        return batch.hide(logits, float("-inf")), slope

    def _visible(self) -> Tensor:
        """Return the map less what the rest of the mask surely hides, (B, H, blocks, blocks)."""
        shape = (self.sizes.batch, self.sizes.heads, -1, -1)
        visible = self.blocks.block_map[:, :, self.first :].expand(shape).clone()
        for row in range(visible.shape[2]):
            start = max(0, row * self.size - self.lead)
            stop = min(self.sizes.queries, (row + 1) * self.size - self.lead)
            low, high = self.mask.reach(start, stop, self.sizes)
            visible[:, :, row, : low // self.size] = False
            visible[:, :, row, -(-high // self.size) :] = False
        return visible

    def _batch(self, rows: Tensor, blocks: Tensor) -> _Batch:
        per_head = self.count - self.first  # query blocks
        sample = rows // (self.sizes.heads * per_head)
        head = rows // per_head % self.sizes.heads
        kv_head = head // (self.sizes.heads // self.groups)
        sources = (sample * self.groups + kv_head)[:, None] * self.count + blocks
        return _Batch(rows, sources, self._hidden(rows, blocks, sample, head))

    def _hidden(self, rows: Tensor, blocks: Tensor, sample: Tensor, head: Tensor) -> Tensor | None:
        """Evaluate the rest of the mask inside visible blocks, (M, block, n * block)."""
        if not self.others and self.sizes.keys % self.size == 0:
            return None
        within = torch.arange(self.size, device=self.device)
        start = rows[:, None] % (self.count - self.first) * self.size - self.lead
        # queries of the padding have no mask: they borrow a neighbour's
        i = (start + within).clamp(0, self.sizes.queries - 1)[:, :, None]  # (M, block, 1)
        j = (blocks[:, :, None] * self.size + within).flatten(1)[:, None]  # (M, 1, n * block)
        seen = j < self.sizes.keys
        j = j.clamp(max=self.sizes.keys - 1)
        b, h = sample[:, None, None], head[:, None, None]
        for mask in self.others:
            seen = seen & mask.allows(b, h, i, j, self.sizes)
        return ~seen

    def query_blocks(self, query: Tensor) -> Tensor:
        """(B, H, L, X) -> (B * H * query blocks, block, X), in the dtype of the arithmetic."""
        tail = -(self.lead + self.sizes.queries) % self.size
        padded = torch.nn.functional.pad(query.to(self.wide), (0, 0, self.lead, tail))
        return padded.reshape(-1, self.size, query.shape[3])

    def unblock_queries(self, blocks: Tensor) -> Tensor:
        """Undo `query_blocks`."""
        padded = blocks.view(self.sizes.batch, self.sizes.heads, -1, blocks.shape[2])
        return padded[:, :, self.lead : self.lead + self.sizes.queries].contiguous()

    def key_blocks(self, key: Tensor) -> Tensor:
        """(B, Hkv, S, X) -> (B * Hkv * key blocks, block, X), in the dtype of the arithmetic."""
        tail = -self.sizes.keys % self.size
        padded = torch.nn.functional.pad(key.to(self.wide), (0, 0, 0, tail))
        return padded.reshape(-1, self.size, key.shape[3])

    def unblock_keys(self, blocks: Tensor, like: Tensor) -> Tensor:
        """Undo `key_blocks`."""
        padded = blocks.view(*like.shape[:2], -1, like.shape[3])
        return padded[:, :, : self.sizes.keys].contiguous()

    def per_row(self, sinks: Tensor) -> Tensor:
        """(H,) -> (B * H * query blocks, 1, 1), to base 2."""
        shape = (self.sizes.batch, self.sizes.heads, self.count - self.first)
        return LOG2_E * sinks.to(self.wide)[:, None].expand(shape).reshape(-1, 1, 1)


def _softmax(logits: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Turn logits (M, block, n * block) into probabilities, and return their logsumexp."""
    peak = logits.amax(-1, keepdim=True)  # (M, block, 1)
    if sink is not None:
        peak = torch.maximum(peak, sink)
    # a row that sees nothing is measured from 0: -inf - -inf would be NaN
    base = peak.masked_fill_(peak == float("-inf"), 0.0)
    p = logits.sub_(base).exp2_()
    total = p.sum(-1, keepdim=True)
    if sink is not None:
        total += (sink - base).exp2_()
    total.masked_fill_(total == 0, 1.0)
    return p.div_(total), base + total.log2()


def _add_blocks(total: Tensor, places: Tensor, blocks: Tensor) -> None:
    """Add (M, n * block, X) to the blocks of ``total`` (blocks, block, X) at ``places`` (M, n)."""
    parts = blocks.reshape(-1, *total.shape[1:])
    if total.device.type == "cpu":
        total.index_add_(0, places.flatten(), parts)
    else:
        # on a GPU index_add_ adds in any order, this in a fixed one
        total.index_put_((places.flatten(),), parts, accumulate=True)
