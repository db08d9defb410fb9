"""What runs in a swapped `torch.nn.MultiheadAttention`: its projections, around a mixer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnkit.errors import ArgumentError, ShapeError, UnsupportedError
from attnkit.hosts.mounts import Mount, Mounted, mount
from attnkit.hosts.protocol import Call, Mixer
from attnkit.hosts.sdpa_calls import autocast, fit, mixed
from attnkit.masks.constructors import Mask, Sizes, causal, dense, full
from attnkit.masks.reader import read_mask
from attnkit_plugins.hosts.torch.nested import packed, unpacked

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from attnkit.swaps.api import Site


@dataclass(frozen=True)
class Attached:
    """See `attnkit.hosts.protocol.Attachment`; ``noticed`` is the hook beside the mount."""

    mounted: Mounted
    noticed: RemovableHandle

    def blocked(self) -> str | None:
        return self.mounted.blocked()

    def undo(self) -> None:
        self.mounted.undo()
        self.noticed.remove()


def attach(model: nn.Module, site: Site, mixer: Mixer, label: str) -> Attached:
    """Put a mixer into a module, and a hook that keeps the layer around it from going past."""
    mounted = mount(model, site, mixer, label, forward)
    return Attached(mounted, mounted.mount.module.register_forward_pre_hook(notice))


def notice(module: nn.Module, args: tuple[object, ...]) -> None:
    """Do nothing: that there is a hook tells `TransformerEncoderLayer` to call the module."""


def forward(
    mount: Mount,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute what `torch.nn.MultiheadAttention.forward` does; arguments and results are its own.

    Raises:
        UnsupportedError: Weights after dropout are asked for, or nested tensors with a mask.
        ArgumentError: ``is_causal`` without ``attn_mask``, as in torch.
    """
    if query.is_nested or key.is_nested or value.is_nested:
        return _forward_nested(mount, (query, key, value), key_padding_mask, attn_mask)
    layer = mount.module
    assert isinstance(layer, nn.MultiheadAttention)
    if attn_mask is None and is_causal:
        raise ArgumentError("is_causal is a hint about attn_mask: give attn_mask too")
    dropout = layer.dropout if layer.training else 0.0
    if need_weights and dropout:
        raise UnsupportedError(
            "need_weights: a variant drops probabilities out of sight; call with "
            "need_weights=False, or with dropout=0.0, or in eval mode"
        )
    single = query.dim() == 2
    axis = 0 if layer.batch_first or single else 1
    if single:
        query, key, value = (each[None] for each in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    query, key, value = autocast(*_projected(layer, query, key, value, batch=axis))
    # while compiling, torch hands on a hint that is not known yet: the mask says the same
    hint = is_causal is True and key_padding_mask is None and not need_weights
    request = Arrived(mount, query, key, value, key_padding_mask, attn_mask, dropout, hint)
    out = mixed(mount, request).transpose(1, 2).flatten(2)  # (B, L, D)
    # called, not read as torch does: what stands in its place, or waits for the call, takes part
    out = layer.out_proj(out)
    weights = _weights(mount, request) if need_weights else None
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    if single:
        return out[0], None if weights is None else weights[0]
    return out.transpose(0, axis), weights


@dataclass
class Arrived:
    """See `attnkit.hosts.protocol.Request`; the masks are as torch takes them."""

    mount: Mount
    query: Tensor
    key: Tensor
    value: Tensor
    key_padding_mask: Tensor | None
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool

    def call(self) -> Call:
        """Translate torch's masks."""
        mask, bias = full(), None
        for each, more in (self._attention(), self._padding()):
            mask = each if mask is full() else mask & each
            if more is not None:
                bias = more if bias is None else bias + more
        return Call(
            query=self.query,
            key=self.key,
            value=self.value,
            mask=mask,
            bias=bias,
            dropout_p=self.dropout_p,
            aligned=self.query.shape[2] == self.key.shape[2],
        )

    def own(self, query: Tensor, key: Tensor, value: Tensor, samples: slice) -> Tensor:
        """Attend as torch does, its two masks added to each other."""
        batch = self.query.shape[0]
        total: Tensor | None = None
        if self.is_causal:
            seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            total = _additive(~seen.tril()[None, None], query.dtype)
        else:
            for given in (_attention_view(self), _padding_view(self)):
                each = fit(given, batch, query.dtype, samples)
                if each is not None:
                    each = _additive(each, query.dtype)
                    total = each if total is None else total + each
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=total, dropout_p=self.dropout_p
        )

    def _sizes(self) -> Sizes:
        batch, heads, length, _ = self.query.shape
        return Sizes(batch, heads, length, self.key.shape[2])

    def _attention(self) -> tuple[Mask, Tensor | None]:
        if self.is_causal:
            # torch goes by the hint alone; its corner is the upper left one
            length, keys = self.query.shape[2], self.key.shape[2]
            if length == keys:
                return causal(), None
            seen = torch.ones(length, keys, dtype=torch.bool, device=self.query.device).tril()
            return dense(seen[None, None]), None
        given, view = self.attn_mask, _attention_view(self)
        if given is None or view is None:
            return full(), None
        return read_mask("attn_mask", given, view, self._sizes(), hides=True)

    def _padding(self) -> tuple[Mask, Tensor | None]:
        given, view = self.key_padding_mask, _padding_view(self)
        if given is None or view is None:
            return full(), None
        return read_mask("key_padding_mask", given, view, self._sizes(), hides=True)


