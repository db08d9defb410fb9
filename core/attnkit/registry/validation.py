"""Is a declared variant complete? Asked of installed and of session variants alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from attnkit.families import BUILT_IN, Family
from attnkit.interface import Implementation, LayerConfig, Options, Variant
from attnkit.placements import Placement, SiteOptions
from attnkit.problem import Problem
from attnkit.promises import CommonPromises, Promises, Relation
from attnkit.sites import Kind
from attnkit.text import kind_of


def complaint(variant: object, family_of: Callable[[str], Family | None]) -> str | None:
    """Return the first thing wrong with a declared variant, in words, or None."""
    if not isinstance(variant, Variant):
        return f"expected a Variant, got {kind_of(variant)}"
    return next(_complaints(variant, family_of), None)


def family_complaint(family: Family) -> str | None:
    """Return the first thing wrong with a family, in words, or None."""
    return next(_family_complaints(family), None)


def implementation_complaint(implementation: object) -> str | None:
    """Return the first thing wrong with an implementation, in words, or None."""
    if not isinstance(implementation, Implementation):
        return f"expected an Implementation, got {kind_of(implementation)}"
    if not _is_name(implementation.name):
        return f"an implementation's name must be an {_NAME}, got {implementation.name!r}"
    wrong = next(_implementation_complaints(implementation), None)
    return wrong and f"implementation {implementation.name!r}: {wrong}"


def _family_complaints(family: Family) -> Iterator[str]:
    if not _is_name(family.name):
        yield f"a family's name must be an {_NAME}, got {family.name!r}"
    if family.name in BUILT_IN:
        yield f"family {family.name!r} is attnkit's own; give yours another name"
    yield from _not_derived("problem", family.problem, Problem)
    yield from _not_derived("promises", family.promises, CommonPromises)
    yield from _not_derived("options", family.options, SiteOptions)
    if family.kind not in get_args(Kind):
        yield f"kind must be one of {_listed(get_args(Kind))}, got {family.kind!r}"
    if not family.door or type(family.door) is not str:
        yield f"door must say how its variants are run, got {kind_of(family.door)}"
    operation: object = family.operation
    if not isinstance(operation, bool):
        yield f"operation must be a bool, got {kind_of(operation)}"
    if family.first_call is not None and not _is_reference(family.first_call):
        yield f"first_call must be {_REFERENCE} or None, got {kind_of(family.first_call)}"
    for field in ("swap", "suite"):
        value = getattr(family, field)
        if isinstance(value, str) and not _is_reference(value):
            yield f"{field} must be 'package.module:attribute' or an object, got {value!r}"


def _complaints(variant: Variant, family_of: Callable[[str], Family | None]) -> Iterator[str]:
    if not _is_name(variant.name):
        yield f"a variant's name must be an {_NAME}, got {variant.name!r}"
    family = family_of(variant.family)
    if family is None:
        yield (
            f"family must be one of {_listed(tuple(BUILT_IN))} or one that a plugin offers by the "
            f"hook attnkit_families, got {variant.family!r}"
        )
        return
    if variant.relation not in get_args(Relation):
        yield f"relation must be one of {_listed(get_args(Relation))}, got {variant.relation!r}"
    promises: object = variant.promises
    if not isinstance(promises, Promises):
        yield f"promises must be Promises, got {kind_of(promises)}"
    else:
        yield from _strange_promises(family, "promises", promises)
    yield from _not_derived("config", variant.config, LayerConfig)
    yield from _not_derived("options", variant.options, Options)
    yield from _placement_complaints(variant.placement)
    if not _is_reference(variant.layer):
        yield f"layer must be {_REFERENCE}, got {kind_of(variant.layer)}"
    if variant.layer_definition is not None and not _is_reference(variant.layer_definition):
        wrong = kind_of(variant.layer_definition)
        yield f"layer_definition must be None, or {_REFERENCE}, got {wrong}"
    if not _is_tuple(variant.implementations):
        yield f"implementations must be a tuple, got {kind_of(variant.implementations)}"
    yield from filter(None, map(implementation_complaint, variant.implementations))
    for each in variant.implementations:
        yield from _strange_promises(family, f"promises of {each.name!r}", each.promises)
    names = [implementation.name for implementation in variant.implementations]
    if family.operation and names[:1] != ["reference"]:
        yield (
            f"a {variant.family} variant needs an implementation named 'reference', first; "
            f"got {_listed(names)}"
        )
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"implementation names must be unique, got {name!r} {names.count(name)} times"


def _strange_promises(family: Family, where: str, promises: Promises) -> Iterator[str]:
    strange = promises.beyond(family.promises)
    if strange:
        yield (
            f"{where}: {_listed(strange)} is nothing that a variant of family {family.name!r} can "
            "promise"
        )


def _placement_complaints(placement: object) -> Iterator[str]:
    if placement is None:
        return
    if not isinstance(placement, Placement):
        yield f"placement must be a Placement or None, got {kind_of(placement)}"
        return
    if not _is_reference(placement.build):
        yield f"placement.build must be {_REFERENCE}, got {kind_of(placement.build)}"
    yield from _not_derived("placement.options", placement.options, SiteOptions)


def _implementation_complaints(implementation: Implementation) -> Iterator[str]:
    if not _is_reference(implementation.function):
        yield f"function must be {_REFERENCE}, got {kind_of(implementation.function)}"
    promises: object = implementation.promises
    if not isinstance(promises, Promises):
        yield f"promises must be Promises, got {kind_of(promises)}"
    for field in ("cost", "refuses"):
        value = getattr(implementation, field)
        if not callable(value):
            yield f"{field} must be a function of a Problem, got {kind_of(value)}"
    if not _is_tuple(implementation.packages):
        yield f"packages must be a tuple of names, got {kind_of(implementation.packages)}"


def _not_derived(field: str, value: object, base: type) -> Iterator[str]:
    if not (isinstance(value, type) and issubclass(value, base)):
        yield f"{field} must be a subclass of {base.__name__}, got {kind_of(value)}"


_NAME = "identifier other than 'auto'"
_REFERENCE = "'package.module:attribute' or a callable"


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and name != "auto"


def _is_reference(value: object) -> bool:
    if isinstance(value, str):
        return all(value.partition(":")[::2])
    return callable(value)


def _is_tuple(value: object) -> bool:
    return isinstance(value, tuple)


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
