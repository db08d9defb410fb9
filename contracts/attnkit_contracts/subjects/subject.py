"""What checks are run on: an operation of one implementation, or the layer of a variant.

A subject draws the inputs it can take, so that a check need not know what a variant promises:
`draw` gives an ordinary call within the promises, and every check asks for what it is about.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from attnkit.registry import registry
from attnkit_contracts.definitions.answers import Answers
from attnkit_contracts.inputs.calls import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from attnkit.interface import Implementation, Variant
    from attnkit.promises import Promises
    from attnkit_contracts.catalogue import Level
    from attnkit_contracts.inputs.calls import Call

MOST_CALLS = 64
"""How many calls a subject remembers."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Which subject: cheap to make and to name, nothing is built yet.

    Attributes:
        variant: What is checked.
        implementation: A name, or ``auto`` for what the choice takes; ``layer`` for the layer.
        promises: What this subject claims.
        dtype: Name of the dtype of the inputs.
        device: ``cpu`` or ``cuda``.
        level: ``operation`` or ``layer``.
        seed: Of all random numbers.
        answers: The definitions', to calls of targets that are checked together.
    """

    variant: Variant
    implementation: str
    promises: Promises
    dtype: str
    device: str
    level: Level
    seed: int = 0
    answers: Answers = field(default_factory=Answers, repr=False, compare=False)

    def __str__(self) -> str:
        """Name it: variant/implementation/dtype/device."""
        return f"{self.variant.name}/{self.implementation}/{self.dtype}/{self.device}"


class Subject(Protocol):
    """What every check can ask of what it is run on.

    Attributes:
        target: Which subject this is.
        last: The last call, as text; for the reproduction of a failure.
        calls: The latest calls, for the diagnosis of a failure.
    """

    target: Target
    last: str = ""
    calls: deque[Call]

    def __init__(self, target: Target) -> None:
        self.target = target
        self.calls = deque(maxlen=MOST_CALLS)

    @property
    def promises(self) -> Promises:
        """What it claims."""
        return self.target.promises

    @property
    def family(self) -> str:
        """Of the variant."""
        return self.target.variant.family

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.target.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs."""
        return dtype_of(self.target.dtype)

    def random(self, label: str) -> torch.Generator:
        """Return a source of random numbers, another one for every label."""
        return generator(self.target.seed, label)

    def cast(self, tensor: Tensor) -> Tensor:
        """Return the tensor in the dtype and on the device of this subject."""
        return tensor.to(self.device, self.dtype)

    def wide(self, tensor: Tensor) -> Tensor:
        """Return the tensor in the dtype of sums and states: float32, float64 for float64."""
        return tensor.to(self.device, torch.promote_types(self.dtype, torch.float32))

    def draw(self, label: str, *, batch: int = 2, length: int = 33) -> Call:
        """Return an ordinary call of ``length`` tokens that the promises allow.

        Args:
            label: Two labels give two sets of numbers.
            batch: B.
            length: L, and S too.
        """
        raise NotImplementedError

    def __call__(self, call: Call) -> Tensor:
        """Return the output, (B, H, L, Ev) of an operation, (B, L, D) of a layer."""
        raise NotImplementedError

    def definition(self, call: Call) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Return the float64 function of this call's tensors, or raise `InconclusiveError`."""
        raise NotImplementedError


def dtype_of(name: str) -> torch.dtype:
    """Return ``torch.float32`` for ``float32``."""
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def offered(variant: Variant) -> tuple[Implementation, ...]:
    """Return the variant's implementations, those of extensions included."""
    known = registry.default()
    if variant.name in known.names():
        return known.implementations(variant.name)
    return variant.implementations
