"""Pairs of inputs that show whether later tokens, padding or other documents leak."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from attnkit.leaks import Probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from attnkit.hosts import Site


def make_probes(
    model: nn.Module, sites: Sequence[Site], sample: Mapping[str, object]
) -> tuple[Probe, ...]:
    """Vary a sample of tokens; none for models that take other inputs, or encode and decode."""
    config = getattr(model, "config", None)
    ids = sample.get("input_ids")
    if config is None or config.is_encoder_decoder or not isinstance(ids, torch.Tensor):
        return ()
    if ids.dim() != 2 or ids.shape[1] < 2:
        return ()
    changed = _others(ids, config.get_text_config())
    causal = any(site.needs.causal for site in sites)
    probes = list(_padding(sample, ids, changed))
    if causal:
        probes.append(_causality(sample, ids, changed))
        probes += _packing(model, ids, changed)
    return tuple(probes)


def _causality(sample: Mapping[str, object], ids: Tensor, changed: Tensor) -> Probe:
    length = ids.shape[1]
    cut = length - length // 2
    later = (torch.arange(length, device=ids.device) >= cut).expand_as(ids)
    other = {**sample, "input_ids": torch.where(later, changed, ids)}
    real = sample.get("attention_mask")
    # outputs come without their padding, see `sampling.run`
    rows = ~later
    if isinstance(real, torch.Tensor) and real.shape == ids.shape:
        rows = rows[real.bool()]
    return Probe("causality", f"other tokens from position {cut} on", sample, other, rows)


def _padding(sample: Mapping[str, object], ids: Tensor, changed: Tensor) -> Iterator[Probe]:
    real = sample.get("attention_mask")
    if not isinstance(real, torch.Tensor) or real.shape != ids.shape:
        return
    hidden = ~real.bool()
    # the first token is also the one of the cached step, see `sampling.run`
    hidden[:, 0] = False
    if hidden.any():
        other = {**sample, "input_ids": torch.where(hidden, changed, ids)}
        yield Probe("padding", "other tokens in the padding", sample, other)


def _packing(model: nn.Module, ids: Tensor, changed: Tensor) -> Iterator[Probe]:
    takes = inspect.signature(model.forward).parameters
    if "position_ids" not in takes or "use_cache" not in takes:
        return
    length = ids.shape[1]
    cut = length // 2
    places = torch.arange(length, device=ids.device)
    positions = torch.where(places < cut, places, places - cut).expand_as(ids)
    # with a cache, transformers does not look for documents
    one: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    second = (places >= cut).expand_as(ids)
    other = {**one, "input_ids": torch.where(second, ids, changed)}
    yield Probe("packing", f"another document in the first {cut} positions", one, other, second)


def _others(ids: Tensor, config: Any) -> Tensor:
    """Return other tokens at every place, none of them padding."""
    size = config.vocab_size
    others = (ids + 1) % size
    pad = config.pad_token_id
    return others if pad is None else torch.where(others == pad, (ids + 2) % size, others)
