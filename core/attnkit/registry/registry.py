"""Names become variants here: lazily, loudly, and with the owner's name on everything.

`attnkit.registry.discovery` reads from metadata who offers what; the module behind a name is
imported when the name is asked for (`attnkit.registry.loader`). What goes wrong in one plugin is
raised for those who ask for its name, and for nobody else.
"""

from __future__ import annotations

import difflib
import functools
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from attnkit.errors import (
    ArgumentError,
    BrokenPluginError,
    DuplicateVariantError,
    RegistryError,
    UnknownVariantError,
)
from attnkit.families import BUILT_IN, Family
from attnkit.hookspecs import EXTENSION_GROUP, VARIANT_GROUP
from attnkit.registry import loader as plugin
from attnkit.registry.discovery import SESSION, Entry, discover
from attnkit.registry.extensions import Extensions
from attnkit.registry.loader import BrokenPlugin, Fault
from attnkit.registry.validation import complaint, family_complaint

if TYPE_CHECKING:
    from attnkit.hosts.protocol import Host
    from attnkit.interface import Implementation, Variant


class Remembered:
    """What calls have found out; but for what was reached, a change of the registry makes it void.

    Attributes:
        functions: What runs, by the signature of a call.
        choices: What was chosen, by the problem and how it was asked for.
        first_calls: How small real calls ended, see `attnkit.choice.first_call`.
        reached: What came of calls beyond a swap's sample, by what can run, see
            `attnkit.swaps.verification.reach`.
    """

    MOST = 4096
    """Entries of a table, beyond which it is emptied."""

    def __init__(self, reached: dict[object, Any] | None = None) -> None:
        self.functions: dict[object, Any] = {}
        self.choices: dict[object, Any] = {}
        self.first_calls: dict[object, Any] = {}
        self.reached: dict[object, Any] = {} if reached is None else reached

    def keep(self, table: dict[object, Any], key: object, found: object) -> None:
        """Add an entry to one of the tables."""
        if len(table) >= self.MOST:
            table.clear()
        table[key] = found


