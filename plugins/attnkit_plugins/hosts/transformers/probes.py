"""Pairs of inputs that show whether later tokens, padding, documents or other samples leak."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnkit.hosts.leak_probes import by_shape, everything, exchanged, neighbours, second_half
from attnkit.hosts.protocol import Inputs, Pair, Probe, Rows

if TYPE_CHECKING:
    from attnkit.swaps.api import Site

_TOKENS = ("input_ids", "inputs_embeds")


def make_probes(model: nn.Module, sites: Sequence[Site], sample: Inputs) -> tuple[Probe, ...]:
    """Vary a sample: its neighbours, and its tokens where the model takes any."""
    config = getattr(model, "config", None)
    real = _mask(sample, "attention_mask")
    if getattr(config, "is_encoder_decoder", False):
        return (*neighbours(sample), *_encoded(config, sites, sample))
    probes = neighbours(sample, flat=real)
    return probes if config is None else (*probes, *_decoded(model, config, sites, sample))


def _decoded(
    model: nn.Module, config: Any, sites: Sequence[Site], sample: Inputs
) -> Iterator[Probe]:
    """Ask a model of one stack of layers."""
    name, tokens = _stream(sample, _TOKENS)
    if tokens is None:
        return
    vary = _Varied(config, sample)
    batch, length = tokens.shape[:2]
    real = _mask(sample, "attention_mask", (batch, length))
    if real is not None and not bool(real.all()):
        hidden = ~real
        # the first token is also the one of the cached step, see `samples.run`
        hidden[:, 0] = False
        lifted = {**sample, "attention_mask": torch.ones_like(real, dtype=torch.long)}
        # outputs come as one row, see `samples.run`
        yield vary.padding(name, hidden, lifted, everything, by_shape(real.flatten()))
    if any(site.needs.causal for site in sites):
        cut, later = second_half(length)
        places = later.to(tokens.device).expand(batch, length)
        # outputs come without their padding, see `samples.run`
        stay, move = _by_tokens(~places, real), _by_tokens(places, real)
        yield vary.causality(name, cut, places, stay, move)
        if name == "input_ids":
            yield from _packing(model, vary, tokens)


def _encoded(config: Any, sites: Sequence[Site], sample: Inputs) -> Iterator[Probe]:
    """Ask a model of an encoder and a decoder: each about its own tokens, and across them."""
    vary = _Varied(config, sample)
    name, tokens = _stream(sample, _TOKENS)
    real = None if tokens is None else _mask(sample, "attention_mask", tuple(tokens.shape[:2]))
    if real is not None and not bool(real.all()):
        lifted = {**sample, "attention_mask": torch.ones_like(real, dtype=torch.long)}
        rows = _of_encoder(real)
        yield vary.padding(name, ~real, lifted, rows, rows)
    name, tokens = _stream(sample, tuple(f"decoder_{each}" for each in _TOKENS))
    if tokens is None:
        return
    batch, length = tokens.shape[:2]
    real = _mask(sample, "decoder_attention_mask", (batch, length))
    if real is not None and not bool(real.all()):
        lifted = {**sample, "decoder_attention_mask": torch.ones_like(real, dtype=torch.long)}
        rows = _of_decoder(real)
        yield vary.padding(name, ~real, lifted, rows, rows)
    if length > 1 and any(site.needs.causal is not False for site in sites):
        cut, later = second_half(length)
        places = later.to(tokens.device).expand(batch, length)
        yield vary.causality(name, cut, places, _of_decoder(~places), _of_decoder(places))


class _Varied:
    """Probes of one sample; ``config`` tells which tokens there are."""

    def __init__(self, config: Any, sample: Inputs) -> None:
        text: Any = config.get_text_config()
        self.size: int = getattr(text, "vocab_size", 0)
        self.pad: int | None = getattr(text, "pad_token_id", None)
        self.sample = sample

    def padding(self, name: str, hidden: Tensor, lifted: Inputs, stay: Rows, move: Rows) -> Probe:
        """Change what is hidden; without the mask, the other tokens must see it."""
        stays = Pair(self.sample, self.change(self.sample, name, hidden), stay)
        moves = Pair(lifted, self.change(lifted, name, hidden), move)
        part = " of the decoder" if name.startswith("decoder") else ""
        return Probe("padding", f"other tokens in the padding{part}", stays, moves)

    def causality(self, name: str, cut: int, later: Tensor, stay: Rows, move: Rows) -> Probe:
        """Change later tokens."""
        other = self.change(self.sample, name, later)
        part = " of the decoder" if name.startswith("decoder") else ""
        changed = f"other tokens from position {cut}{part} on"
        stays, moves = Pair(self.sample, other, stay), Pair(self.sample, other, move)
        return Probe("causality", changed, stays, moves)

    def change(self, sample: Inputs, name: str, where: Tensor) -> Inputs:
        """Put other tokens somewhere."""
        return exchanged(sample, {name: where}, self.others if name.endswith("ids") else None)

    def others(self, ids: Tensor) -> Tensor:
        """Return other tokens at every place, none of them padding."""
        made = (ids + 1) % self.size
        return (
            made if self.pad is None else torch.where(made == self.pad, (ids + 2) % self.size, made)
        )


def _packing(model: nn.Module, vary: _Varied, ids: Tensor) -> Iterator[Probe]:
    takes = inspect.signature(model.forward).parameters
    if "position_ids" not in takes or "use_cache" not in takes:
        return
    length = ids.shape[1]
    cut = length // 2
    places = torch.arange(length, device=ids.device)
    positions = torch.where(places < cut, places, places - cut).expand_as(ids)
    # with a cache, transformers does not look for documents
    one: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    told = f"another document in the first {cut} positions, use_cache=False"
    first = (places < cut).expand_as(ids)
    other = vary.change(one, "input_ids", first)
    stays, moves = Pair(one, other, by_shape(~first)), Pair(one, other, by_shape(first))
    yield Probe("packing", told, stays, moves)


def _stream(sample: Inputs, names: Sequence[str]) -> tuple[str, Tensor | None]:
    """Return the input of two tokens or more that a stack of layers takes, and its name."""
    for name in names:
        given = sample.get(name)
        if isinstance(given, torch.Tensor) and given.dim() >= 2 and given.shape[1] > 1:
            return name, given
    return "", None


def _mask(sample: Inputs, name: str, shape: tuple[int, ...] | None = None) -> Tensor | None:
    """Return a mask of tokens (B, L), True for those that are no padding."""
    given = sample.get(name)
    if not isinstance(given, torch.Tensor) or given.dim() != 2:
        return None
    return given.bool() if shape in (None, tuple(given.shape)) else None


def _by_tokens(rows: Tensor, real: Tensor | None) -> Rows:
    return by_shape(rows) if real is None else by_shape(rows, rows[real])


def _of_encoder(rows: Tensor) -> Rows:
    """Compare some rows of what the encoder gives, and all that the decoder gives."""

    def find(name: str, out: Tensor) -> Tensor | None:
        return by_shape(rows)(name, out) if name.startswith("encoder") else everything(name, out)

    return find


def _of_decoder(rows: Tensor) -> Rows:
    """Compare some rows of what the decoder gives."""

    def find(name: str, out: Tensor) -> Tensor | None:
        return None if name.startswith("encoder") else by_shape(rows)(name, out)

    return find
