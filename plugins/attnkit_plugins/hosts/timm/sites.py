"""The sites of a timm model, how a variant gets there, and images to try it on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from attnkit.at_rest import input_like
from attnkit.errors import SwapError
from attnkit.hosts.mounts import Mounted, mount, site_at, site_path, submodule
from attnkit.hosts.outputs import numbers
from attnkit.hosts.sdpa_calls import calls_attention, intercept
from attnkit.swaps.api import Needs, Site

if TYPE_CHECKING:
    from attnkit.hosts.protocol import Mixer

_ATTENTION = re.compile(r"Attention|Attn")
_FEEDFORWARD = re.compile(r"(Mlp|SwiGLU|SwiGLUPacked)$")


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return the attention and feed-forward sites of a model, in the order of its modules."""
    found = {
        site.path: site
        for name, module in model.named_modules()
        for site in _site(site_path(name), module)
    }
    # a wrapper around a layer that can be swapped is no site of its own
    inner = {path for path, site in found.items() if not site.obstacle}
    return tuple(
        site
        for path, site in found.items()
        if not (site.obstacle and any(other.startswith(f"{path}.") for other in inner))
    )


def attach(model: nn.Module, site: Site, mixer: Mixer, label: str) -> Mounted:
    """Put a mixer at a layer, and let the layer call the function that it stands for."""
    fused = {"fused_attn": True} if hasattr(submodule(model, site.path), "fused_attn") else {}
    return mount(model, site, mixer, label, intercept, attributes=fused)


def make_sample(model: nn.Module) -> Mapping[str, object]:
    """Make two images of the size that the model says it takes.

    Raises:
        SwapError: It does not say.
    """
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    told = getattr(model, "pretrained_cfg", None) or {}
    channels, *told_size = told.get("input_size", (3,))
    height_width = tuple(size or told_size)
    if not type(model).__module__.startswith("timm.") or len(height_width) != 2:
        raise SwapError(
            f"cannot make images for {type(model).__name__}: it is no timm model that tells the "
            "size of its inputs; give the swap sample={...}, keyword arguments of the model's "
            "forward"
        )
    return {"x": numbers(2, channels, *height_width, like=input_like(model))}


def _site(path: str, module: nn.Module) -> Iterator[Site]:
    layer: type = type(module)
    # where the code is from: a user's class may inherit timm's forward
    if not getattr(getattr(layer, "forward", None), "__module__", "").startswith("timm."):
        return
    if calls_attention(layer):
        yield site_at("timm", path, module, "attention", _attention(module), intercepts=True)
    elif _ATTENTION.search(layer.__name__) and len(_matrices(module)) > 1:
        told = f"{layer.__name__} does not call torch's scaled_dot_product_attention"
        yield site_at("timm", path, module, "attention", Needs(), told)
    elif _FEEDFORWARD.search(layer.__name__) and _matrices(module):
        hidden, width = _matrices(module)[0].shape[:2]
        needs = Needs(embed_dim=width, hidden_dim=hidden)
        told = "attnkit's adapter for timm swaps attention layers only"
        yield site_at("timm", path, module, "feedforward", needs, told)


def _attention(module: nn.Module) -> Needs:
    heads, kv_heads = _count(module, "num_heads"), _count(module, "num_kv_heads")
    scale = getattr(module, "scale", None)
    width = _count(module, "head_dim")
    if width is None and isinstance(scale, float) and scale > 0:
        width = round(scale**-2)
    dropped = getattr(getattr(module, "attn_drop", None), "p", 0.0)
    relative = ("relative_position_bias_table", "rel_pos", "relative_position_index")
    return Needs(
        heads=heads,
        kv_heads=kv_heads or heads,
        head_dim=width,
        bias=any(getattr(module, name, None) is not None for name in relative),
        dropout=float(dropped),
    )


def _count(module: nn.Module, name: str) -> int | None:
    value = getattr(module, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _matrices(module: nn.Module) -> list[torch.Tensor]:
    weights = (getattr(child, "weight", None) for child in module.children())
    return [w for w in weights if isinstance(w, torch.Tensor) and w.dim() in (2, 4)]
