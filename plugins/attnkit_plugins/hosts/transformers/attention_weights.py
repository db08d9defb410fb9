"""Attention weights, which no variant returns: a swapped model that is asked for them says so.

Some models hand the question on to their layers, where `dispatch` refuses it. Others keep it to
themselves and take what comes back, or nothing; or go past the function that a variant stands for.
So a hook before every model around a swapped layer looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from transformers import PreTrainedModel

from attnkit.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import nn

    from attnkit.hosts.protocol import Attachment


@dataclass(eq=False)
class Refusal:
    """The hook; ``layers`` are those within that are swapped."""

    layers: int = 0

    def __call__(self, model: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        asked = keywords.get("output_attentions")
        if asked is None:
            asked = getattr(model.config, "output_attentions", False)
        if asked:
            refuse()


def refuse() -> NoReturn:
    """Raise `UnsupportedError`."""
    raise UnsupportedError(
        "output_attentions: needs attention weights, a variant returns none; restore the swap to "
        "get them"
    )


@dataclass
class Guarded:
    """See `attnkit.hosts.protocol.Attachment`; one whose ``models`` have the hook."""

    attachment: Attachment
    models: Sequence[nn.Module]

    def blocked(self) -> str | None:
        return self.attachment.blocked()

    def undo(self) -> None:
        try:
            self.attachment.undo()
        finally:
            for model in self.models:
                _release(model)


def guarded(model: nn.Module, path: str, put: Callable[[], Attachment]) -> Guarded:
    """Put a mixer at a layer, and the hook before all models around it."""
    parts = path.split(".")
    heads = [".".join(parts[:count]) for count in range(len(parts))]
    around = [each for head in heads if _is_model(each := model.get_submodule(head))]
    made = Guarded(put(), around)
    for each in around:
        _hook_of(each).layers += 1
    return made


def _is_model(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel)


def _hook_of(model: nn.Module) -> Refusal:
    for hook in model._forward_pre_hooks.values():
        if isinstance(hook, Refusal):
            return hook
    made = Refusal()
    model.register_forward_pre_hook(made, with_kwargs=True)
    return made


def _release(model: nn.Module) -> None:
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, Refusal):
            hook.layers -= 1
            if not hook.layers:
                del model._forward_pre_hooks[key], model._forward_pre_hooks_with_kwargs[key]
