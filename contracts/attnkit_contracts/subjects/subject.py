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
from attnkit_contracts.foreign.functions import NO_LAYER
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

    def open(self) -> Subject:
        """Build the subject."""
        from attnkit_contracts.subjects import layers, operations

        if self.level == "layer" or self.variant.family == "feedforward":
            return layers.LayerSubject(self)
        if self.variant.family == "softmax":
            return operations.SoftmaxOperation(self)
        return operations.RecurrenceOperation(self)


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


def targets(
    variant: Variant,
    *,
    dtypes: tuple[str, ...] | None,
    device: str,
    implementations: tuple[str, ...] | None,
    seed: int,
    answers: Answers,
) -> list[Target]:
    """Return the subjects of a variant: implementations first, then the layer, by dtype."""
    found = []
    for name, promises, level in _claims(variant):
        if implementations is not None and name not in implementations:
            continue
        if device.partition(":")[0] not in promises.devices:
            continue
        found += [
            Target(
                variant=variant,
                implementation=name,
                promises=_within(promises, dtype),
                dtype=dtype,
                device=device,
                level=level,
                seed=seed,
                answers=answers,
            )
            for dtype in promises.dtypes
            if dtypes is None or dtype in dtypes
        ]
    return found


def _within(promises: Promises, dtype: str) -> Promises:
    """Return the promises with the claims of speed that are about this dtype."""
    speed = tuple(each for each in promises.speed if each.dtype == dtype)
    return promises if speed == promises.speed else promises.model_copy(update={"speed": speed})


def names_of(variant: Variant) -> tuple[str, ...]:
    """Return what ``implementations`` may name: its implementations, ``auto``, ``layer``."""
    return tuple(name for name, _, _ in _claims(variant))


def _claims(variant: Variant) -> list[tuple[str, Promises, Level]]:
    """Return who claims what, and where: named implementations, the choice, the layer."""
    claims: list[tuple[str, Promises, Level]] = [
        (one.name, one.promises, "operation") for one in offered(variant)
    ]
    if variant.family in ("softmax", "recurrence"):
        claims.append(("auto", variant.promises, "operation"))
    if variant.layer == NO_LAYER:
        return claims
    return [*claims, ("layer", variant.promises, "layer")]


def offered(variant: Variant) -> tuple[Implementation, ...]:
    """Return the variant's implementations, those of extensions included."""
    known = registry.default()
    if variant.name in known.names():
        return known.implementations(variant.name)
    return variant.implementations
