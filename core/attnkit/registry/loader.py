"""One plugin, alone: import it, ask it, read its answer. All that can go wrong is a `Fault`.

Each plugin gets a pluggy manager of its own, so that nothing of one that fails is left behind, and
one that raises stops no other. `attnkit.registry.registry` and `attnkit.registry.extensions` use
it.
"""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pluggy
from pydantic import ValidationError

from attnkit import hookspecs
from attnkit.families import Family
from attnkit.hookspecs import VARIANT_GROUP, api_version
from attnkit.hosts.answers import complaint as host_complaint
from attnkit.interface import Implementation, Variant
from attnkit.promises import Promises
from attnkit.registry.validation import complaint, family_complaint, implementation_complaint
from attnkit.text import kind_of
from attnkit.versions import version_of

if TYPE_CHECKING:
    from attnkit.hosts.protocol import Host
    from attnkit.registry.discovery import Entry

T = TypeVar("T")


class Fault(Exception):  # noqa: N818 - it never leaves attnkit, see `attnkit.errors` for errors
    """What a plugin did wrong; caught by whoever asked it, never seen by a user."""


@dataclass(frozen=True)
class BrokenPlugin:
    """Why an entry did not give what it offers.

    Attributes:
        entry: Whose it is.
        cause: One line that continues "acme_flash (from acme-flash 1.0) ...".
        traceback: The full text; the cause again where nothing was raised.
        error: What the plugin raised, if it raised.
    """

    entry: Entry
    cause: str
    traceback: str = field(repr=False)
    error: BaseException | None = field(repr=False, compare=False)

    @classmethod
    def after(cls, entry: Entry, fault: Fault) -> Self:
        """Record what happened to an entry."""
        cause, error = str(fault), fault.__cause__
        text = "".join(traceback.format_exception(error)) if error else cause
        return cls(entry, cause, text, error)

    def __str__(self) -> str:
        """Say whose plugin failed at what."""
        entry = self.entry
        kind = "attention variant" if entry.group == VARIANT_GROUP else "extension"
        return f"{kind} {entry.name!r}: {entry.module} (from {entry}) {self.cause}"


def load(entry: Entry) -> pluggy.PluginManager:
    """Import the plugin that an entry names; check contract and hooks, and call nothing of it."""
    if entry.unreadable:
        raise Fault(entry.unreadable)
    manager = pluggy.PluginManager("attnkit")
    manager.add_hookspecs(hookspecs)
    try:
        found = entry.load()
    except KeyboardInterrupt:
        raise
    # BaseException: neither the exit of a script without a main guard nor the skip of a test
    # module may pass for one of the program that looked at it
    except BaseException as error:
        raise Fault(f"failed to import: {_one_line(error)}") from error
    _check_contract(getattr(found, "attnkit_api", None))
    try:
        manager.register(found, name=entry.module)
        manager.check_pending()
    except Exception as error:
        raise Fault(f"has a hook that does not fit: {_one_line(error)}") from error
    return manager


def ask(
    manager: pluggy.PluginManager, hook: str, read: Callable[[Any], T], **arguments: object
) -> T | None:
    """Call one hook of a loaded plugin and read the answer; None where it has no such hook."""
    try:
        answers = getattr(manager.hook, hook)(**arguments)
        return read(answers[0]) if answers else None
    except Fault as fault:
        raise Fault(f"returned {fault} from {hook}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Fault(f"raised {_one_line(error)} in {hook}") from error


def read_variants(answer: object) -> tuple[Variant, ...]:
    """Read the answer to `attnkit_variants`; whether each is complete, `pick` asks."""
    return _each(answer, Variant)


def read_implementations(answer: object) -> dict[str, tuple[Implementation, ...]]:
    """Read the answer to `attnkit_implementations`."""
    if not isinstance(answer, Mapping):
        raise Fault(f"{kind_of(answer)}, not a mapping of variant names to implementations")
    added = {str(name): _each(values, Implementation) for name, values in answer.items()}
    for name, implementations in added.items():
        for implementation in implementations:
            what = f"a wrong implementation of {name!r}"
            _check_right(what, implementation_complaint(implementation))
    return added


def read_families(answer: object) -> tuple[Family, ...]:
    """Read the answer to `attnkit_families`."""
    families = _each(answer, Family)
    for family in families:
        _check_right("a wrong family", family_complaint(family))
    return families


def read_hosts(answer: object) -> tuple[Host, ...]:
    """Read the answer to `attnkit_hosts`."""
    hosts: tuple[Any, ...] = _each(answer, object)
    for host in hosts:
        _check_right(f"a wrong host, {kind_of(host)}", host_complaint(host))
    return hosts


def read_items(answer: object) -> tuple[Any, ...]:
    """Read the answer to `attnkit_contracts`."""
    return _each(answer, object)


def read_text(answer: object) -> str:
    """Read the answer to `attnkit_report_section`."""
    if not isinstance(answer, str):
        raise Fault(f"{kind_of(answer)}, not a str")
    return answer


def pick(
    name: str, offered: tuple[Variant, ...], family_of: Callable[[str], Family | None]
) -> Variant:
    """Return the complete variant of this name."""
    found = [variant for variant in offered if variant.name == name]
    if not found:
        names = ", ".join(str(variant.name) for variant in offered) or "none"
        raise Fault(f"did not return a variant named {name!r} (it returned: {names})")
    if len(found) > 1:
        raise Fault(f"returned {len(found)} variants named {name!r}")
    wrong = complaint(found[0], family_of)
    if wrong:
        raise Fault(f"returned an incomplete variant {name!r}: {wrong}")
    return found[0]


def _check_right(what: str, wrong: str | None) -> None:
    if wrong:
        raise Fault(f"{what} ({wrong})")


def _check_contract(required: object) -> None:
    """Refuse a plugin that was written for another major version, or for a later minor one."""
    if required is None:
        return
    if not (isinstance(required, str) and re.fullmatch(r"[0-9]+\.[0-9]+", required)):
        raise Fault(f"has an attnkit_api that is not 'MAJOR.MINOR': {kind_of(required)}")
    asked, here = (tuple(map(int, each.split("."))) for each in (required, api_version))
    if asked[0] != here[0] or asked > here:
        newer = "; a newer attnkit may have it" if asked > here else ""
        raise Fault(
            f"requires plugin contract {required}, and attnkit {version_of('attnkit')} has "
            f"{api_version}{newer}"
        )


def _each(answer: object, kind: type[T]) -> tuple[T, ...]:
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        raise Fault(f"{kind_of(answer)}, not an iterable")
    items = tuple(answer)
    for item in items:
        if not isinstance(item, kind):
            raise Fault(f"{kind_of(item)} among its items, each must be of type {kind.__name__}")
    return items


def _one_line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        told = (_told(error.title, each) for each in error.errors(include_url=False))
        return f"{error.title}: {'; '.join(told)}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _told(record: str, problem: Mapping[str, Any]) -> str:
    """Say what is wrong with one field of a record, by what attnkit calls it."""
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] != "extra_forbidden":
        return f"{name}: {problem['msg']}, got {problem['input']!r}"
    fields = Promises.model_fields if record.endswith("Promises") else ()
    nearest = difflib.get_close_matches(name, fields, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"there is no field {name!r}{hint}"
