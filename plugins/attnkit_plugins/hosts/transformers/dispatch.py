"""What runs in a swapped layer: the function under transformers' name ``attnkit``.

It turns a call of transformers' attention interface into the arguments of `attnkit.attention`, as
the model's own implementation would have understood them, and hands them to the layer's mixer. A
keyword that it does not know is refused by name: dropping it could change the result.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from attnkit.errors import ShapeError, SwapError, UnsupportedError
from attnkit.hosts.mounts import submodule
from attnkit.hosts.protocol import Call, Mixer
from attnkit.hosts.sdpa_calls import autocast, fit
from attnkit.masks.constructors import causal, full, sliding_window
from attnkit_plugins.hosts.transformers.attention_weights import refuse
from attnkit_plugins.hosts.transformers.bond import MARK, Bound, bind, own_config
from attnkit_plugins.hosts.transformers.interface import own_function
from attnkit_plugins.hosts.transformers.masks import Reading, added, read

KEY = "attnkit"

TRANSLATED = frozenset(
    {
        "dropout",
        "is_causal",
        "position_bias",
        "s_aux",
        "scaling",
        "sinks",
        "sliding_window",
        "softcap",
    }
)

INERT = frozenset(
    {
        "cache_position",
        "logits_to_keep",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""Keywords that reach the layer and that no attention function of transformers acts on."""

_KNOWN = TRANSLATED | INERT


def attach(model: nn.Module, path: str, mixer: Mixer, label: str) -> Bound:
    """Put a mixer at a module, on top of one that may be there."""
    return bind(submodule(model, path), path, mixer, label, told, register)


def told(config: Any) -> Any:
    """Return a shallow copy of a config that names attnkit's function."""
    own = copy.copy(config)
    # the property would set the configs of sub-models too, which are shared
    own._attn_implementation_internal = KEY
    return own


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Answer a call of transformers' attention interface: (B, L, H, Ev), and no weights.

    Keywords other than `TRANSLATED` and `INERT` are refused.
    """
    binding = module.__dict__.get(MARK)
    if binding is None:
        raise SwapError(
            f"{type(module).__name__} was told attn_implementation={KEY!r} but nothing was "
            "swapped into it; use attnkit.swap(model, ...)"
        )
    # `device.type` costs more than all the rest of this
    kind = "cpu" if query.is_cpu else query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = autocast(query, key, value)
    out = binding.mixer(Arrived(module, query, key, value, attention_mask, keywords))
    batch, heads, length, _ = query.shape
    wanted = (batch, heads, length, value.shape[3])
    if out.shape != wanted:
        raise ShapeError(
            f"{binding.label!r} must return (B, H, L, Ev) = {wanted}, got {tuple(out.shape)}"
        )
    if length == 1:
        return out.reshape(batch, 1, heads, wanted[3]), None
    return out.transpose(1, 2).contiguous(), None


_NOTHING_HIDDEN = Reading(full(), None, None, aligned=True)


@dataclass(slots=True)
class Arrived:
    """See `attnkit.hosts.protocol.Request`."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    attention_mask: Tensor | None
    keywords: dict[str, Any]

    def call(self) -> Call:
        given = self.keywords
        check_keywords(type(self.module).__name__, given)
        key, value = self.key, self.value
        bias = given.get("position_bias")
        mask, additive, keys, aligned = self._reading()
        if keys is not None:
            key, value = key[:, :, :keys], value[:, :, :keys]
            bias = None if bias is None else bias[..., :keys]
        if additive is not None:
            bias = additive if bias is None else bias + additive
        sinks = given.get("s_aux")
        return Call(
            query=self.query,
            key=key,
            value=value,
            mask=mask,
            bias=bias,
            scale=given.get("scaling"),
            softcap=given.get("softcap"),
            sinks=given.get("sinks") if sinks is None else sinks,
            dropout_p=float(given.get("dropout") or 0.0),
            aligned=aligned and self._stands(),
        )

    def own(self, query: Tensor, key: Tensor, value: Tensor, samples: slice) -> Tensor:
        batch, dtype = self.query.shape[0], query.dtype
        keywords = {
            name: fit(each, batch, dtype, samples) if isinstance(each, torch.Tensor) else each
            for name, each in self.keywords.items()
        }
        mask = fit(self.attention_mask, batch, dtype, samples)
        out, _ = own_function(self.module)(self.module, query, key, value, mask, **keywords)
        result: Tensor = out.transpose(1, 2)
        return result

    def _reading(self) -> Reading:
        """Say what the mask, or its absence, means to the model's own implementation."""
        query, module = self.query, self.module
        window = self.keywords.get("sliding_window")
        if self.attention_mask is not None:
            config = own_config(module)
            check_mask(module, self.attention_mask)
            return read(self.attention_mask, query.shape, self.key.shape, window, module, config)
        if not self._is_causal_without_mask():
            return _NOTHING_HIDDEN
        # upper-left alignment, as in torch: keys past the queries are the empty end of a cache
        length, keys = query.shape[2], self.key.shape[2]
        mask = causal()
        if window is not None and min(keys, length) <= window:
            mask = mask & sliding_window(window)
        return Reading(mask, None, length if length < keys else None, aligned=True)

    def _is_causal_without_mask(self) -> bool:
        """Say what no mask means: causal for sdpa, unless the layer is not; full for eager."""
        # the cheap question first: one token is what a layer is asked most often
        if self.query.shape[2] == 1 or own_config(self.module)._attn_implementation != "sdpa":
            return False
        return self._is_causal()

    def _stands(self) -> bool:
        """Say whether queries stand among the keys at all: not if those come from elsewhere."""
        return self._is_causal() or self.query.shape[2] == self.key.shape[2]

    def _is_causal(self) -> bool:
        told = self.keywords.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if told is None else told)


def register() -> None:
    """Let transformers know attnkit's name."""
    AttentionInterface.register(KEY, attend)
    AttentionMaskInterface.register(KEY, _visible_mask)


def check_mask(module: nn.Module, given: Tensor) -> None:
    """Refuse a bool mask where the model's own function would add it to the logits."""
    if given.dtype != torch.bool or own_config(module)._attn_implementation == "sdpa":
        return
    # what `rewrites` has in the place of a model's own takes both
    if own_function(module).__module__.startswith("transformers."):
        added(given)


def check_keywords(layer: str, given: dict[str, Any]) -> None:
    """Refuse by name what cannot be translated and may matter."""
    if given.keys() <= _KNOWN:
        return
    unknown = [
        name
        for name, value in given.items()
        if name not in _KNOWN and value is not None and value is not False
    ]
    if "output_attentions" in unknown:
        refuse()
    if unknown:
        raise UnsupportedError(
            f"{', '.join(unknown)}: {layer} passes on what attnkit has no translation for; it "
            f"knows {', '.join(sorted(TRANSLATED))}"
        )


def _visible_mask(*args: Any, **keywords: Any) -> Tensor:
    """Make a mask for a layer that makes its own: always a tensor, never None."""
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(*args, **{**keywords, **skips})
    assert mask is not None
    return mask
