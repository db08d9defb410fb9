"""The sites of torch.nn's own layers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from attnkit.hosts.mounts import Mount, site_at
from attnkit.swaps.api import Needs, Site

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return the sites of a model, in the order of its modules."""
    crossing = {
        id(layer.multihead_attn)
        for layer in model.modules()
        if isinstance(layer, nn.TransformerDecoderLayer)
    }
    return tuple(
        site
        for name, module in model.named_modules()
        for site in _site(name, module, cross=id(module) in crossing)
    )


def _site(name: str, module: nn.Module, *, cross: bool) -> Iterator[Site]:
    if isinstance(module, nn.MultiheadAttention):
        needs = Needs(
            heads=module.num_heads,
            kv_heads=module.num_heads,
            head_dim=module.head_dim,
            cross=cross or not module.embed_dim == module.kdim == module.vdim,
            dropout=module.dropout,
        )
        yield site_at("torch", name, module, "attention", needs, _obstacle(module))
    elif isinstance(module, _LAYERS):
        width, hidden = module.linear1.in_features, module.linear1.out_features
        told = (
            f"{type(module).__name__} computes its feed-forward part itself, there is no module "
            "to replace"
        )
        needs = Needs(embed_dim=width, hidden_dim=hidden)
        # the layer's own name would stand for all that is in it
        path = f"{name}.linear1".lstrip(".")
        yield site_at("torch", path, module, "feedforward", needs, told)


def _obstacle(module: nn.MultiheadAttention) -> str | None:
    if module.bias_k is not None or module.bias_v is not None:
        return "add_bias_kv=True appends a learned key and value, which no variant knows"
    if module.add_zero_attn:
        return "add_zero_attn=True appends a key and value of zeros, which no variant knows"
    swapped = isinstance(module.__dict__.get("forward"), Mount)
    if type(module).forward is not nn.MultiheadAttention.forward:
        return f"{type(module).__name__} has a forward of its own"
    if "forward" in module.__dict__ and not swapped:
        return f"this {type(module).__name__} was given a forward of its own"
    return None
