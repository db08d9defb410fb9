"""The inputs of checks: what one call is given, and how it is drawn, disturbed and cut.

Random numbers are drawn in float64 on the CPU and rounded, so that every dtype and device sees
the same ones. They are normal, never all positive: sums of positive numbers hide sign errors.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import logsigmoid

import attnkit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from attnkit.masks.constructors import Mask, Sizes
    from attnkit.promises import MaskPart
    from attnkit_contracts.inputs.layouts import Layout

TIME_AXIS = {"x": 1, "query": 2, "key": 2, "value": 2, "log_decay": 2, "beta": 2, "grad_out": -2}
"""Which tensors of a call hold something for every token, and along which axis."""

WITHOUT_BATCH = ("sinks",)

GROWING: tuple[MaskPart, ...] = ("padding", "documents", "prefix")
"""Parts of masks that are other ones for more tokens, as `mask_part` draws them."""

PLACED: tuple[MaskPart, ...] = (*GROWING, "dense", "union")
"""Parts of masks that say which tokens, not which distances."""


@dataclass(frozen=True)
class Call:
    """Everything that one call is given, by name.

    Attributes:
        tensors: ``query``, ``key``, ``value``, ``bias``, ``sinks``, ``log_decay``, ``beta``,
            ``initial_state``, as the family has them; ``x`` for a layer,
            and its ``context``, if it has one. To look into gradients, ``grad_out`` as well.
        mask: Who may look at what.
        extras: ``scale``, ``softcap``, ``dropout_p``.
        layout: How the tensors, contiguous here, lie in memory when the call is made; None for
            as they are. It changes no value.
    """

    tensors: Mapping[str, Tensor]
    mask: Mask = field(default_factory=attnkit.full)
    extras: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout | None = None

    def given(self, **tensors: Tensor) -> Call:
        """Return the call with some tensors replaced or added."""
        return replace(self, tensors={**self.tensors, **tensors})

    def without(self, *names: str) -> Call:
        """Return the call without some tensors."""
        return replace(self, tensors={n: t for n, t in self.tensors.items() if n not in names})

    def masked(self, mask: Mask) -> Call:
        """Return the call with another mask."""
        return replace(self, mask=mask)

    def saying(self, **extras: Any) -> Call:
        """Return the call with further extras."""
        return replace(self, extras={**self.extras, **extras})

    def laid(self, layout: Layout | None) -> Call:
        """Return the call with tensors that lie in memory in this way."""
        return replace(self, layout=layout)

    def map(self, function: Callable[[str, Tensor], Tensor]) -> Call:
        """Return the call with every tensor mapped."""
        return replace(self, tensors={n: function(n, t) for n, t in self.tensors.items()})

    def samples(self, index: Tensor) -> Call:
        """Return the call of some samples; the mask must be the same for all of them."""
        return self.map(lambda n, t: t if n in WITHOUT_BATCH else t.index_select(0, index))

    def tokens(self, start: int, stop: int) -> Call:
        """Return the call of some tokens; the mask is left to the caller."""
        cut = stop - start
        return self.map(lambda n, t: t.narrow(TIME_AXIS[n], start, cut) if n in TIME_AXIS else t)

    def laid_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors as they lie in memory when the call is made."""
        return self.tensors if self.layout is None else self.layout.of(self.tensors)

    def arguments(self) -> dict[str, Any]:
        """Return tensors and extras as keyword arguments."""
        return {**self.laid_tensors(), **self.extras}

    def leaves(self) -> Call:
        """Return the call with detached tensors that collect gradients."""
        return self.map(lambda _, t: t.detach().clone().requires_grad_())

    def describe(self) -> str:
        """Say it as Python would, with shapes for tensors."""
        said = [f"{n}={tuple(t.shape)}" for n, t in self.tensors.items()]
        said += [f"{n}={value!r}" for n, value in self.extras.items()]
        laid = [] if self.layout is None else [f"laid out as {self.layout.name}"]
        return ", ".join([*said, f"mask={self.mask!r}", *laid])


