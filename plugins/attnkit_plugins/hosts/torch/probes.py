"""Pairs of inputs that show whether later tokens, padding or other samples leak."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnkit.hosts.leak_probes import (
    by_shape,
    everything,
    exchanged,
    is_causal,
    neighbours,
    second_half,
    sees,
)
from attnkit.hosts.protocol import Inputs, Pair, Probe, Rows


@dataclass(frozen=True)
class Stream:
    """Tokens that a layer of torch takes.

    Attributes:
        tokens: Names of the arguments that hold them.
        causal: Names of the masks that can keep later tokens from earlier outputs.
        padding: Names of the masks of their padding, True for hidden.
        answered: Whether each token has an output of its own.
    """

    tokens: tuple[str, ...]
    causal: tuple[str, ...]
    padding: tuple[str, ...]
    answered: bool = True


_SELF = Stream(("query", "key", "value"), ("attn_mask",), ("key_padding_mask",))
_CROSS = Stream(("key", "value"), (), ("key_padding_mask",), answered=False)
_ENCODED = Stream(("src",), ("mask", "src_mask"), ("src_key_padding_mask",))
_BOTH = ("src_key_padding_mask", "memory_key_padding_mask")
_SOURCE = Stream(("src",), (), _BOTH, answered=False)
_MEMORY = Stream(("memory",), (), ("memory_key_padding_mask",), answered=False)
_TARGET = Stream(("tgt",), ("tgt_mask",), ("tgt_key_padding_mask",))


def make_probes(model: nn.Module, sample: Inputs) -> tuple[Probe, ...]:
    """Vary a sample: its neighbours, and its tokens where the model is one of torch's own."""
    streams = _streams(model, sample)
    if not streams:
        return neighbours(sample)
    first = next(each for each in model.modules() if isinstance(each, nn.MultiheadAttention))
    asked = [_Asked(stream, sample, batch_first=first.batch_first) for stream in streams]
    probes = neighbours(sample, axis=0 if first.batch_first else 1, flat=asked[0].kept())
    return (*probes, *(probe for each in asked for probe in each.probes()))


def _streams(model: nn.Module, sample: Inputs) -> tuple[Stream, ...]:
    if any(isinstance(each, torch.Tensor) and each.is_nested for each in sample.values()):
        return ()
    if isinstance(model, nn.MultiheadAttention):
        is_self = sample.get("query") is sample.get("key") is sample.get("value")
        return () if _dims(sample, "query") != 3 else ((_SELF if is_self else _CROSS),)
    if isinstance(model, nn.TransformerEncoder | nn.TransformerEncoderLayer):
        return () if _dims(sample, "src") != 3 else (_ENCODED,)
    if isinstance(model, nn.TransformerDecoder | nn.TransformerDecoderLayer):
        return () if _dims(sample, "tgt") != 3 else (_TARGET, _MEMORY)
    if isinstance(model, nn.Transformer):
        return () if _dims(sample, "tgt") != 3 else (_TARGET, _SOURCE)
    return ()


@dataclass(frozen=True)
class _Asked:
    """Probes of one stream of a sample."""

    stream: Stream
    sample: Inputs
    batch_first: bool

    def probes(self) -> Iterator[Probe]:
        hidden = self._hidden()
        if hidden is not None and bool(hidden.any()):
            yield self._padding(hidden)
        if any(self._is_causal(name) for name in self.stream.causal):
            yield self._causality()

    def kept(self) -> Tensor | None:
        """Return (B, L), the rows that the host keeps of outputs, see `samples.run`."""
        hidden = self._hidden()
        return None if hidden is None or "tgt" in self.sample else ~hidden

    def _padding(self, hidden: Tensor) -> Probe:
        rows = self._rows(~hidden) if self.stream.answered else everything
        lifted = {name: x for name, x in self.sample.items() if name not in self.stream.padding}
        stays = Pair(self.sample, self._exchanged(self.sample, hidden), rows)
        moves = Pair(lifted, self._exchanged(lifted, hidden), rows)
        told = f"other tokens in the padding of {self.stream.tokens[0]}"
        return Probe("padding", told, stays, moves)

    def _causality(self) -> Probe:
        batch, length = self._sizes()
        cut, later = second_half(length)
        places = later.expand(batch, length)
        other = self._exchanged(self.sample, places)
        stays = Pair(self.sample, other, self._rows(~places))
        moves = Pair(self.sample, other, self._rows(places))
        told = f"other tokens in {self.stream.tokens[0]} from position {cut} on"
        return Probe("causality", told, stays, moves)

    def _rows(self, rows: Tensor) -> Rows:
        """Compare rows (B, L) of outputs in either layout, or without their padding."""
        kept = self.kept()
        flat = () if kept is None else (rows[kept.to(rows.device)],)
        layouts = (rows, rows.mT) if self.batch_first else (rows.mT, rows)
        return by_shape(*layouts, *flat)

    def _exchanged(self, sample: Inputs, places: Tensor) -> Inputs:
        where = places if self.batch_first else places.mT
        return exchanged(sample, dict.fromkeys(self.stream.tokens, where))

    def _hidden(self) -> Tensor | None:
        """Return (B, L), True for padding."""
        for name in self.stream.padding:
            given = self.sample.get(name)
            if isinstance(given, torch.Tensor) and given.shape == self._sizes():
                return ~sees(given, hides=True)
        return None

    def _is_causal(self, name: str) -> bool:
        given = self.sample.get(name)
        return isinstance(given, torch.Tensor) and is_causal(sees(given, hides=True))

    def _sizes(self) -> tuple[int, int]:
        """Return B and L."""
        given = self.sample[self.stream.tokens[0]]
        assert isinstance(given, torch.Tensor)
        one, other = given.shape[:2]
        return (one, other) if self.batch_first else (other, one)


def _dims(sample: Inputs, name: str) -> int:
    given = sample.get(name)
    return given.dim() if isinstance(given, torch.Tensor) else 0
