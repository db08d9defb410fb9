"""What a swapped module holds, whose function is looked up by a name in its own config.

Attention layers and experts both do. A swapped one gets a copy of its config that says ``attnkit``,
and under `MARK` the `Binding` that the function of that name asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from attnkit.hosts.protocol import Mixer

MARK = "_attnkit"
"""Attribute of a swapped module that holds its `Binding`."""


@dataclass
class Binding:
    """What a swapped module holds.

    Attributes:
        mixer: Answers its calls.
        label: Name of what was swapped in.
        config: The module's config before any swap.
        below: The binding that this one stands on.
        register: Lets transformers know the function of the name.
    """

    mixer: Mixer
    label: str
    config: Any
    below: Binding | None
    register: Callable[[], None]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come out of a pickle, perhaps in a process where nothing was swapped yet."""
        self.__dict__.update(state)
        self.register()


@dataclass
class Bound:
    """See `attnkit.hosts.protocol.Attachment`."""

    path: str
    module: nn.Module
    binding: Binding

    def blocked(self) -> str | None:
        top = self.module.__dict__.get(MARK)
        if top is self.binding:
            return None
        if top is None:
            return f"{self.path}: the swap was taken out by other means"
        mine = self.binding.label
        return f"{self.path}: {top.label!r} was swapped in after {mine!r}; restore that swap first"

    def undo(self) -> None:
        below = self.binding.below
        if below is not None:
            self.module.__dict__[MARK] = below
            return
        self.module.config = self.binding.config
        del self.module.__dict__[MARK]


def bind(
    module: nn.Module,
    path: str,
    mixer: Mixer,
    label: str,
    told: Callable[[Any], Any],
    register: Callable[[], None],
) -> Bound:
    """Put a mixer at a module, on top of one that may be there; ``told`` copies its config."""
    below = module.__dict__.get(MARK)
    binding = Binding(mixer, label, own_config(module), below, register)
    if below is None:
        register()
        module.config = told(binding.config)
    module.__dict__[MARK] = binding
    return Bound(path, module, binding)


def own_config(module: nn.Module) -> Any:
    """Return the config that a module had before any swap."""
    binding = module.__dict__.get(MARK)
    return module.config if binding is None else binding.config
