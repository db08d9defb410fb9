"""The table of variants, made from metadata; a row loads its variant when it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from attnkit.errors import BrokenPluginError, RegistryError
from attnkit.registry.registry import Registry, default
from attnkit.text import table

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit.promises import Promises
    from attnkit.registry.discovery import Entry

COLUMNS = ("name", "family", "owner", "relation", "promises")

PROMISE_WORDS = (
    "causal",
    "bidirectional",
    "cross",
    "gqa",
    "bias",
    "softcap",
    "sinks",
    "dropout",
    "weights",
    "beta",
    "capacity",
    "state",
)
"""The yes/no promises that a table has room for; `attnkit.promises.Promises` has all."""


@dataclass(frozen=True)
class VariantRow:
    """One offer of one variant. Two rows share a name where two distributions offer it."""

    entry: Entry
    registry: Registry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def owner(self) -> str:
        return self.entry.owner

    @property
    def version(self) -> str:
        return self.entry.version

    @property
    def module(self) -> str:
        return self.entry.module

    @property
    def variant(self) -> Variant:
        """The declaration; imports the module that holds it.

        Raises:
            RegistryError: The plugin is broken, or the name is offered twice.
        """
        return self.registry.get(self.name)

    def cells(self) -> tuple[str, ...]:
        """Return the texts under `COLUMNS`; what is wrong with a row stands in the last one."""
        offer = str(self.entry)
        try:
            variant = self.variant
        except BrokenPluginError as error:
            broken = self.registry.fault(self.entry)
            return (self.name, "-", offer, "-", f"broken: {broken.cause if broken else error}")
        except RegistryError as error:
            return (self.name, "-", offer, "-", str(error))
        return (self.name, variant.family, offer, variant.relation, promise_words(variant.promises))


class VariantTable(tuple[VariantRow, ...]):
    """What is installed, sorted by name; prints as a table."""

    __slots__ = ()

    def __new__(cls, registry: Registry) -> Self:
        return super().__new__(cls, (VariantRow(each, registry) for each in registry.entries()))

    def __repr__(self) -> str:
        return table(COLUMNS, (row.cells() for row in self))


def list_variants() -> VariantTable:
    """Return a table of all variants; only printing it imports their declarations."""
    return VariantTable(default())


def promise_words(promises: Promises) -> str:
    """Return the kept `PROMISE_WORDS`, separated by spaces."""
    return " ".join(word for word in PROMISE_WORDS if getattr(promises, word))
