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
