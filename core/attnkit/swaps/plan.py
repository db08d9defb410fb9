"""From a plan in the user's words to one decision per site.

A plan is a variant, for every site that it can stand at, or a mapping of path patterns to
variants. A pattern is a shell pattern over whole segments of a path, anywhere in it: in
``model.layers.3.self_attn``, ``layers.[0-3]`` and ``*.self_attn`` both fit, ``layers.1`` does not
fit layer 10. The whole path of a site fits that site alone. After ``type:`` comes a shell pattern
over the class of the layer, ``type:LlamaAttention``. The first pattern that fits a site decides.
`attnkit.swaps.plan_files` reads plans from files and functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeAlias

from pydantic import ValidationError

from attnkit.errors import ArgumentError, ConfigError, SwapRefusedError
from attnkit.interface import Variant
from attnkit.registry.registry import default, get_variant
from attnkit.swaps.families import Assignment

if TYPE_CHECKING:
    from attnkit.placements import SiteOptions
    from attnkit.sites import Kind, Site

Entry: TypeAlias = str | Variant | Mapping[str, object]
Plan: TypeAlias = Entry | Mapping[str, Entry]

TYPE = "type:"
"""What a pattern over the classes of layers starts with."""


def assign(plan: Plan, sites: Sequence[Site]) -> tuple[Assignment, ...]:
    """Decide for every site that the plan speaks of, in the order of the sites.

    Raises:
        RegistryError: A name cannot be resolved to a variant.
        ArgumentError: A pattern is no string, or fits no site, or only sites of another kind, or
            only sites that earlier patterns took.
        ConfigError: An option is unknown or wrong.
        SwapRefusedError: The plan is a variant and the model has no site for it.
    """
    if not isinstance(plan, Mapping) or "variant" in plan:
        variant, options = _entry("the plan", plan)
        taken = [site for site in sites if site.kind == _kind(variant)]
        if not taken:
            raise SwapRefusedError(
                f"the model has no {_kind(variant)} site that any host knows; sites: "
                f"{_paths(sites)}"
            )
        return tuple(Assignment(site, variant, options, "*") for site in taken)
    decided: dict[str, Assignment] = {}
    for pattern, entry in plan.items():
        _check_pattern(pattern, sites)
        variant, options = _entry(f"plan[{pattern!r}]", entry)
        for site in _taken(pattern, variant, sites, decided):
            decided[site.path] = Assignment(site, variant, options, pattern)
    if not decided:
        raise ArgumentError("the plan is empty: give a variant, or a mapping of paths to variants")
    return tuple(decided[site.path] for site in sites if site.path in decided)


def fits(pattern: str, path: str) -> bool:
    """Say whether a pattern fits a run of whole segments of a path."""
    wanted, segments = pattern.split("."), path.split(".")
    return any(
        all(fnmatchcase(segments[start + k], part) for k, part in enumerate(wanted))
        for start in range(len(segments) - len(wanted) + 1)
    )


def spelled(plan: Plan) -> dict[str, dict[str, object]]:
    """Return the plan as plain data, for a receipt."""
    if not isinstance(plan, Mapping) or "variant" in plan:
        plan = {"*": plan}
    spelt = {}
    for pattern, entry in plan.items():
        variant, options = _entry(f"plan[{pattern!r}]", entry)
        given = options.model_dump(mode="json", exclude_defaults=True)
        spelt[pattern] = {"variant": variant.name, **given}
    return spelt


def _check_pattern(pattern: object, sites: Sequence[Site]) -> None:
    """Refuse a key that is no string."""
    if isinstance(pattern, str):
        return
    hint = f", such as 'layers.{pattern}'" if type(pattern) is int else ""
    raise ArgumentError(
        f"a key of the plan must be a pattern of paths, a string{hint}, got {pattern!r} "
        f"({type(pattern).__name__}); sites: {_paths(sites)}"
    )


def _taken(
    pattern: str, variant: Variant, sites: Sequence[Site], decided: Mapping[str, Assignment]
) -> list[Site]:
    """Return the sites that a pattern takes, or say why there are none."""
    kind = _kind(variant)
    fitting = _fitting(pattern, sites)
    able = [site for site in fitting if site.kind == kind]
    free = [site for site in able if site.path not in decided]
    if free:
        return free
    if able:
        earlier = dict.fromkeys(decided[site.path].pattern for site in able)
        raise ArgumentError(
            f"pattern {pattern!r} takes no site: {', '.join(map(repr, earlier))} before it took "
            "all that it fits; put the narrower pattern first"
        )
    if fitting:
        raise ArgumentError(
            f"pattern {pattern!r} fits only {fitting[0].kind} sites ({_paths(fitting)}), "
            f"variant {variant.name!r} stands at {kind} sites"
        )
    raise ArgumentError(f"pattern {pattern!r} fits no site; sites: {_paths(sites)}")


def _kind(variant: Variant) -> Kind:
    """Return at which sites a variant can stand."""
    return default().family(variant.family).kind


def _fitting(pattern: str, sites: Sequence[Site]) -> list[Site]:
    if pattern.startswith(TYPE):
        return [site for site in sites if fnmatchcase(site.layer, pattern.removeprefix(TYPE))]
    named = [site for site in sites if site.path == pattern]
    return named or [site for site in sites if fits(pattern, site.path)]


def _entry(where: str, entry: object) -> tuple[Variant, SiteOptions]:
    given: dict[str, object] = {}
    name = entry
    if isinstance(entry, Mapping):
        given = {str(key): value for key, value in entry.items() if key != "variant"}
        if "variant" not in entry:
            raise ConfigError(f"{where} has no 'variant', got {', '.join(given) or 'nothing'}")
        name = entry["variant"]
    if not isinstance(name, str | Variant):
        raise ArgumentError(
            f"{where} must name a variant or be a mapping with 'variant', got {type(name).__name__}"
        )
    variant = get_variant(name) if isinstance(name, str) else name
    placement = variant.placement
    model = default().family(variant.family).options if placement is None else placement.options
    try:
        return variant, model.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        allowed = ", ".join(model.model_fields)
        raise ConfigError(f"{where}: {wrong}; options of {variant.name!r} are {allowed}") from None


def _paths(sites: Sequence[Site]) -> str:
    return ", ".join(site.path for site in sites) or "none"
