"""The masks that hold tensors: padding, documents, prefixes, dense masks and block maps.

`attnkit.masks.constructors` makes and checks them; `attnkit.masks.algebra` says what a mask is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.errors import MaskError
from attnkit.masks.algebra import Mask, Sizes

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Padding(Mask):
    """Keys of sample b from ``starts[b]`` to ``lengths[b]`` (excluded) are real, others padding."""

    parts = frozenset({"padding"})
    per_batch = True

    def __init__(self, starts: Tensor | None = None, lengths: Tensor | None = None) -> None:
        self.starts = starts
        self.lengths = lengths
        self.key = ("padding", starts is not None, lengths is not None)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        seen = (i >= 0) & (j >= 0)
        if self.lengths is not None:
            seen = seen & (j < self.lengths[b])
        if self.starts is not None:
            seen = seen & (j >= self.starts[b])
        return seen

    def check(self, sizes: Sizes) -> None:
        for name, counts in (
            ("padding lengths", self.lengths),
            ("left_padding counts", self.starts),
        ):
            if counts is not None:
                _check_counts(name, counts, sizes)

    def keep(self, sizes: Sizes) -> Tensor:
        """Return which keys are real: bool, (B, S)."""
        import torch

        given = self.lengths if self.lengths is not None else self.starts
        assert given is not None
        b = torch.arange(sizes.batch, device=given.device)[:, None]
        j = torch.arange(sizes.keys, device=given.device)
        return self.allows(b, b, j, j, sizes)

    def __repr__(self) -> str:
        return "attnkit.padding()" if self.starts is None else "attnkit.left_padding()"


class Documents(Mask):
    """A key is visible iff it belongs to the query's document."""

    parts = frozenset({"documents"})
    per_batch = True
    key = ("documents",)

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        return self.ids[b, i + (sizes.keys - sizes.queries)] == self.ids[b, j]

    def check(self, sizes: Sizes) -> None:
        wanted = (sizes.batch, sizes.keys)
        if tuple(self.ids.shape) != wanted:
            raise MaskError(
                f"documents ids must be (B, S) = {wanted}, got {tuple(self.ids.shape)}; "
                "give one document id for every key"
            )
        _check_each_query_has_a_key("document", sizes)


class PrefixLM(Mask):
    """Causal, but the first ``prefix[b]`` keys are visible to all."""

    parts = frozenset({"prefix"})
    per_batch = True
    key = ("prefix",)

    def __init__(self, prefix: Tensor) -> None:
        self.prefix = prefix

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        return (j < self.prefix[b]) | (j <= i + (sizes.keys - sizes.queries))

    def check(self, sizes: Sizes) -> None:
        _check_counts("prefix_lm lengths", self.prefix, sizes)

    def __repr__(self) -> str:
        return "attnkit.prefix_lm()"


class Dense(Mask):
    """The mask is a bool tensor, broadcastable to (B, H, L, S)."""

    parts = frozenset({"dense"})

    def __init__(self, tensor: Tensor) -> None:
        # (L, S) -> (1, 1, L, S)
        self.tensor = tensor.reshape((1,) * (4 - tensor.dim()) + tuple(tensor.shape))
        self.per_batch = self.tensor.shape[0] != 1
        self.per_head = self.tensor.shape[1] != 1
        self.key = ("dense", tuple(size == 1 for size in self.tensor.shape))

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        at = (
            index * (size != 1) for index, size in zip((b, h, i, j), self.tensor.shape, strict=True)
        )
        found: Tensor = self.tensor[tuple(at)]
        return found & (i >= 0) & (j >= 0)

    def check(self, sizes: Sizes) -> None:
        for got, wanted in zip(self.tensor.shape, sizes, strict=True):
            if got not in (1, wanted):
                raise MaskError(
                    f"dense mask must broadcast to (B, H, L, S) = {tuple(sizes)}, "
                    f"got {tuple(self.tensor.shape)}"
                )

    def tile(
        self, rows: tuple[int, int], columns: tuple[int, int], sizes: Sizes, device: torch.device
    ) -> Tensor:
        whole = self.tensor.expand(-1, -1, sizes.queries, sizes.keys)
        return whole[:, :, slice(*rows), slice(*columns)]


class Unread(Dense):
    """A host's mask in a graph, where its contents are not known: read when the call runs."""

    parts = frozenset()


class Blocks(Mask):
    """Key j is visible iff the map is true for the blocks of query and key."""

    parts = frozenset({"blocks"})

    def __init__(self, block_map: Tensor, block_size: int) -> None:
        # (N, N) -> (1, 1, N, N)
        self.block_map = block_map.reshape((1,) * (4 - block_map.dim()) + tuple(block_map.shape))
        self.block_size = block_size
        self.per_batch = self.block_map.shape[0] != 1
        self.per_head = self.block_map.shape[1] != 1
        self.key = ("blocks", tuple(self.block_map.shape), block_size)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        row = (i + (sizes.keys - sizes.queries)) // self.block_size
        return self.block_map[b * self.per_batch, h * self.per_head, row, j // self.block_size]

    def check(self, sizes: Sizes) -> None:
        blocks = -(-sizes.keys // self.block_size)
        batch, heads, *square = self.block_map.shape
        if tuple(square) != (blocks, blocks):
            raise MaskError(
                f"block_map must be (..., {blocks}, {blocks}) for S={sizes.keys} and "
                f"block_size={self.block_size}, got {tuple(self.block_map.shape)}"
            )
        if batch not in (1, sizes.batch) or heads not in (1, sizes.heads):
            raise MaskError(
                f"block_map must broadcast over B={sizes.batch} and H={sizes.heads}, "
                f"got {tuple(self.block_map.shape)}"
            )
        _check_each_query_has_a_key("block", sizes)


def _check_each_query_has_a_key(what: str, sizes: Sizes) -> None:
    if sizes.queries > sizes.keys:
        raise MaskError(
            f"{what}s need L <= S, got L={sizes.queries} and S={sizes.keys}: "
            f"a query's {what} is that of its key"
        )


def _check_counts(name: str, counts: Tensor, sizes: Sizes) -> None:
    """Check (B,) and, where reading them costs no device synchronisation, 0 <= count <= S."""
    import torch
    import torch._C._functorch as _functorch

    if tuple(counts.shape) != (sizes.batch,):
        raise MaskError(f"{name} must be (B,) = ({sizes.batch},), got {tuple(counts.shape)}")
    unknown = torch.compiler.is_compiling() or _functorch.is_batchedtensor(counts)
    if counts.device.type == "cpu" and not unknown and sizes.batch:
        low, high = (int(bound) for bound in torch.aminmax(counts))
        if low < 0 or high > sizes.keys:
            raise MaskError(f"{name} must lie in 0..S = 0..{sizes.keys}, got {low}..{high}")
