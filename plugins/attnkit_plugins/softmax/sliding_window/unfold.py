"""Sliding-window attention with the keys in reach of all blocks laid side by side.

A block of R queries reaches at most R + w - 1 keys (R + 2 w - 2 where later keys are visible).
These overlap from block to block; unfolding the keys repeats them, and then all blocks are one
product, one softmax and another product. There is no loop over blocks, so a graph of
``torch.compile`` serves many lengths. Without it, `blocked` is faster and holds less at once.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnkit.interface import SoftmaxRules
from attnkit.masks import Mask, Sizes

# as few as keep the overlap of blocks small with w from 64 on
BLOCK_ROWS = 64


def attend(query: Tensor, key: Tensor, value: Tensor, **rules: Unpack[SoftmaxRules]) -> Tensor:
    """Attend to unfolded keys; see `attnkit.interface.SoftmaxFunction`.

    Note:
        O(L w) time and extra memory.
    """
    assert rules["dropout_p"] == 0.0
    mask, bias, softcap = rules["mask"], rules["bias"], rules["softcap"]
    assert mask.window is not None
    batch, heads, length, _ = query.shape
    groups, keys = key.shape[1:3]
    wide = torch.promote_types(query.dtype, torch.float32)
    # a graph of torch.compile holds for one of something or for several, so let there be several
    # torch leaves sym_max untyped; of whole numbers it is one
    several: Any = torch.sym_max(2, -(-length // BLOCK_ROWS))  # type: ignore[no-untyped-call]
    rows, blocks = BLOCK_ROWS, several
    if length == 1:
        # told apart anyway
        rows, blocks = 1, 1
    # keys before the block's first query, and in all
    before = mask.window - 1
    columns = before + rows + (0 if mask.is_causal else before)
    start = keys - length - before  # of the first block's keys

    def unfold(tensor: Tensor) -> Tensor:  # (B, Hkv, S, X) -> (B, Hkv, N, X, columns)
        end = start + (blocks - 1) * rows + columns
        return pad(tensor.to(wide), (0, 0, -start, end - keys)).unfold(2, columns, rows)

    padded = pad(query.to(wide) * rules["scale"], (0, 0, 0, blocks * rows - length))
    queries = padded.reshape(batch, groups, heads // groups, blocks, rows, -1)
    # N blocks of R rows and C columns, H = Hkv G
    logits = torch.einsum("bkgnre,bknec->bkgnrc", queries, unfold(key))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    first = rows * torch.arange(blocks, device=query.device)[:, None]  # (N, 1)
    i = first + torch.arange(rows, device=query.device)  # (N, R)
    j = first + start + torch.arange(columns, device=query.device)  # (N, C)
    inside = ((j >= 0) & (j < keys))[:, None]  # (N, 1, C)
    # rows and columns of the padding borrow a neighbour's mask and bias
    i, j = i.clamp(max=length - 1)[:, :, None], j.clamp(0, keys - 1)[:, None]
    seen = _by_group(_seen(mask, i, j, Sizes(batch, heads, length, keys)) & inside, groups)
    if bias is not None:
        at = i * (bias.shape[2] != 1), j * (bias.shape[3] != 1)
        added = _by_group(bias[:, :, *at].to(wide), groups)
        logits = logits + added
        # a row whose bias is -inf everywhere sees nothing either
        seen = seen & (added != float("-inf"))
    weights = _softmax(logits, seen, rules["sinks"])
    out = torch.einsum("bkgnrc,bknec->bkgnre", weights, unfold(value))
    return out.reshape(batch, heads, blocks * rows, -1)[:, :, :length].to(query.dtype)


def _seen(mask: Mask, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
    """Evaluate the mask at (N, R, 1) by (N, 1, C): (B or 1, H or 1, N, R, C)."""
    b = torch.arange(sizes.batch if mask.per_batch else 1, device=i.device)
    h = torch.arange(sizes.heads if mask.per_head else 1, device=i.device)
    return mask.allows(b[:, None, None, None, None], h[:, None, None, None], i, j, sizes)


def _by_group(tensor: Tensor, groups: int) -> Tensor:
    """(B or 1, H or 1, N, R, C) -> (B or 1, Hkv or 1, G or 1, N, R, C)."""
    if tensor.dim() == 3:
        tensor = tensor[None, None]
    shared = groups if tensor.shape[1] != 1 else 1
    return tensor.reshape(tensor.shape[0], shared, -1, *tensor.shape[2:])


def _softmax(logits: Tensor, seen: Tensor, sinks: Tensor | None) -> Tensor:
    """Return the weights (B, Hkv, G, N, R, C), zero where a key is hidden."""
    logits = logits.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        sink = sinks.to(logits.dtype).view(*logits.shape[1:3], 1, 1, 1)
        sink = sink.expand(*logits.shape[:-1], 1)
        return torch.cat((logits, sink), -1).softmax(-1)[..., :-1]
    # of a row that sees nothing softmax makes NaN, in the gradient too
    empty = ~seen.any(-1, keepdim=True)
    return logits.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
