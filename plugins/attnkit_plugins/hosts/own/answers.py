"""What runs in the place of a method that was declared to be the attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnkit.errors import ArgumentError, UnsupportedError
from attnkit.hosts.own_modules import Declaration, declaration
from attnkit.hosts.protocol import Call
from attnkit.hosts.sdpa_calls import autocast, fit, mixed
from attnkit.masks.constructors import Mask, Sizes, causal, full, sliding_window
from attnkit.masks.reader import read_mask

if TYPE_CHECKING:
    from attnkit.hosts.mounts import Mount


def answer(mount: Mount, *args: Any, **keywords: Any) -> Tensor:
    """Answer a call of a declared method.

    Raises:
        UnsupportedError: A parameter that was not declared has another value than its default.
    """
    declared = declaration(type(mount.module))
    assert declared is not None
    given = dict(zip(declared.names, args, strict=False)) | keywords
    _check(mount, declared, given)
    names = declared.parameters
    query, key, value = autocast(
        *(_turned(given[names[each]], declared) for each in ("query", "key", "value"))
    )
    out = mixed(mount, Arrived(mount, declared, given, query, key, value))
    return _turned(out, declared)


@dataclass
class Arrived:
    """See `attnkit.hosts.protocol.Request`; ``given`` holds the method's arguments by name."""

    mount: Mount
    declared: Declaration
    given: dict[str, Any]
    query: Tensor
    key: Tensor
    value: Tensor

    def call(self) -> Call:
        """Translate what was declared."""
        needs, module = self.mount.needs, self.mount.module
        mask: Mask = causal() if needs.causal else full()
        if needs.window is not None:
            mask = mask & sliding_window(needs.window)
        bias: Tensor | None = None
        for meaning in ("mask", "hidden", "bias"):
            each, more = self._read(meaning)
            mask = each if mask is full() else mask & each
            if more is not None:
                bias = more if bias is None else bias + more
        return Call(
            query=self.query,
            key=self.key,
            value=self.value,
            mask=mask,
            bias=bias,
            scale=needs.scale,
            softcap=needs.softcap,
            dropout_p=needs.dropout if module.training else 0.0,
            aligned=self.query.shape[2] == self.key.shape[2] or bool(needs.causal),
        )

    def own(self, query: Tensor, key: Tensor, value: Tensor, samples: slice) -> Tensor:
        """Run the module's own method."""
        names, batch = self.declared.parameters, self.query.shape[0]
        given = {
            name: fit(each, batch, query.dtype, samples) if isinstance(each, torch.Tensor) else each
            for name, each in self.given.items()
        }
        tensors = {"query": query, "key": key, "value": value}
        given |= {names[each]: _turned(tensor, self.declared) for each, tensor in tensors.items()}
        out = self.mount.own()(**given)
        if not isinstance(out, torch.Tensor):
            raise UnsupportedError(
                f"{self._method()} must return the mixed values alone, got {type(out).__name__}"
            )
        return _turned(out, self.declared)

    def _read(self, meaning: str) -> tuple[Mask, Tensor | None]:
        name = self.declared.parameters.get(meaning)
        given = None if name is None else self.given.get(name)
        if given is None:
            return full(), None
        if not isinstance(given, torch.Tensor) or given.dim() > 4:
            raise ArgumentError(
                f"{name} of {self._method()} must be a tensor of at most 4 dimensions, broadcast "
                f"to (B, H, L, S), got {type(given).__name__}"
            )
        view = given[(None,) * (4 - given.dim())]
        if meaning == "bias":
            return full(), view
        batch, heads, length, _ = self.query.shape
        sizes = Sizes(batch, heads, length, self.key.shape[2])
        hides, window = meaning == "hidden", self.mount.needs.window
        return read_mask(f"{name}", given, view, sizes, hides=hides, window=window)

    def _method(self) -> str:
        return f"{type(self.mount.module).__name__}.{self.declared.method}"


def _check(mount: Mount, declared: Declaration, given: dict[str, Any]) -> None:
    told = set(declared.parameters.values())
    unknown = [
        name
        for name, value in given.items()
        if name not in told
        and value is not None
        and value is not False
        and not _is_default(declared, name, value)
    ]
    if unknown:
        layer = type(mount.module).__name__
        raise UnsupportedError(
            f"{', '.join(unknown)}: {layer}.{declared.method} was called with what its declaration "
            f"does not speak of; declared are {', '.join(sorted(told))}"
        )


def _is_default(declared: Declaration, name: str, value: object) -> bool:
    if name not in declared.defaults:
        return False
    default = declared.defaults[name]
    return value is default or (isinstance(value, int | float | str) and value == default)


def _turned(tensor: Tensor, declared: Declaration) -> Tensor:
    """Turn between the method's layout and (B, H, L, E)."""
    return tensor if declared.layout == "BHLE" else tensor.transpose(1, 2)