def _attention_view(request: Arrived) -> Tensor | None:
    """Return ``attn_mask`` as (1, 1, L, S) or (B, H, L, S)."""
    given = request.attn_mask
    if given is None:
        return None
    batch, heads, length, _ = request.query.shape
    keys = request.key.shape[2]
    if given.shape == (length, keys):
        return given[None, None]
    if given.shape == (batch * heads, length, keys):
        return given.view(batch, heads, length, keys)
    raise ShapeError(
        f"attn_mask must be (L, S) = {(length, keys)} or (B H, L, S) = "
        f"{(batch * heads, length, keys)}, got {tuple(given.shape)}"
    )


def _padding_view(request: Arrived) -> Tensor | None:
    """Return ``key_padding_mask`` as (B, 1, 1, S)."""
    given = request.key_padding_mask
    if given is None:
        return None
    wanted = (request.key.shape[0], request.key.shape[2])
    if given.shape != wanted:
        raise ShapeError(f"key_padding_mask must be (B, S) = {wanted}, got {tuple(given.shape)}")
    return given[:, None, None]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a bool mask, True for hidden, into terms of the logits."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)


def _projected(
    layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, *, batch: int
) -> list[Tensor]:
    """Return query, key and value of all heads, (B, H, L, E); ``batch`` is their batch axis."""
    # torch's annotations do not say that it may be None
    bias: Tensor | None = getattr(layer, "in_proj_bias", None)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    weights: tuple[Tensor, ...]
    if layer.kdim != layer.embed_dim or layer.vdim != layer.embed_dim:
        weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    elif query is key and key is value:
        together = functional.linear(query, layer.in_proj_weight, bias)
        return [_heads(layer, each, batch) for each in together.chunk(3, dim=-1)]
    else:
        weights = layer.in_proj_weight.chunk(3)
    given = zip((query, key, value), weights, biases, strict=True)
    return [_heads(layer, functional.linear(*each), batch) for each in given]


def _heads(layer: nn.MultiheadAttention, tensor: Tensor, batch: int) -> Tensor:
    tensor = tensor.transpose(0, batch)
    shape = (*tensor.shape[:2], layer.num_heads, layer.head_dim)
    return tensor.reshape(shape).transpose(1, 2)  # (B, H, L, E)


def _weights(mount: Mount, request: Arrived) -> Tensor:
    """Return the attention weights, (B, H, L, S): what comes out for values of one key each."""
    batch, heads, keys, _ = request.key.shape
    each = torch.eye(keys, dtype=request.value.dtype, device=request.value.device)
    value = each.expand(batch, heads, keys, keys)
    return mixed(mount, Arrived(**{**vars(request), "value": value}))


def _forward_nested(
    mount: Mount,
    tensors: tuple[Tensor, Tensor, Tensor],
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> tuple[Tensor, None]:
    """Answer a call with nested tensors (B, l, D), which `TransformerEncoder` makes."""
    query, key, value = tensors
    if not (query is key and key is value) or attn_mask is not None or key_padding_mask is not None:
        raise UnsupportedError(
            "nested tensors: taken where query, key and value are one and no mask is given"
        )
    padded, hidden = unpacked(query)
    out, _ = forward(mount, padded, padded, padded, hidden, need_weights=False)
    return packed(out, hidden), None
