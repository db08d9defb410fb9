"""Which check instances there are: every check on every subject that it is about."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, get_args

from attnkit.errors import ArgumentError, RegistryError
from attnkit.promises import ALL_DTYPES, Device
from attnkit.registry import registry
from attnkit_contracts.catalogue import TIERS, Check, Tier, all_checks
from attnkit_contracts.definitions.answers import Answers
from attnkit_contracts.foreign.layers import is_foreign
from attnkit_contracts.running.instance import Instance
from attnkit_contracts.subjects.families import suite_family
from attnkit_contracts.subjects.opener import names_of, targets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attnkit.interface import Variant
    from attnkit_contracts.subjects.target import Target


def plan(
    *variants: Variant | str,
    tier: Tier = "fast",
    dtypes: Iterable[str] | None = None,
    device: str = "cpu",
    implementations: Iterable[str] | None = None,
    seed: int = 0,
) -> tuple[Instance, ...]:
    """Return every check instance that applies, in a fixed order; arguments as of `check`."""
    if tier not in TIERS:
        raise ArgumentError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")
    if device.partition(":")[0] not in get_args(Device):
        raise ArgumentError(f"device must be one of {', '.join(get_args(Device))}, got {device!r}")
    tiers = TIERS[: TIERS.index(tier) + 1]
    checks = [each for each in all_checks() if each.tier in tiers]
    found = resolved(variants)
    some = None if dtypes is None else _known("dtypes", dtypes, ALL_DTYPES)
    offered = [name for variant in found for name in names_of(variant)]
    named = None if implementations is None else _known("implementations", implementations, offered)
    answers = Answers()
    return tuple(
        Instance(target, each, params)
        for variant in found
        for target in targets(
            variant,
            dtypes=some,
            device=device,
            implementations=named,
            seed=seed,
            answers=answers,
        )
        for each in checks
        if applies(each, target)
        for params in each.cases(target.promises)
    )


def _known(what: str, given: Iterable[str], offered: Iterable[str]) -> tuple[str, ...]:
    """Return the names that are asked for, all of which must exist."""
    names, offered = tuple(given), tuple(dict.fromkeys(offered))
    for name in names:
        if name not in offered:
            few = ", ".join(offered[:12]) + (" ..." if len(offered) > 12 else "")
            raise ArgumentError(f"{what} must be of {few or 'none'}, got {name!r}")
    return names


def applies(check: Check, target: Target) -> bool:
    """Return whether a check is about this subject."""
    family = suite_family(target.variant)
    return (
        bool({family.name, family.like} & set(check.families))
        and target.level in check.levels
        and target.variant.relation in check.relations
        and target.dtype in check.dtypes
        and set(check.fields) <= set(target.variant.config.model_fields)
        and not (check.needs_definition and target.variant.layer_definition is None)
        and not (check.plugins_only and is_foreign(target.variant))
        and check.applies(target.promises)
    )


def must_exist(expected: Iterable[str], planned: Iterable[Instance]) -> None:
    """Raise `ArgumentError` unless every id is that of an instance of any tier.

    An id outside ``planned`` is looked for in the whole plan of its variant: a run of a lower
    tier, or of one implementation, may be given the list of the whole variant.
    """
    planned = tuple(planned)
    ids = {each.id for each in planned}
    variants = {each.target.variant.name: each.target.variant for each in planned}
    for wanted in expected:
        if wanted in ids:
            continue
        name, *parts = wanted.split("/")
        if len(parts) > 3:
            whole = plan(variants.get(name, name), tier="full", device=parts[2])
            ids |= {each.id for each in whole}
        if wanted not in ids:
            nearest = difflib.get_close_matches(wanted, ids, n=1, cutoff=0.5)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ArgumentError(f"expected_failures: there is no check instance {wanted!r}.{hint}")


def resolved(variants: tuple[Variant | str, ...]) -> tuple[Variant, ...]:
    """Return the variants asked for; without any, all that load."""
    known = registry.default()
    if variants:
        return tuple(known.get(each) if isinstance(each, str) else each for each in variants)
    broken = broken_names()
    return tuple(known.get(name) for name in known.names() if name not in broken)


def broken_names() -> tuple[str, ...]:
    """Return the installed names that do not resolve to a variant."""
    known, broken = registry.default(), []
    for name in known.names():
        try:
            known.get(name)
        except RegistryError:
            broken.append(name)
    return tuple(broken)
