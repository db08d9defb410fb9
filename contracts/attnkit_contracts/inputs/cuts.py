"""Calls cut down to some samples, heads or tokens, each with the mask of those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnkit.masks import constructors as masks
from attnkit.masks.constructors import Mask, Sizes, full
from attnkit_contracts.inputs.calls import WITHOUT_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call

BY_HEAD = ("query", "key", "value", "bias", "log_decay", "beta", "initial_state", "grad_out")


def sizes_of(call: Call) -> Sizes:
    """Return B, H, L, S of an operation's call; a layer has one head."""
    if "x" in call.tensors:
        batch, length, _ = call.tensors["x"].shape
        return Sizes(batch, 1, length, length)
    query, value = call.tensors["query"], call.tensors["value"]
    return Sizes(
        query.shape[0], max(query.shape[1], value.shape[1]), query.shape[2], value.shape[2]
    )


def below(size: int) -> Iterator[int]:
    """Yield smaller sizes, the boldest first."""
    tried = (1, 2, 3, size // 2, size - size // 4, size - size // 8, size - 2, size - 1)
    yield from sorted({n for n in tried if 0 < n < size})


def samples(call: Call, index: list[int]) -> Call:
    """Return the call of some samples, with the mask of those."""
    return call.map(
        lambda name, tensor: (
            tensor if name in WITHOUT_BATCH or tensor.shape[0] == 1 else tensor[index]
        )
    ).masked(_Cut(samples=index).whole(call.mask))


def tokens(call: Call, start: int, stop: int) -> Call:
    """Return the call of some tokens, with the mask of those."""
    shorter = call.tokens(start, stop).map(lambda _, tensor: tensor.contiguous())
    return shorter.masked(_Cut(first=start, keys=stop, queries=stop).whole(call.mask))


def cut(call: Call, queries: int, keys: int) -> Call:
    """Return the call of the first queries and keys, with the mask of those."""

    def of(name: str, tensor: Tensor) -> Tensor:
        if name in ("query", "grad_out"):
            return tensor[:, :, :queries].contiguous()
        if name in ("key", "value"):
            return tensor[:, :, :keys].contiguous()
        if name == "bias":
            rows = tensor if tensor.shape[2] == 1 else tensor[:, :, :queries]
            return (rows if tensor.shape[3] == 1 else rows[..., :keys]).contiguous()
        return tensor

    return call.map(of).masked(_Cut(queries=queries, keys=keys).whole(call.mask))


def heads(call: Call, heads: int, shared: int) -> Call:
    """Return the call of the first heads, and of the first that several of those share."""
    many = sizes_of(call).heads

    def of(name: str, tensor: Tensor) -> Tensor:
        if name == "sinks":
            return tensor[:heads]
        if name not in BY_HEAD or tensor.shape[1] == 1:
            return tensor
        return tensor[:, : heads if tensor.shape[1] == many else shared].contiguous()

    return call.map(of).masked(_Cut(heads=heads).whole(call.mask))


def without(mask: Mask, *left_out: Mask) -> Mask:
    """Return a mask without some of its parts."""
    rest = full()
    for part in mask.conjuncts():
        rest = rest if any(part is each for each in left_out) else rest & part
    return rest


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Which samples, heads, queries and keys of a mask are left; None for all."""

    samples: list[int] | None = None
    heads: int | None = None
    queries: int | None = None
    keys: int | None = None
    first: int = 0

    def whole(self, mask: Mask) -> Mask:
        """Return what is left of all parts of a mask."""
        found = full()
        for part in mask.conjuncts():
            found = found & self.of(part)
        return found

    def of(self, part: Mask) -> Mask:
        """Return the part of a mask that is left."""
        if isinstance(part, masks.Padding):
            made = masks.left_padding if part.lengths is None else masks.padding
            given = part.starts if part.lengths is None else part.lengths
            assert given is not None
            return made(self._counts(given))
        if isinstance(part, masks.PrefixLM):
            return masks.prefix_lm(self._counts(part.prefix))
        if isinstance(part, masks.Documents):
            return masks.documents(self._rows(part.ids)[:, self.first : self.keys])
        if isinstance(part, masks.Dense):
            return masks.dense(self._square(part.tensor, self.queries, self.keys))
        if isinstance(part, masks.Blocks):
            size = part.block_size
            count = None if self.keys is None else -(-self.keys // size)
            return masks.blocks(self._square(part.block_map, count, count), size)
        return self.of(part.left) | self.of(part.right) if isinstance(part, masks.Or) else part

    def _rows(self, tensor: Tensor) -> Tensor:
        few = self.samples is None or (tensor.dim() == 4 and tensor.shape[0] == 1)
        return tensor if few else tensor[self.samples]

    def _counts(self, counts: Tensor) -> Tensor:
        left = (self._rows(counts) - self.first).clamp(min=0)
        return left if self.keys is None else left.clamp(max=self.keys - self.first)

    def _square(self, tensor: Tensor, rows: int | None, columns: int | None) -> Tensor:
        tensor = self._rows(tensor)
        tensor = tensor if tensor.shape[1] == 1 else tensor[:, : self.heads]
        tensor = tensor if tensor.shape[2] == 1 else tensor[:, :, :rows]
        return tensor if tensor.shape[3] == 1 else tensor[..., :columns]
