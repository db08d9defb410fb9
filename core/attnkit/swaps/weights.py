"""Weights that a swap brings into a model, kept in a file beside its receipt.

Recurrences bring parameters of their own, mixtures of experts take the place of a dense layer.
A checkpoint of the swapped model lacks what its own class does not know: loaded, the dense layers
are random and the new weights gone. So both are kept, by name:

    added.PATH.NAME       a tensor of the module that the swap put there
    replaced.PATH.NAME    a tensor of the layer whose place it took
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnkit.errors import ConfigError, UnsupportedError
from attnkit.hosts.mounts import submodule

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from attnkit.swaps.families import Assignment, Standing


@dataclass(frozen=True)
class Added:
    """A module with weights that a swap put into a model.

    Attributes:
        path: Of the site.
        module: What was put there.
        replaced: The layer whose place it takes; None if it stands beside.
    """

    path: str
    module: nn.Module
    replaced: nn.Module | None


def added_by(
    model: nn.Module, assignments: Sequence[Assignment], mixers: Sequence[Standing]
) -> tuple[Added, ...]:
    """Return what mixers will bring into a model where they are not attached yet."""
    brought = []
    for assignment, mixer in zip(assignments, mixers, strict=True):
        if mixer.brings is not None and mixer.brings[0].state_dict():
            (module, takes_place), path = mixer.brings, assignment.site.path
            brought.append(Added(path, module, submodule(model, path) if takes_place else None))
    return tuple(brought)


def weights_path(receipt: Path) -> Path:
    """Return where the weights of a receipt lie, from where the receipt does."""
    stem = receipt.stem
    # another name beside `model.json`, whose neighbour is the model's own file
    name = stem if stem.endswith("attnkit") else f"{stem}.attnkit"
    return receipt.with_name(f"{name}.safetensors")


def save(added: Sequence[Added], path: Path) -> None:
    """Write the weights that a swap added and those that it replaced."""
    _safetensors().save_file(
        {
            f"{kind}.{each.path}.{name}": tensor.detach().cpu().contiguous().clone()
            for each in added
            for kind, module in _kinds(each)
            for name, tensor in module.state_dict().items()
        },
        path,
    )


def load(path: Path) -> dict[str, Tensor]:
    """Read what `save` wrote.

    Raises:
        ConfigError: There is no such file, or it is damaged.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path}: is missing, the receipt beside it is of a swap that added weights; "
            "copy it there, Swap.save wrote both; or make a new swap by attnkit.swap"
        )
    module = _safetensors()
    try:
        found: dict[str, Tensor] = module.load_file(path)
    except Exception as error:  # the package's errors derive from no narrower class
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return found


def put(kept: Mapping[str, Tensor], kind: str, path: str, module: nn.Module, file: Path) -> None:
    """Copy the weights of one module from those that `load` returned.

    Raises:
        ConfigError: They are not those of the module; nothing was copied.
    """
    head = f"{kind}.{path}."
    given = {n.removeprefix(head): tensor for n, tensor in kept.items() if n.startswith(head)}
    has = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if got != has:
        raise ConfigError(f"{file}: {head} holds {got}, {type(module).__name__} has {has}")
    module.load_state_dict(given)


def _kinds(each: Added) -> Iterator[tuple[str, nn.Module]]:
    yield "added", each.module
    if each.replaced is not None:
        yield "replaced", each.replaced


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise UnsupportedError(
            "weights that a swap added are kept by the package 'safetensors', which is not "
            "installed: pip install safetensors"
        ) from error
