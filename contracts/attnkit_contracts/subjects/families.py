"""How the suite judges each family: one record a family, and nothing else that asks for its name.

A variant of a family that has no record is judged through its layer alone, by what must hold of any
layer. A further family is one more record here: of the subject of its operation, if it has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnkit.errors import ArgumentError
from attnkit.interface import load
from attnkit.registry.registry import default
from attnkit.text import kind_of
from attnkit_contracts.subjects.layers import LayerSubject, MixerLayer, RecurrenceLayer
from attnkit_contracts.subjects.mixtures import MixtureLayer
from attnkit_contracts.subjects.recurrence import RecurrenceOperation
from attnkit_contracts.subjects.softmax import SoftmaxOperation

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit_contracts.subjects.subject import Subject


@dataclass(frozen=True, kw_only=True)
class SuiteFamily:
    """How variants of one family are judged.

    Attributes:
        name: Of the family.
        operation: The subject of its operation; None where layers alone are judged, those of each
            implementation among them.
        layer: The subject of its layers.
        like: The family whose checks it has, beside those that name its own.
    """

    name: str
    operation: type[Subject] | None = None
    layer: type[LayerSubject] = MixerLayer
    like: str = "mixer"


FAMILIES = {
    each.name: each
    for each in (
        SuiteFamily(name="softmax", operation=SoftmaxOperation, layer=LayerSubject, like=""),
        SuiteFamily(
            name="recurrence", operation=RecurrenceOperation, layer=RecurrenceLayer, like=""
        ),
        SuiteFamily(name="feedforward", layer=MixtureLayer, like=""),
        SuiteFamily(name="mixer", like=""),
    )
}
"""The families that the suite knows, by name."""


def suite_family(variant: Variant) -> SuiteFamily:
    """Return how a variant is judged: as its family says, or through its layers."""
    if variant.family in FAMILIES:
        return FAMILIES[variant.family]
    told = default().family(variant.family).suite
    if told is None:
        return SuiteFamily(name=variant.family)
    try:
        found: object = load(told) if isinstance(told, str) else told
    except Exception as error:  # of a plugin
        raise ArgumentError(
            f"family {variant.family!r}: suite {told!r} does not load: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, SuiteFamily) or found.name != variant.family:
        raise ArgumentError(
            f"family {variant.family!r}: suite must be an attnkit_contracts.SuiteFamily of that "
            f"name, got {getattr(found, 'name', kind_of(found))!r}"
        )
    return found


def uncompared(variant: Variant) -> bool:
    """Say whether nothing compares its implementations: its family brings no operation to judge."""
    several = len(variant.implementations) > 1
    return (
        several
        and default().family(variant.family).operation
        and (suite_family(variant).operation is None)
    )
