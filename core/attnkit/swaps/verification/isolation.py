"""Runs of a model that leave no trace: neither in the model, nor in its inputs, nor in torch."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_OWN = {"_parameters", "_modules"}
"""What of a module is left as a run leaves it: what shards parameters swaps them by the call."""

_HELD = (dict, list, OrderedDict, set)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in eval mode without gradients; put back attributes, buffers, hooks, random states.

    So every run starts from the same state, and leaves none.
    """
    noted = [(vars(module), _attributes(module)) for module in model.modules()]
    held = [each for _, kept in noted for each in (*kept.values(), *kept["_buffers"].values())]
    contents = [(each, copied) for each in held if (copied := _content(each)) is not None]
    try:
        with torch.random.fork_rng(cuda_devices(model)), torch.no_grad():
            for members, _ in noted:
                members["training"] = False
            yield
    finally:
        for members, kept in noted:
            for name in members.keys() - kept.keys() - _OWN:
                del members[name]
            members.update(kept)
        for each, copied in contents:
            _refill(each, copied)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OWN}


def _content(holder: Any) -> Any:
    """Return a copy of what may be written to; None for anything else."""
    if isinstance(holder, torch.Tensor):
        plain = holder.layout == torch.strided and not holder.is_meta and not holder.is_nested
        return holder.detach().clone() if plain else None
    # its own copy, as copy.copy rebuilds an OrderedDict, and a module has a dozen
    return holder.copy() if type(holder) in _HELD else None


def _refill(holder: Any, content: Any) -> None:
    if isinstance(holder, torch.Tensor):
        if not torch.equal(holder, content):
            with torch.no_grad():
                holder.copy_(content)
        return
    holder.clear()
    (holder.extend if isinstance(holder, list) else holder.update)(content)


def fresh(sample: Mapping[str, object]) -> dict[str, object]:
    """Return a sample to run once: what a model may write to, a cache say, is a copy."""
    return {
        name: value if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        for name, value in sample.items()
    }


def cuda_devices(model: nn.Module) -> list[int]:
    """Return the GPUs that hold parameters."""
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


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
