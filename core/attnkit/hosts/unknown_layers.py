"""Layers that attend and that no host knows: watched for while a model runs, to be told of.

A layer that calls torch's attention function, or takes the softmax of a square of logits, attends.
It is the module whose method does it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from attnkit.hosts.mounts import original, site_path

if TYPE_CHECKING:
    from types import FrameType

_SOFTMAX = (functional.softmax, torch.softmax, torch.Tensor.softmax)


class UnknownLayers(TorchFunctionMode):
    """Notes, while it is entered, the layers of a model that attend and are at none of the sites.

    Attributes:
        found: Their paths, by the names of their classes.
    """

    def __init__(self, model: nn.Module, sites: Sequence[str]) -> None:
        super().__init__()
        self.found: dict[str, dict[str, None]] = {}
        self._paths = {id(module): site_path(name) for name, module in model.named_modules()}
        self._sites = sites

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        given = args[0] if args else (kwargs or {}).get("input")
        attends = func is functional.scaled_dot_product_attention
        if attends or (func in _SOFTMAX and _is_square(given)):
            self._note()
        return func(*args, **(kwargs or {}))

    def remarks(self) -> tuple[str, ...]:
        """Say what was found."""
        return tuple(
            f"{layer} ({', '.join(paths)}) takes a softmax over as many as there are rows, as "
            "attention does, and is no site: it stays as it is; see attnkit.declare"
            for layer, paths in self.found.items()
        )

    def _note(self) -> None:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            module = frame.f_locals.get("self")
            path = self._paths.get(id(module))
            if path is not None and not isinstance(module, nn.Softmax):
                if not any(path == each or path.startswith(f"{each}.") for each in self._sites):
                    layer = original(type(module)).__name__
                    self.found.setdefault(layer, {})[path] = None
                return
            frame = frame.f_back


def _is_square(logits: object) -> bool:
    if not isinstance(logits, torch.Tensor) or logits.dim() < 3:
        return False
    return logits.shape[-1] == logits.shape[-2] > 1
