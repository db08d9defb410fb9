"""Where the tensors of a call lie in memory: the same values, other strides and offsets.

Checks give calls layouts, and the script of a failure writes them down: a layout is Python's text,
and what the script has is what ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Each:
    """The same for every tensor of so many axes or more, or for one of them.

    Attributes:
        name: What it is, in words.
        source: Python that lays out one tensor, called ``{x}``.
        only: The one that lies so, while the others are contiguous; empty for all.
        axes: How many axes a tensor has at least.
    """

    name: str
    source: str
    only: str = ""
    axes: int = 3

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors laid out."""
        return {n: self.view(t) if self._moves(n, t) else t for n, t in tensors.items()}

    def lines(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Return Python that lays out variables of these names."""
        moved = [name for name, tensor in tensors.items() if self._moves(name, tensor)]
        return [f"{name} = {self.source.format(x=name)}" for name in moved]

    def view(self, tensor: Tensor) -> Tensor:
        """Lay out one tensor."""
        laid: Tensor = eval(self.source.format(x="x"), {"torch": torch, "x": tensor})
        return laid

    def _moves(self, name: str, tensor: Tensor) -> bool:
        return self.only in ("", name) and tensor.dim() >= self.axes


@dataclass(frozen=True)
class Packed:
    """Query, key and value side by side in one tensor, (B, L, 3, H, E)."""

    name: str = "views of one packed tensor"

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors laid out."""
        names = ("query", "key", "value")
        packed = torch.stack([tensors[name].transpose(1, 2) for name in names], 2)
        return {**tensors, **dict(zip(names, packed.permute(2, 0, 3, 1, 4), strict=True))}

    def lines(self, _: Mapping[str, Tensor]) -> list[str]:
        """Return Python that lays out variables of these names."""
        return [
            "packed = torch.stack([x.transpose(1, 2) for x in (query, key, value)], 2)",
            "query, key, value = packed.permute(2, 0, 3, 1, 4)",
        ]


Layout = Each | Packed


TRANSPOSED = Each("transposed", "{x}.transpose(1, -1).contiguous().transpose(1, -1)")
COLUMNS = Each("columns first", "{x}.mT.contiguous().mT")
EVERY_SECOND = Each("every second element", "{x}.repeat_interleave(2, -1)[..., ::2]", axes=1)
OFFSET = Each(
    "behind an offset", "torch.cat(({x}.new_zeros(3), {x}.flatten()))[3:].view({x}.shape)"
)
TOKENS_FIRST = Each("heads inside tokens", "{x}.transpose(1, 2).contiguous().transpose(1, 2)")
PACKED = Packed()
ONE_SAMPLE = Each("one sample, expanded", "{x}[:1].expand_as({x})")
"""For calls whose samples are alike."""
ONE_HEAD = Each("one head, expanded", "{x}[:, :1].expand_as({x})")
"""For calls whose heads are alike."""


def alone(name: str) -> Each:
    """Return the layout of one tensor that is transposed while the others are contiguous."""
    return Each(f"{name} alone transposed", TRANSPOSED.source, name)