def generator(seed: int, label: str) -> torch.Generator:
    """Return a source of random numbers of its own for every label."""
    return torch.Generator().manual_seed(zlib.crc32(label.encode()) + seed)


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    """Return standard normal numbers in float64."""
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def drawn(name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Return values such as a tensor of this name has: decays are <= 0, strengths within 0..1."""
    numbers = normal(draw, *shape)
    if name == "log_decay":
        return logsigmoid(numbers + 3)
    return numbers.sigmoid() if name == "beta" else numbers


def disturbed(call: Call, where: Tensor, numbers: Callable[[str, tuple[int, ...]], Tensor]) -> Call:
    """Return the call with other values at some tokens, (B, L), from what draws them by name.

    They are three times as large where that is legal.
    """

    def redraw(name: str, tensor: Tensor) -> Tensor:
        if name not in TIME_AXIS:
            return tensor
        # the same for all samples, of which there may be many
        fresh = numbers(name, (1, *tensor.shape[1:])).to(tensor)
        if name in ("x", "query", "value"):
            fresh = fresh * 3
        axis = TIME_AXIS[name]
        shape = [1] * tensor.dim()
        shape[0], shape[axis] = where.shape
        return torch.where(where.reshape(shape), fresh, tensor)

    return call.map(redraw)


def showing_weights(call: Call) -> Call:
    """Return a call with unit vectors for values: its output is its weights, (B, H, L, S)."""
    value = call.tensors["value"]
    ones = torch.eye(value.shape[2], dtype=value.dtype, device=value.device)
    return call.given(value=ones.expand(*value.shape[:2], -1, -1).contiguous())


def paddings(length: int, counts: Tensor) -> dict[str, tuple[Mask, Tensor]]:
    """Return padding of so many tokens a sample, (B,), at each end; and what is real, (B, L)."""
    at, ends = torch.arange(length, device=counts.device), length - counts
    return {
        "padding": (attnkit.padding(ends), at < ends[:, None]),
        "left padding": (attnkit.left_padding(counts), at >= counts[:, None]),
    }


def mask_part(part: MaskPart, sizes: Sizes, device: str) -> Mask:
    """Return a mask of this kind that hides something and leaves most queries their own key.

    Windows, blocks and dense masks of fewer keys are the first rows of those of more keys.
    """
    batch, _, queries, keys = sizes
    positions = torch.arange(keys, device=device)
    match part:
        case "window":
            return attnkit.sliding_window(7)
        case "padding":
            lengths = [keys - (b * 5) % max(1, keys // 2) - 1 for b in range(batch)]
            some = [min(keys, max(1, n)) for n in lengths]
            return attnkit.padding(torch.tensor(some, dtype=torch.int64, device=device))
        case "documents":
            first = keys // 3 + torch.arange(batch, device=device)[:, None]  # (B, 1)
            ids = (positions >= first).long() + (positions >= 2 * keys // 3)  # (B, S)
            return attnkit.documents(ids)
        case "prefix":
            return attnkit.prefix_lm(torch.tensor([keys // 2] * batch, device=device))
        case "dense":
            return attnkit.dense(_dense(queries, keys, device))
        case "blocks":
            size = 8
            row = torch.arange(-(-keys // size), device=device)
            return attnkit.blocks((row[:, None] + row) % 2 == 0, size)
        case "union":
            return attnkit.sliding_window(2) | attnkit.dense(_dense(queries, keys, device))


def open_part(part: MaskPart, sizes: Sizes, device: str) -> Mask:
    """Return a mask of this kind that hides nothing."""
    batch, _, queries, keys = sizes
    match part:
        case "window":
            return attnkit.sliding_window(max(1, keys + queries))
        case "padding":
            return attnkit.padding(torch.full((batch,), keys, device=device))
        case "documents":
            return attnkit.documents(torch.zeros(batch, keys, dtype=torch.int64, device=device))
        case "prefix":
            return attnkit.prefix_lm(torch.full((batch,), keys, device=device))
        case "dense":
            return attnkit.dense(torch.ones(queries, keys, dtype=torch.bool, device=device))
        case "blocks":
            return attnkit.blocks(torch.ones(1, 1, dtype=torch.bool, device=device), max(1, keys))
        case "union":
            return attnkit.full() | attnkit.causal()


def _dense(queries: int, keys: int, device: str) -> Tensor:
    """Return (L, S): about half of all keys, and always the query's own."""
    i = torch.arange(queries, device=device)[:, None] + keys - queries  # (L, 1)
    j = torch.arange(keys, device=device)
    hashed = (i * 7 + j * 13) % 11
    return (hashed < 6) | (i == j)
