"""Runs of a model that leave no trace: neither in the model, nor in its inputs, nor in torch."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

_PLAIN = (bool, int, float, str, type(None))
"""What a module may note about a call, the longest length it has seen say."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in eval mode without gradients; put back modes, plain attributes, buffers, random states.

    So every run starts from the same state, and leaves none.
    """
    noted = [(module, _plain(module)) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        with torch.random.fork_rng(cuda_devices(model)), torch.no_grad():
            for module, _ in noted:
                module.training = False
            yield
    finally:
        for module, before in noted:
            for name in _plain(module).keys() - before.keys():
                del module.__dict__[name]
            module.__dict__.update(before)
        for module, name, buffer, content in buffers:
            module._buffers[name] = buffer
            if buffer is not None and content is not None and not torch.equal(buffer, content):
                with torch.no_grad():
                    buffer.copy_(content)


def fresh(sample: Mapping[str, object]) -> dict[str, object]:
    """Return a sample to run once: what a model may write to, a cache say, is a copy."""
    return {
        name: value if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        for name, value in sample.items()
    }


def cuda_devices(model: nn.Module) -> list[int]:
    """Return the GPUs that hold parameters."""
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def _plain(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}


class Note:
    """The modules of a model as they are: their classes, attributes, submodules and hooks."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (name, module, type(module), dict(vars(module)), _tables(module))
            for name, module in model.named_modules()
        ]

    def put_back(self) -> list[str]:
        """Put back, by identity, what has changed since; return where that was."""
        return [where for kept in self._kept for where in _put_back(*kept)]


_GONE = object()


def _put_back(
    path: str,
    module: nn.Module,
    layer: type,
    members: dict[str, object],
    tables: dict[str, dict[object, object]],
) -> Iterator[str]:
    where, now = path or type(module).__name__, vars(module)
    if type(module) is not layer:
        module.__class__ = layer
        yield f"the class of {where}"
    names = {**members, **now}
    differing = [n for n in names if now.get(n, _GONE) is not members.get(n, _GONE)]
    if differing:
        now.clear()
        now.update(members)
        yield from (f"{where}.{name}" for name in differing)
    for name, entries in tables.items():
        table: dict[object, object] = now[name]
        kept = list(table) == list(entries)
        if not kept or any(table[key] is not each for key, each in entries.items()):
            table.clear()
            table.update(entries)
            yield f"{where}.{name}"


def _tables(module: nn.Module) -> dict[str, dict[object, object]]:
    """Return the dicts of a module, its submodules and hooks among them."""
    return {name: dict(each) for name, each in vars(module).items() if isinstance(each, dict)}
