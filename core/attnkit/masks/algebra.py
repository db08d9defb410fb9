"""The algebra of masks: what a mask is, how masks combine, and those that hold no tensor.

`attnkit.masks.constructors` is the way in; `attnkit.masks.tensors` has the masks that hold tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

from attnkit.errors import MaskError
from attnkit.text import described

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from attnkit.promises import MaskPart


class Sizes(NamedTuple):
    """The four sizes a mask is evaluated over: B, H, L, S."""

    batch: int
    heads: int
    queries: int
    keys: int


class Mask:
    """A predicate that says which keys each query may attend to.

    Attributes:
        key: Hashable; equal for masks of equal structure, whatever their tensors hold.
        parts: The kinds of mask it is made of; ``causal`` is told apart in `is_causal`.
        is_causal: True if, whatever else, no query sees a later key.
        window: The smallest window that confines it, in keys, or None for no window.
        per_batch: True if samples of a batch may differ.
        per_head: True if query heads may differ.
        memory: What a mask that meets many layers has worked out, see `remembering`.
    """

    key: Hashable = ()
    parts: frozenset[MaskPart] = frozenset()
    is_causal: bool = False
    window: int | None = None
    per_batch: bool = False
    per_head: bool = False
    memory: dict[Hashable, Any] | None = None

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        """Say elementwise whether query i of head h in sample b sees key j.

        Args:
            b: Sample indices, int64, broadcastable with the others.
            h: Query head indices.
            i: Query indices, counted from 0 in the queries given.
            j: Key indices.
            sizes: B, H, L, S of the call.

        Returns:
            Bool, the broadcast shape of the indices.
        """
        raise NotImplementedError  # every part's own

    def check(self, sizes: Sizes) -> None:
        """Raise `MaskError` unless the mask fits a call of these sizes."""

    def reach(self, start: int, stop: int, sizes: Sizes) -> tuple[int, int]:
        """Bound the keys that queries ``start`` to ``stop`` (excluded) can see: [low, high)."""
        return 0, sizes.keys

    def conjuncts(self) -> tuple[Mask, ...]:
        """Return the masks that must all allow a key; their conjunction is this mask."""
        return (self,)

    def tile(
        self, rows: tuple[int, int], columns: tuple[int, int], sizes: Sizes, device: torch.device
    ) -> Tensor:
        """Evaluate a rectangle: queries ``rows`` = [start, stop) by keys ``columns``.

        Returns:
            Bool, (B or 1, H or 1, rows, columns).
        """
        import torch

        b = torch.arange(sizes.batch if self.per_batch else 1, device=device)
        h = torch.arange(sizes.heads if self.per_head else 1, device=device)
        i = torch.arange(*rows, device=device)
        j = torch.arange(*columns, device=device)
        seen = self.allows(b[:, None, None, None], h[:, None, None], i[:, None], j, sizes)
        return seen.broadcast_to(len(b), len(h), len(i), len(j))

    def to_bool(self, sizes: Sizes, device: torch.device) -> Tensor:
        """Return the whole mask as a bool tensor, (B or 1, H or 1, L, S)."""
        if self.memory is None:
            return self.tile((0, sizes.queries), (0, sizes.keys), sizes, device)
        key = self._place(sizes, device)
        found: Tensor | None = self.memory.get(key)
        if found is None:
            found = self.tile((0, sizes.queries), (0, sizes.keys), sizes, device)
            self.memory[key] = found
        return found

    def remembering(self, *known: tuple[Sizes, Tensor]) -> Mask:
        """Return an equal mask that evaluates itself once for sizes it meets again.

        For one that goes through the layers of a model, whose tensors nobody writes to. It keeps
        a tensor (B or 1, H or 1, L, S) for every sizes and form it was asked for.

        Args:
            known: What it says for some sizes: bool, broadcastable to (B or 1, H or 1, L, S).
        """
        if not self.parts and not self.is_causal:
            return self
        # a shallow copy; by `copy` it takes longer than most of what a mask is read by
        equal: Mask = object.__new__(type(self))
        equal.__dict__.update(self.__dict__)
        equal.memory = {
            self._place(sizes, seen.device): seen.expand(-1, -1, sizes.queries, sizes.keys)
            for sizes, seen in known
        }
        return equal

    def _place(self, sizes: Sizes, device: torch.device) -> Hashable:
        """Return where the memory has this mask for some sizes."""
        heads = sizes.heads if self.per_head else 1
        return (sizes.batch, heads, sizes.queries, sizes.keys, device)

    def to_additive(self, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return 0 where a key is visible and -inf where not, (B or 1, H or 1, L, S)."""
        if self.memory is None:
            return _additive(self.to_bool(sizes, device), dtype)
        key = (sizes, device, dtype)
        found: Tensor | None = self.memory.get(key)
        if found is None:
            found = self.memory[key] = _additive(self.to_bool(sizes, device), dtype)
        return found

    def to_mask_mod(self, sizes: Sizes) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Return the function FlexAttention's ``create_block_mask`` takes."""

        def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return self.allows(b, h, i, j, sizes)

        return mask_mod

    def __and__(self, other: Mask) -> Mask:
        """Allow a key only where both do."""
        _check_is_mask(other, "&")
        merged = _merge((*self.conjuncts(), *other.conjuncts()))
        return merged[0] if len(merged) == 1 else And(merged)

    def __or__(self, other: Mask) -> Mask:
        """Allow a key where either does."""
        _check_is_mask(other, "|")
        return Or(self, other)

    def __repr__(self) -> str:
        """Show the structure, not the tensors."""
        return f"attnkit.{type(self).__name__.lower()}()"


