"""The six hooks of attnkit. A plugin implements those it needs with `attnkit.hookimpl`.

Variants enter through the entry-point group ``attnkit``: the entry-point name is the variant's
name and its module implements `attnkit_variants`. All other hooks are looked for in the modules of
the group ``attnkit.extensions``, which a command loads when it first needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from attnkit.families import Family
    from attnkit.hosts.protocol import Host
    from attnkit.interface import Implementation, Variant

VARIANT_GROUP = "attnkit"
EXTENSION_GROUP = "attnkit.extensions"

api_version = "1.0"
"""Of the plugin contract, MAJOR.MINOR; a plugin may require one by ``attnkit_api = "1.0"``."""

hookspec = pluggy.HookspecMarker("attnkit")
hookimpl = pluggy.HookimplMarker("attnkit")


@hookspec
def attnkit_variants() -> Iterable[Variant]:
    """Return the variants of this module; one of them bears the entry point's name."""
    raise NotImplementedError  # a specification: pluggy never calls it


@hookspec
def attnkit_implementations() -> Mapping[str, Iterable[Implementation]]:
    """Return further implementations of existing variants, by the variant's name."""
    raise NotImplementedError  # a specification: pluggy never calls it


@hookspec
def attnkit_families() -> Iterable[Family]:
    """Return further families, signatures that attnkit does not have, for variants to name."""
    raise NotImplementedError  # a specification: pluggy never calls it


@hookspec
def attnkit_hosts() -> Iterable[Host]:
    """Return adapters to libraries whose modules can receive a variant."""
    raise NotImplementedError  # a specification: pluggy never calls it


@hookspec
def attnkit_contracts() -> Iterable[object]:
    """Return further `attnkit_contracts.Check` values for the conformance suite."""
    raise NotImplementedError  # a specification: pluggy never calls it


@hookspec
def attnkit_report_section(report: object) -> str | None:
    """Return Markdown to append to a conformance report, or None to add nothing."""
    raise NotImplementedError  # a specification: pluggy never calls it
