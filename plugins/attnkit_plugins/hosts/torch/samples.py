"""Inputs for torch.nn's own models: padding on the right, a causal mask for a decoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attnkit.at_rest import input_like
from attnkit.errors import SwapError
from attnkit.hosts.outputs import numbers, run_model

LENGTH = 17
MEMORY = 13
PADDING = 3

_PADDED = ("src_key_padding_mask", "tgt_key_padding_mask", "key_padding_mask")


def make_sample(model: nn.Module) -> Mapping[str, object]:
    """Make two samples, one of them padded.

    Raises:
        SwapError: The model is not one of torch.nn's own.
    """
    if isinstance(model, nn.MultiheadAttention):
        return _attention(model)
    if isinstance(model, nn.TransformerEncoder | nn.TransformerEncoderLayer):
        layer = model.layers[0] if isinstance(model, nn.TransformerEncoder) else model
        (src,) = _tokens(_inner(layer), LENGTH)
        return {"src": src, "src_key_padding_mask": _padding(LENGTH, src)}
    if isinstance(model, nn.TransformerDecoder | nn.TransformerDecoderLayer):
        layer = model.layers[0] if isinstance(model, nn.TransformerDecoder) else model
        tgt, memory = _tokens(_inner(layer), LENGTH, MEMORY)
        return {
            "tgt": tgt,
            "memory": memory,
            "tgt_mask": _causal(tgt),
            "tgt_is_causal": True,
            "memory_key_padding_mask": _padding(MEMORY, memory),
        }
    if isinstance(model, nn.Transformer):
        src, tgt = _tokens(_inner(model.encoder.layers[0]), MEMORY, LENGTH)
        hidden = _padding(MEMORY, src)
        return {
            "src": src,
            "tgt": tgt,
            "tgt_mask": _causal(tgt),
            "src_key_padding_mask": hidden,
            "memory_key_padding_mask": hidden,
        }
    raise SwapError(
        f"cannot make inputs for {type(model).__name__}; give the swap sample={{...}}, keyword "
        "arguments of the model's forward"
    )


def run(model: nn.Module, sample: Mapping[str, object]) -> Mapping[str, Tensor]:
    """Run a model; rows of padding are nobody's output."""
    keep = None
    for name in _PADDED:
        hidden = sample.get(name)
        # rows are those of the queries: a padded memory of a decoder has none in the output
        if isinstance(hidden, torch.Tensor) and hidden.dtype == torch.bool and "tgt" not in sample:
            keep = ~hidden
    return run_model(model, sample, keep)


def _attention(layer: nn.MultiheadAttention) -> Mapping[str, object]:
    widths = (layer.embed_dim, layer.kdim, layer.vdim)
    if len(set(widths)) == 1:
        (query,) = _tokens(layer, LENGTH)
        key = value = query
    else:
        (query,) = _tokens(layer, LENGTH)
        shape = (2, LENGTH) if layer.batch_first else (LENGTH, 2)
        key, value = (numbers(*shape, width, like=query) for width in widths[1:])
    hidden = _padding(LENGTH, query)
    return {"query": query, "key": key, "value": value, "key_padding_mask": hidden}


def _inner(layer: nn.Module) -> nn.MultiheadAttention:
    found = layer.self_attn
    assert isinstance(found, nn.MultiheadAttention)
    return found


def _tokens(layer: nn.MultiheadAttention, *lengths: int) -> list[Tensor]:
    """Return two samples of each length, in the layer's layout."""
    like, width = input_like(layer), layer.embed_dim
    shapes = [(2, length) if layer.batch_first else (length, 2) for length in lengths]
    return [numbers(*shape, width, like=like) for shape in shapes]


def _padding(length: int, like: Tensor) -> Tensor:
    """Return (B, L), True for the last tokens of the first sample."""
    hidden = torch.zeros(2, length, dtype=torch.bool, device=like.device)
    hidden[0, length - PADDING :] = True
    return hidden


def _causal(like: Tensor) -> Tensor:
    """Return (L, L), True for later keys."""
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=like.device).triu(1)
