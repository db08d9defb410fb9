"""What names a subject, before it is built and in a script; how a call of it may be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from attnkit.registry import registry
from attnkit_contracts.definitions.answers import Answers

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.interface import Implementation, Variant
    from attnkit.promises import Promises
    from attnkit_contracts.catalogue import Level


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


class Reading(NamedTuple):
    """By which definition a call is judged, and how finely.

    Attributes:
        rules: The steps of a definition, `Subject.steps` or those of a mistake; None for what
            checks compare with.
        kept: (B, H, L, S), which probabilities dropout kept; None without dropout.
        dtype: Whose roundoff is allowed; None for the subject's.
        probes: How many disturbed evaluations a unit is estimated from; None for what is usual.
    """

    rules: Any = None
    kept: Tensor | None = None
    dtype: torch.dtype | None = None
    probes: int | None = None


RIGHTLY = Reading()


class Written(NamedTuple):
    """How a script names a variant.

    Attributes:
        imports: Lines that import or make it.
        name: What is given as a variant.
        value: The variant itself.
    """

    imports: list[str]
    name: str
    value: str


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
