"""Which plugins are installed, read from their metadata; nothing of theirs is imported.

`attnkit.registry.registry` turns these entries into variants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata

from attnkit.hookspecs import EXTENSION_GROUP, VARIANT_GROUP

SESSION = "this session"


@dataclass(frozen=True, kw_only=True, order=True)
class Entry:
    """One line of a distribution's entry points: who offers what, and where it is.

    Attributes:
        name: In the group ``attnkit`` the variant's name; in the other one a label.
        owner: Name of the distribution, or ``this session`` for `attnkit.register`.
        version: Version of the distribution; empty for this session.
        module: ``package.module`` or ``package.module:attribute``; empty for this session.
        group: ``attnkit`` or ``attnkit.extensions``.
        unreadable: Why the distribution's metadata cannot be read; empty where it can.
    """

    name: str
    owner: str
    version: str
    module: str
    group: str = VARIANT_GROUP
    unreadable: str = ""

    def __str__(self) -> str:
        """Name the owner, with its version."""
        return f"{self.owner} {self.version}".rstrip()

    def load(self) -> object:
        """Import what the entry names; any error of the plugin passes through."""
        return metadata.EntryPoint(self.name, self.module, self.group).load()


def discover() -> tuple[Entry, ...]:
    """Return the entries of both groups of every installed distribution, sorted.

    A distribution that is visible twice on ``sys.path`` counts once: the first one, as for
    imports. One whose entry points cannot be read gives a single entry, an extension that says so.
    """
    entries = (entry for name in _distributions() for entry in _entries(name))
    return tuple(sorted(entries))


def _distributions() -> set[str]:
    """Return the normalised names of the distributions that mention one of our groups."""
    # the file before the name: few have one of ours, and a name costs twenty times as much
    names = (each.metadata["Name"] for each in metadata.distributions() if _mentions_us(each))
    # what a broken uninstall leaves behind has no name
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names if name}


def _mentions_us(distribution: metadata.Distribution) -> bool:
    # as text: one malformed file of a stranger would stop `metadata.entry_points` for everybody
    try:
        return "[attnkit" in (distribution.read_text("entry_points.txt") or "")
    except UnicodeDecodeError as error:
        return b"[attnkit" in error.object


def _entries(name: str) -> Iterator[Entry]:
    distribution = metadata.distribution(name)
    owner = distribution.name
    file = Entry(
        name=owner,
        owner=owner,
        version=distribution.version,
        module="entry_points.txt",
        group=EXTENSION_GROUP,
    )
    try:
        points = tuple(distribution.entry_points)
    except UnicodeDecodeError:
        yield replace(file, unreadable="is not UTF-8")
    except (TypeError, ValueError):
        text = distribution.read_text("entry_points.txt") or ""
        yield replace(file, unreadable=f"is malformed{_where(text)}")
    else:
        for point in points:
            if point.group in (VARIANT_GROUP, EXTENSION_GROUP):
                yield replace(file, name=point.name, module=point.value, group=point.group)


def _where(text: str) -> str:
    """Name the first line that is neither a section, nor a comment, nor ``name = value``."""
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if line and not line.startswith(("[", "#")) and "=" not in line:
            return f": line {number} is {line!r}, not 'name = module'"
    return ""
