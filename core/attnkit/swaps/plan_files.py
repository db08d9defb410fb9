"""Plans that are not written as a mapping: from a file, or from a function of the site.

    attnkit.swap(model, Path("plan.yaml"))
    attnkit.swap(model, lambda site: "flash" if site.needs.causal else None)

A file holds what a plan in Python holds: a variant's name, or a mapping of patterns to names or
to mappings with ``variant`` and options. `attnkit.swaps.plan` says what a pattern is.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, cast

from attnkit.errors import ArgumentError, ConfigError, UnsupportedError
from attnkit.interface import Variant
from attnkit.sites import Site
from attnkit.swaps.plan import Entry, Plan

PlanSource: TypeAlias = Plan | Path | Callable[[Site], Entry | None]
"""What `attnkit.swap` takes as a plan."""

SUFFIXES = (".json", ".yaml", ".yml")


def written_out(source: PlanSource, sites: Sequence[Site]) -> Plan:
    """Return a plan as a variant or a mapping of patterns.

    Args:
        source: A plan, the path of a file with one, or a function that is asked for every site
            and returns a variant, a mapping with ``variant`` and options, or None to leave it.
        sites: The sites of the model.

    Raises:
        ConfigError: The file cannot be read or is no plan.
        UnsupportedError: The file is YAML and PyYAML is not installed.
        ArgumentError: The function chose no site.
    """
    if isinstance(source, Path):
        return read_plan(source)
    if isinstance(source, str | Variant | Mapping):
        return source
    if not callable(source):
        raise ArgumentError(
            "a plan must be a variant, a mapping of patterns to variants, the pathlib.Path of a "
            f"file or a function of a site, got {type(source).__name__}"
        )
    chosen = {site.path: entry for site in sites if (entry := source(site)) is not None}
    if not chosen:
        asked = ", ".join(site.path for site in sites) or "none"
        raise ArgumentError(f"the plan's function returned None for every site: {asked}")
    return chosen


def read_plan(path: Path) -> Plan:
    """Read a plan from a JSON or YAML file.

    Raises:
        ConfigError: The file cannot be read or is no plan.
        UnsupportedError: The file is YAML and PyYAML is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a plan's file ends in {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    found = _from_json(path, text) if path.suffix == ".json" else _from_yaml(path, text)
    mistake = _mistake(found)
    if mistake:
        raise ConfigError(f"{path}: {mistake}")
    return cast(Plan, found)


def _from_json(path: Path, text: str) -> object:
    def mapping(pairs: list[tuple[str, object]]) -> dict[str, object]:
        _check_unique(path, (key for key, _ in pairs))
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=mapping)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: no JSON: {error}") from error


def _from_yaml(path: Path, text: str) -> object:
    if find_spec("yaml") is None:
        raise UnsupportedError(
            f"{path}: YAML needs the package 'PyYAML', which is not installed: pip install pyyaml, "
            "or write the plan as JSON"
        )
    # of transformers' dependencies, not of attnkit's
    yaml: Any = importlib.import_module("yaml")
    try:
        for node in _nodes(yaml.compose(text, Loader=yaml.SafeLoader)):
            if isinstance(node, yaml.MappingNode):
                _check_unique(path, (str(key.value) for key, _ in node.value))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        hint = "; quote a pattern that starts with '*'" if "alias" in str(error) else ""
        raise ConfigError(f"{path}: no YAML: {error}{hint}") from error


def _nodes(node: Any) -> Iterator[Any]:
    """Yield a YAML node and those under it."""
    if node is None:
        return
    yield node
    for child in node.value if isinstance(node.value, list) else ():
        for each in child if isinstance(child, tuple) else (child,):
            yield from _nodes(each)


def _check_unique(path: Path, keys: Iterator[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ConfigError(f"{path}: {key!r} stands twice in one mapping, only one could count")
        seen.add(key)


def _mistake(found: object) -> str | None:
    """Say why what was read is no plan."""
    if isinstance(found, str):
        return None
    if not isinstance(found, dict):
        return (
            "a plan is a variant's name, or a mapping of patterns to names or to mappings with "
            f"'variant', got {'nothing' if found is None else repr(found)}"
        )
    for key, entry in found.items():
        if not isinstance(key, str):
            return f"a pattern is a string, got {key!r}; quote it"
        # beside 'variant' stand its options, whose values are anything
        if not isinstance(entry, str | dict) and "variant" not in found:
            return f"{key!r} must be a variant's name or a mapping with 'variant', got {entry!r}"
    return None
