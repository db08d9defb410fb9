"""Attention layers that do not call transformers' interface, and how a variant gets there.

For as long as it is swapped, such a layer is given another class: a subclass of its own, in
`rewrites`, whose ``forward`` hands query, key and value to the interface. From there on it is a
layer like any other, see `dispatch`. It stays the object that it was, with its parameters, its
hooks and its place in the model; ``undo`` gives it its class back.

That the rewritten ``forward`` computes what the layer's own does is not believed: the outputs of a
swapped model are compared with those of the model as it was.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from attnkit.hosts.protocol import Attachment

_REWRITTEN = {
    "bloom.modeling_bloom.BloomAttention": "bloom",
    "codegen.modeling_codegen.CodeGenAttention": "gptj",
    "deberta_v2.modeling_deberta_v2.DisentangledSelfAttention": "deberta_v2",
    "gpt_neo.modeling_gpt_neo.GPTNeoSelfAttention": "gpt_neo",
    "gptj.modeling_gptj.GPTJAttention": "gptj",
    "mpnet.modeling_mpnet.MPNetSelfAttention": "mpnet",
    "mpt.modeling_mpt.MptAttention": "mpt",
}
"""Classes, below ``transformers.models``, and the modules of `rewrites` that have them anew."""


@dataclass
class Rewritten:
    """See `attnkit.hosts.protocol.Attachment`.

    Attributes:
        attachment: Of the mixer.
        layer: The layer.
        own: Its class before.
        held: Whether it held a config before.
    """

    attachment: Attachment
    layer: nn.Module
    own: type
    held: bool

    def blocked(self) -> str | None:
        return self.attachment.blocked()

    def undo(self) -> None:
        try:
            self.attachment.undo()
        finally:
            _give_back(self.layer, self.own, held=self.held)


def rewritten(layer: type) -> type | None:
    """Return the class that stands in for one that does not call the interface, if there is one."""
    name = f"{layer.__module__}.{layer.__qualname__}".removeprefix("transformers.models.")
    file = _REWRITTEN.get(name)
    if file is None:
        return None
    module = importlib.import_module(f"attnkit_plugins.hosts.transformers.rewrites.{file}")
    found: type = getattr(module, layer.__name__)
    return found


def seen_as(layer: nn.Module, stand_in: type) -> nn.Module:
    """Look at a layer as one of another class; its members are those of the layer."""
    view: Any = object.__new__(stand_in)
    object.__setattr__(view, "__dict__", layer.__dict__)
    looked: nn.Module = view
    return looked


def attach(layer: nn.Module, stand_in: type, put: Callable[[], Attachment]) -> Rewritten:
    """Give a layer another class, see `rewritten`, and then ``put`` a mixer there."""
    own, held = type(layer), "config" in vars(layer)
    layer.__class__ = stand_in
    try:
        return Rewritten(put(), layer, own, held)
    except BaseException:
        _give_back(layer, own, held=held)
        raise


def _give_back(layer: nn.Module, own: type, *, held: bool) -> None:
    layer.__class__ = own
    if not held:
        vars(layer).pop("config", None)
