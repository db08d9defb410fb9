"""Which subjects a variant has, and what each of them is built of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit_contracts.foreign.functions import NO_LAYER
from attnkit_contracts.subjects.families import suite_family
from attnkit_contracts.subjects.target import Target, offered

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit.promises import Promises
    from attnkit_contracts.catalogue import Level
    from attnkit_contracts.definitions.answers import Answers
    from attnkit_contracts.subjects.subject import Subject


def subject_of(target: Target) -> Subject:
    """Build the subject of a target."""
    family = suite_family(target.variant)
    if target.level == "layer" or family.operation is None:
        return family.layer(target)
    return family.operation(target)


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
    if suite_family(variant).operation is not None:
        claims.append(("auto", variant.promises, "operation"))
    if variant.layer == NO_LAYER:
        return claims
    return [*claims, ("layer", variant.promises, "layer")]