class Registry:
    """The variants of some entries, and those registered in this session.

    Args:
        entries: What is installed; none for a registry that holds only what it is given.

    Attributes:
        remembered: New whenever a name may resolve to something else.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        entries = tuple(entries)
        self.remembered = Remembered()
        self._installed = tuple(each for each in entries if each.group == VARIANT_GROUP)
        self._extensions = Extensions(
            tuple(each for each in entries if each.group == EXTENSION_GROUP)
        )
        self._session: dict[str, Registration] = {}
        self._session_families: dict[str, Registration] = {}
        self._variants: dict[str, Variant] = {}
        self._implementations: dict[str, tuple[Implementation, ...]] = {}
        self._offered: dict[str, tuple[Variant, ...]] = {}
        self._broken: dict[Entry, BrokenPlugin] = {}
        # guards the tables only: a plugin's code never runs under it, because that code may
        # import, and whoever holds that import's lock may be waiting for this one
        self._lock = threading.RLock()

    def entries(self, name: str | None = None) -> tuple[Entry, ...]:
        """Return every offer of a variant, or those of one name; of a duplicate, every owner's."""
        with self._lock:
            session = tuple(each.entry for each in self._session.values())
        entries = (each for each in self._installed + session if name in (None, each.name))
        return tuple(sorted(entries))

    def names(self) -> tuple[str, ...]:
        """Return every name that is offered, sorted."""
        with self._lock:
            named = {entry.name for entry in self._installed}
            return tuple(sorted(named | self._session.keys()))

    def get(self, name: str) -> Variant:
        """Return the variant of this name; the first time, import the module that offers it.

        Raises:
            UnknownVariantError: Nobody offers it.
            DuplicateVariantError: Several distributions offer it.
            BrokenPluginError: Its plugin does not load.
        """
        found = self._variants.get(name)
        if found is not None:
            return found
        with self._lock:
            entry = self._entry(name)
            if entry.owner == SESSION:
                return self._variants[name]
        variant = self._load(entry)
        with self._lock:
            return self._variants.setdefault(name, variant)

    def offered_by(self, owner: str) -> tuple[Variant, ...]:
        """Return the variants of an installed distribution, whoever else offers their names."""
        return tuple(self._load(entry) for entry in self._installed if entry.owner == owner)

    def offers(self, variant: Variant) -> bool:
        """Say whether this very variant is offered under its name, be it by one of several."""
        if self._variants.get(variant.name) is variant:
            return True
        entries = (each for each in self.entries(variant.name) if each.owner != SESSION)
        return any(not self.fault(each) and self._load(each) is variant for each in entries)

    def implementations(self, name: str) -> tuple[Implementation, ...]:
        """Return the variant's own implementations, then those that extensions add to it.

        Raises:
            RegistryError: As `get`, and where two owners offer an implementation of one name.
        """
        found = self._implementations.get(name)
        if found is not None:
            return found
        remembered = self.remembered
        own = self.get(name).implementations
        offers = [(self._entry(name), implementation) for implementation in own]
        for entry, added in self._extensions.implementations():
            offers += [(entry, implementation) for implementation in added.get(name, ())]
        _check_one_owner(name, offers)
        implementations = tuple(implementation for _, implementation in offers)
        with self._lock:
            if remembered is self.remembered:
                self._implementations[name] = implementations
        return implementations

    def family(self, name: str) -> Family:
        """Return the family of this name: attnkit's own, of this session, or of an extension.

        Raises:
            UnknownVariantError: Nobody offers it.
            DuplicateVariantError: Several distributions offer it.
        """
        found = self._family(name)
        if found is None:
            raise UnknownVariantError(
                f"no family {name!r}; there are {', '.join(BUILT_IN)}, and those that plugins "
                "offer by the hook attnkit_families"
            )
        return found

    def _family(self, name: str) -> Family | None:
        if name in BUILT_IN:
            return BUILT_IN[name]
        registration = self._session_families.get(name)
        if registration is not None:
            return cast("Family", registration.offered)
        # only a name that nobody here knows makes extensions load
        offers = self._installed_families(name)
        if len(offers) > 1:
            owners = [entry for entry, _ in offers]
            raise DuplicateVariantError(f"family {name!r} is {_offered(owners)}")
        return offers[0][1] if offers else None

    def _installed_families(self, name: str) -> list[tuple[Entry, Family]]:
        """Return what extensions offer under this name, and who does."""
        return [
            (entry, family)
            for entry, families in self._extensions.families()
            for family in families
            if family.name == name
        ]

    def hosts(self) -> tuple[Host, ...]:
        """Return the adapters of all extensions."""
        return self._extensions.hosts()

    def contracts(self) -> tuple[Any, ...]:
        """Return the further checks of all extensions."""
        return self._extensions.contracts()

    def report_sections(self, report: object) -> tuple[str, ...]:
        """Return what extensions add to a conformance report, as Markdown."""
        return self._extensions.report_sections(report)

    def broken_extensions(self) -> tuple[BrokenPlugin, ...]:
        """Return the extensions that have failed so far; asks none of them anything."""
        return self._extensions.failed()

    def fault(self, entry: Entry) -> BrokenPlugin | None:
        """Load the variant of an entry, and return why that fails, or None."""
        if entry.owner != SESSION:
            try:
                self._load(entry)
            except BrokenPluginError:
                return self._broken[entry]
        return None

    def broken(self) -> tuple[BrokenPlugin, ...]:
        """Load every plugin and return those that fail, variants before extensions."""
        faults = (self.fault(entry) for entry in self._installed)
        return tuple(fault for fault in faults if fault) + self._extensions.broken()

    def register(self, offered: Variant | Family) -> Registration:
        """Offer a variant or a family in this session, until `Registration.undo`.

        Raises:
            ArgumentError: The declaration is incomplete.
            DuplicateVariantError: The name is taken.
        """
        wrong = (
            family_complaint(offered)
            if isinstance(offered, Family)
            else complaint(offered, self._family)
        )
        if wrong:
            raise ArgumentError(f"cannot register: {wrong}")
        registration = Registration(self, offered)
        # outside the lock: extensions load
        families = self._installed_families(offered.name) if isinstance(offered, Family) else []
        with self._lock:
            if isinstance(offered, Family):
                owners = [str(entry) for entry, _ in families]
                owners += [SESSION] * (offered.name in self._session_families)
                self._check_free("family", offered.name, owners)
                self._session_families[offered.name] = registration
            else:
                owners = list(map(str, self.entries(offered.name)))
                self._check_free("attention variant", offered.name, owners)
                self._session[offered.name] = registration
                self._variants[offered.name] = offered
            self._changed()
        return registration

    def _check_free(self, what: str, name: str, owners: list[str]) -> None:
        if owners:
            raise DuplicateVariantError(
                f"{what} {name!r} is already offered by {', '.join(owners)}; register yours under "
                "another name"
            )

    def _undo(self, registration: Registration) -> None:
        """Take a registration back; a later one of the same name stays.

        Raises:
            RegistryError: It is a family, and variants of it are still registered.
        """
        name = registration.offered.name
        with self._lock:
            if self._session_families.get(name) is registration:
                standing = [each.name for each in self._variants.values() if each.family == name]
                if standing:
                    raise RegistryError(
                        f"family {name!r} cannot be taken back: "
                        f"{', '.join(sorted(standing))} of it stand; take those back first"
                    )
                del self._session_families[name]
                self._changed()
            elif self._session.get(name) is registration:
                del self._session[name], self._variants[name]
                self._changed()

    def _changed(self) -> None:
        self.remembered = Remembered(self.remembered.reached)
        self._implementations.clear()

    def _entry(self, name: str) -> Entry:
        """Return the one entry of this name."""
        found = list(self.entries(name))
        if not found:
            unreadable = self._extensions.unreadable()
            raise UnknownVariantError(_unknown(name, self.names(), unreadable))
        if len(found) > 1:
            raise DuplicateVariantError(f"attention variant {name!r} is {_offered(found)}")
        return found[0]

    def _load(self, entry: Entry) -> Variant:
        """Return the variant of an installed entry; the first failure is final."""
        broken = self._broken.get(entry)
        if broken is None:
            try:
                return plugin.pick(entry.name, self._offers(entry), self._family)
            except Fault as fault:
                broken = BrokenPlugin.after(entry, fault)
            except DuplicateVariantError as error:
                broken = BrokenPlugin.after(entry, Fault(f"cannot be read: {error}"))
            with self._lock:
                broken = self._broken.setdefault(entry, broken)
        told = f"{broken}; update or uninstall {entry.owner}, or mend it if it is yours"
        raise BrokenPluginError(told) from broken.error

    def _offers(self, entry: Entry) -> tuple[Variant, ...]:
        """Ask a module for its variants, once for all entries that share it."""
        offered = self._offered.get(entry.module)
        if offered is None:
            manager = plugin.load(entry)
            offered = plugin.ask(manager, "attnkit_variants", plugin.read_variants)
            if offered is None:
                raise Fault("has no hook attnkit_variants, or it returned None")
            with self._lock:
                offered = self._offered.setdefault(entry.module, offered)
        return offered


