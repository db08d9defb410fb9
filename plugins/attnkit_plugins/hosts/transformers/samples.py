"""Inputs that exercise a model, and the outputs worth comparing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnkit.at_rest import input_like
from attnkit.errors import SwapError
from attnkit.hosts.outputs import named_tensors, numbers

if TYPE_CHECKING:
    from attnkit.swaps.api import Site

LENGTH = 17
BEYOND_WINDOW = 5
LONGEST = 512
PADDING = 3

_CACHE = ("past_key_values",)
"""What it holds at padding is nobody's output."""


def make_sample(model: nn.Module, sites: Sequence[Site]) -> Mapping[str, object]:
    """Make two samples, one of them padded if the model takes that, longer than the windows.

    Raises:
        SwapError: The model's main input is neither tokens nor pixels.
    """
    main = getattr(model, "main_input_name", None)
    if isinstance(model, PreTrainedModel) and main == "input_ids":
        return _tokens(model, sites)
    if isinstance(model, PreTrainedModel) and main == "pixel_values":
        return _pixels(model)
    raise SwapError(
        f"cannot make inputs for {type(model).__name__} (main input {main!r}); give the swap "
        "sample={...}, keyword arguments of the model's forward"
    )


def run(model: nn.Module, sample: Mapping[str, object]) -> Mapping[str, Tensor]:
    """Run a model, and one cached step more where it kept a cache."""
    out = model(**sample)
    padded = sample.get("attention_mask")
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    keep = padded.bool() if isinstance(padded, torch.Tensor) and not encodes else None
    outputs = named_tensors(out, keep, without=_CACHE)
    cache = getattr(out, "past_key_values", None)
    ids = sample.get("input_ids")
    plain = set(sample) <= {"input_ids", "attention_mask"} and not encodes
    # a mask of queries and keys has no row for one more token
    plain = plain and not (isinstance(padded, torch.Tensor) and padded.dim() > 2)
    if cache is not None and isinstance(ids, torch.Tensor) and plain:
        step: dict[str, Any] = {"input_ids": ids[:, :1], "past_key_values": cache}
        if isinstance(padded, torch.Tensor):
            step["attention_mask"] = torch.cat([padded, torch.ones_like(padded[:, :1])], 1)
        found = named_tensors(model(**step), without=_CACHE)
        outputs |= {f"next step {name}": each for name, each in found.items()}
    return outputs


def _tokens(model: PreTrainedModel, sites: Sequence[Site]) -> Mapping[str, object]:
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or LONGEST
    windows = [site.needs.window for site in sites if site.needs.window is not None]
    wanted = max([LENGTH, *(window + BEYOND_WINDOW for window in windows)])
    # some models count positions from 2
    length = max(PADDING + 1, min(wanted, LONGEST, most - 4))
    like = input_like(model)
    device = like.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)
    pad = config.pad_token_id or 0
    ids[ids == pad] = (pad + 1) % config.vocab_size
    mask = torch.ones_like(ids)
    is_causal = any(site.needs.causal for site in sites) and not config.is_encoder_decoder
    where = slice(0, PADDING) if is_causal else slice(length - PADDING, length)
    eager = getattr(config, "_attn_implementation", None) == "eager"
    # float64's smallest number is -inf to the float32 softmax of eager code: padding becomes NaN
    if not (eager and like.dtype == torch.float64):
        ids[0, where], mask[0, where] = pad, 0
    sample = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if config.is_encoder_decoder:
        sample["decoder_input_ids"] = ids.flip(0).to(device)
    return sample


def _pixels(model: PreTrainedModel) -> Mapping[str, object]:
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None)
    if size is None:
        raise SwapError(
            f"cannot make images for {type(model).__name__}: its config has no image_size; give "
            "the swap sample={...}, keyword arguments of the model's forward"
        )
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    shape = (2, getattr(config, "num_channels", 3), height, width)
    return {"pixel_values": numbers(*shape, like=input_like(model))}