class Full(Mask):
    """Every query sees every key."""

    key = ("full",)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        return (i >= 0) & (j >= 0)

    def conjuncts(self) -> tuple[Mask, ...]:
        return ()


class Causal(Mask):
    """Query i sees key j iff j <= i + (S - L)."""

    key = ("causal",)
    is_causal = True

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        return j <= i + (sizes.keys - sizes.queries)

    def reach(self, start: int, stop: int, sizes: Sizes) -> tuple[int, int]:
        return 0, min(sizes.keys, max(0, stop + sizes.keys - sizes.queries))


class SlidingWindow(Mask):
    """A key is visible iff fewer than ``window_size`` positions away, on either side."""

    parts = frozenset({"window"})

    def __init__(self, window_size: int) -> None:
        self.window = self.window_size = window_size
        self.key = ("window", window_size)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        distance = i + (sizes.keys - sizes.queries) - j
        return (distance < self.window_size) & (distance > -self.window_size)

    def reach(self, start: int, stop: int, sizes: Sizes) -> tuple[int, int]:
        offset = sizes.keys - sizes.queries
        low = max(0, start + offset - self.window_size + 1)
        high = max(0, min(sizes.keys, stop + offset + self.window_size - 1))
        return min(low, high), high

    def __repr__(self) -> str:
        return f"attnkit.sliding_window({self.window_size})"


class And(Mask):
    """All of several masks; made by ``&``."""

    def __init__(self, masks: tuple[Mask, ...]) -> None:
        self.masks = masks
        self.key = ("and", *(mask.key for mask in masks))
        self.parts = frozenset().union(*(mask.parts for mask in masks))
        self.is_causal = any(mask.is_causal for mask in masks)
        windows = [mask.window for mask in masks if mask.window is not None]
        self.window = min(windows) if windows else None
        self.per_batch = any(mask.per_batch for mask in masks)
        self.per_head = any(mask.per_head for mask in masks)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        seen = self.masks[0].allows(b, h, i, j, sizes)
        for mask in self.masks[1:]:
            seen = seen & mask.allows(b, h, i, j, sizes)
        return seen

    def check(self, sizes: Sizes) -> None:
        for mask in self.masks:
            mask.check(sizes)

    def reach(self, start: int, stop: int, sizes: Sizes) -> tuple[int, int]:
        bounds = [mask.reach(start, stop, sizes) for mask in self.masks]
        low, high = max(low for low, _ in bounds), min(high for _, high in bounds)
        return min(low, high), high

    def conjuncts(self) -> tuple[Mask, ...]:
        return self.masks

    def tile(
        self, rows: tuple[int, int], columns: tuple[int, int], sizes: Sizes, device: torch.device
    ) -> Tensor:
        seen = self.masks[0].tile(rows, columns, sizes, device)
        for mask in self.masks[1:]:
            seen = seen & mask.tile(rows, columns, sizes, device)
        return seen

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.masks))


class Or(Mask):
    """Either of two masks; made by ``|``."""

    def __init__(self, left: Mask, right: Mask) -> None:
        self.left, self.right = left, right
        self.key = ("or", left.key, right.key)
        union: frozenset[MaskPart] = frozenset({"union"})
        self.parts = left.parts | right.parts | union
        self.is_causal = left.is_causal and right.is_causal
        self.per_batch = left.per_batch or right.per_batch
        self.per_head = left.per_head or right.per_head

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor, sizes: Sizes) -> Tensor:
        return self.left.allows(b, h, i, j, sizes) | self.right.allows(b, h, i, j, sizes)

    def check(self, sizes: Sizes) -> None:
        self.left.check(sizes)
        self.right.check(sizes)

    def reach(self, start: int, stop: int, sizes: Sizes) -> tuple[int, int]:
        left, right = self.left.reach(start, stop, sizes), self.right.reach(start, stop, sizes)
        return min(left[0], right[0]), max(left[1], right[1])

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"


FULL = Full()
CAUSAL = Causal()


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    # of 1 and of 0: exactly 0 and -inf
    return seen.to(dtype).log_()


def _merge(masks: tuple[Mask, ...]) -> tuple[Mask, ...]:
    """Drop repetitions: one causal, the smallest window."""
    merged: list[Mask] = []
    if any(isinstance(mask, Causal) for mask in masks):
        merged.append(CAUSAL)
    # a loop, as ``torch.compile`` does not trace min(key=...)
    narrowest: SlidingWindow | None = None
    for mask in masks:
        if isinstance(mask, SlidingWindow) and (
            narrowest is None or mask.window_size < narrowest.window_size
        ):
            narrowest = mask
    if narrowest is not None:
        merged.append(narrowest)
    merged += [mask for mask in masks if not isinstance(mask, Causal | SlidingWindow)]
    return tuple(merged) or (FULL,)


def _check_is_mask(other: object, operator: str) -> None:
    if not isinstance(other, Mask):
        raise MaskError(
            f"{operator} takes two masks, got {described(other)}; "
            "wrap a bool tensor as attnkit.dense(tensor)"
        )