class Registration:
    """What is offered in this session; a context manager that takes it out at the end."""

    def __init__(self, registry: Registry, offered: Variant | Family) -> None:
        self.offered = offered
        self.entry = Entry(name=offered.name, owner=SESSION, version="", module="")
        self._registry = registry

    @property
    def variant(self) -> Variant:
        """What is offered, of the registration of a variant."""
        if isinstance(self.offered, Family):
            raise TypeError(f"{self.offered.name!r} is a family, see Registration.offered")
        return self.offered

    def undo(self) -> None:
        """Take it out again; nothing happens the second time."""
        self._registry._undo(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


@functools.cache
def default() -> Registry:
    """Return the registry of what is installed here, the same one each time."""
    # two threads that ask first at once must not get one each
    with _FIRST:
        return _installed()


_FIRST = threading.Lock()


@functools.cache
def _installed() -> Registry:
    return Registry(discover())


def get_variant(name: str) -> Variant:
    """Return an installed or registered variant; see `Registry.get`."""
    return default().get(name)


def unpickled(name: str) -> Variant:
    """Return the variant that was pickled under this name.

    Raises:
        RegistryError: As `Registry.get`.
    """
    try:
        return get_variant(name)
    except UnknownVariantError as error:
        raise UnknownVariantError(
            f"{error} What is loaded here was saved with that variant: install its plugin, or "
            "attnkit.register it, and load again"
        ) from error


def register(offered: Variant | Family) -> Registration:
    """Offer a variant, or a family, in this session; see `Registry.register`."""
    return default().register(offered)


def _unknown(name: str, names: tuple[str, ...], unreadable: tuple[Entry, ...]) -> str:
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    notes = "".join(f" {entry}: {entry.module} {entry.unreadable}." for entry in unreadable)
    return f"no attention variant {name!r}.{hint} Installed: {', '.join(names) or 'none'}.{notes}"


def _offered(entries: Sequence[Entry]) -> str:
    """Continue "X is ..." for what is offered more than once."""
    owners = sorted({str(entry) for entry in entries})
    if len(owners) > 1:
        return (
            f"offered by several distributions: {', '.join(owners)}. Uninstall all but one of them."
        )
    modules = ", ".join(sorted({entry.module for entry in entries}))
    return (
        f"offered {len(entries)} times by {owners[0]} ({modules}); "
        f"update or uninstall {entries[0].owner}"
    )


def _check_one_owner(name: str, offers: list[tuple[Entry, Implementation]]) -> None:
    counts = Counter(implementation.name for _, implementation in offers)
    for repeated in (each for each, count in counts.items() if count > 1):
        entries = [entry for entry, each in offers if each.name == repeated]
        raise DuplicateVariantError(
            f"implementation {repeated!r} of attention variant {name!r} is {_offered(entries)}"
        )
