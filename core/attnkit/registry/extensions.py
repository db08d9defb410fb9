"""The plugins of the group ``attnkit.extensions``: all hooks but `attnkit_variants`.

They are imported when one of them is first needed, each on its own: one that fails is recorded
and passed over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from attnkit.registry import loader as plugin
from attnkit.registry.loader import BrokenPlugin, Fault

if TYPE_CHECKING:
    import pluggy

    from attnkit.families import Family
    from attnkit.hosts.protocol import Host
    from attnkit.interface import Implementation
    from attnkit.registry.discovery import Entry

T = TypeVar("T")


class Extensions:
    """What extensions offer, in the order of their entries."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self._entries = entries
        self._loaded: tuple[tuple[Entry, pluggy.PluginManager], ...] | None = None
        self._answers: dict[str, tuple[tuple[Entry, Any], ...]] = {}
        self._broken: dict[Entry, BrokenPlugin] = {}
        # guards the tables only, as in `attnkit.registry.registry`
        self._lock = threading.Lock()

    def implementations(self) -> tuple[tuple[Entry, dict[str, tuple[Implementation, ...]]], ...]:
        """Return, by owner, further implementations by the name of their variant."""
        return self._ask_once("attnkit_implementations", plugin.read_implementations)

    def families(self) -> tuple[tuple[Entry, tuple[Family, ...]], ...]:
        """Return, by owner, further families."""
        return self._ask_once("attnkit_families", plugin.read_families)

    def hosts(self) -> tuple[Host, ...]:
        """Return the adapters; a name that has an owner, attnkit before others, stays with it."""
        found: dict[str, tuple[Entry, Host]] = {}
        answers = self._ask_once("attnkit_hosts", plugin.read_hosts)
        for entry, hosts in sorted(answers, key=lambda answer: answer[0].owner != "attnkit"):
            for host in hosts:
                owner, first = found.setdefault(host.name, (entry, host))
                if first is not host:
                    taken = f"returned a host named {host.name!r}, which {owner} has, from "
                    self._note(entry, Fault(f"{taken}attnkit_hosts"))
        return tuple(host for _, hosts in answers for host in hosts if found[host.name][1] is host)

    def contracts(self) -> tuple[Any, ...]:
        """Return the further checks."""
        answers = self._ask_once("attnkit_contracts", plugin.read_items)
        return tuple(item for _, items in answers for item in items)

    def report_sections(self, report: object) -> tuple[str, ...]:
        """Return what extensions say about a report, as Markdown."""
        sections = self._ask("attnkit_report_section", plugin.read_text, report=report)
        return tuple(section for _, section in sections)

    def broken(self) -> tuple[BrokenPlugin, ...]:
        """Ask every extension everything but a report, and return those that fail."""
        self.implementations()
        self.families()
        self.hosts()
        self.contracts()
        return self.failed()

    def failed(self) -> tuple[BrokenPlugin, ...]:
        """Return those that have failed so far, whatever they were asked."""
        return tuple(self._broken[entry] for entry in self._entries if entry in self._broken)

    def unreadable(self) -> tuple[Entry, ...]:
        """Return the distributions whose metadata cannot be read; imports nothing."""
        return tuple(entry for entry in self._entries if entry.unreadable)

    def _ask_once(self, hook: str, read: Callable[[Any], T]) -> tuple[tuple[Entry, T], ...]:
        """Ask about values, which do not change."""
        if hook not in self._answers:
            answers = self._ask(hook, read)
            with self._lock:
                self._answers.setdefault(hook, answers)
        return self._answers[hook]

    def _ask(
        self, hook: str, read: Callable[[Any], T], **arguments: object
    ) -> tuple[tuple[Entry, T], ...]:
        answers = []
        for entry, manager in self._managers():
            try:
                answer = plugin.ask(manager, hook, read, **arguments)
            except Fault as fault:
                self._note(entry, fault)
            else:
                if answer is not None:
                    answers.append((entry, answer))
        return tuple(answers)

    def _managers(self) -> tuple[tuple[Entry, pluggy.PluginManager], ...]:
        """Import every extension, the first time."""
        if self._loaded is None:
            loaded = []
            for entry in self._entries:
                try:
                    loaded.append((entry, plugin.load(entry)))
                except Fault as fault:
                    self._note(entry, fault)
            with self._lock:
                if self._loaded is None:
                    self._loaded = tuple(loaded)
        return self._loaded

    def _note(self, entry: Entry, fault: Fault) -> None:
        with self._lock:
            self._broken.setdefault(entry, BrokenPlugin.after(entry, fault))
