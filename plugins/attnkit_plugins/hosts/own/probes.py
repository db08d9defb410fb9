"""Pairs of inputs that show whether later tokens, padding or other samples leak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attnkit.hosts.leak_probes import by_shape, exchanged, is_causal, neighbours, second_half, sees
from attnkit.hosts.own_modules import declaration
from attnkit.hosts.protocol import Inputs, Pair, Probe

if TYPE_CHECKING:
    from attnkit.swaps.api import Site


def make_probes(model: nn.Module, sites: Sequence[Site], sample: Inputs) -> tuple[Probe, ...]:
    """Vary a sample by what was declared: causal layers, and masks that the model is called with.

    A model's input is taken for a mask if it has the name of a declared one, or of that of torch's
    function.
    """
    return (*neighbours(sample), *_by_tokens(model, sites, sample))


def _by_tokens(model: nn.Module, sites: Sequence[Site], sample: Inputs) -> Iterator[Probe]:
    polarity = _masks(model)
    masks = {
        name: given
        for name, given in sample.items()
        if name in polarity and isinstance(given, torch.Tensor) and 2 <= given.dim() <= 4
    }
    names = [name for name, given in sample.items() if name not in masks and _is_stream(given)]
    if not names:
        return
    batch, length = _sizes(sample[names[0]])
    names = [name for name in names if _sizes(sample[name]) == (batch, length)]
    seen = {name: _seen(given, hides=polarity[name]) for name, given in masks.items()}
    hidden = torch.zeros(batch, length, dtype=torch.bool)
    for each in seen.values():
        if each.shape[0] in (1, batch) and each.shape[3] == length:
            # what no query of any head sees
            hidden |= ~each.any(dim=2).any(dim=1).cpu()
    if bool(hidden.any()):
        lifted = {**sample, **{name: _lifted(g, polarity[name]) for name, g in masks.items()}}
        where, rows = dict.fromkeys(names, hidden), by_shape(~hidden)
        stays = Pair(sample, exchanged(sample, where), rows)
        moves = Pair(lifted, exchanged(lifted, where), rows)
        yield Probe("padding", "other tokens in the padding", stays, moves)
    told = any(site.needs.causal for site in sites) or sample.get("is_causal") is True
    if length > 1 and (told or any(is_causal(each) for each in seen.values())):
        cut, later = second_half(length)
        places = later.expand(batch, length)
        other = exchanged(sample, dict.fromkeys(names, places))
        stays = Pair(sample, other, by_shape(~places))
        moves = Pair(sample, other, by_shape(places))
        yield Probe("causality", f"other tokens from position {cut} on", stays, moves)


def _masks(model: nn.Module) -> dict[str, bool]:
    """Return the names of masks, and whether True means hidden."""
    found = {"attn_mask": False}
    for module in model.modules():
        declared = declaration(type(module))
        if declared is not None:
            told = declared.parameters
            found |= {told[each]: each == "hidden" for each in ("mask", "hidden") if each in told}
    return found


def _is_stream(given: object) -> bool:
    """Say whether an input holds tokens: ids (B, L), or numbers (B, L, ...)."""
    if not isinstance(given, torch.Tensor) or given.dtype == torch.bool:
        return False
    return given.dim() >= (3 if given.is_floating_point() else 2)


def _sizes(given: object) -> tuple[int, ...]:
    assert isinstance(given, torch.Tensor)
    return tuple(given.shape[:2])


def _seen(given: Tensor, *, hides: bool) -> Tensor:
    """Return (B or 1, H or 1, L or 1, S), True for may attend."""
    return sees(given[(None,) * (4 - given.dim())], hides=hides)


def _lifted(given: Tensor, hides: bool) -> Tensor:
    """Return a mask that hides nothing."""
    visible = given.dtype == torch.bool and not hides
    return torch.ones_like(given) if visible else torch.zeros_like(given)
