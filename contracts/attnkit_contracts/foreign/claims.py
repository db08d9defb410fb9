"""Promises by their names: ``"causal, gqa, padding, float32"``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

from attnkit.errors import ArgumentError
from attnkit.promises import ALL_DTYPES, ALL_MASK_PARTS, Decay, Device, Promises

if TYPE_CHECKING:
    from collections.abc import Iterable

LISTS: dict[str, tuple[str, ...]] = {
    "masks": ALL_MASK_PARTS,
    "dtypes": ALL_DTYPES,
    "devices": get_args(Device),
    "decay": get_args(Decay),
}
"""The promises that are lists, and the words that go into each."""

SWITCHES = {key for key, field in Promises.model_fields.items() if field.annotation is bool}


def parse(promises: Promises | str | Iterable[str]) -> Promises:
    """Return promises from their names.

    Raises:
        ArgumentError: A name is neither a promise nor a mask part, decay, dtype or device.
    """
    if isinstance(promises, Promises):
        return promises
    words = re.split(r"[\s,]+", promises.strip()) if isinstance(promises, str) else [*promises]
    found: dict[str, Any] = {}
    for word in filter(None, words):
        home = next((key for key, values in LISTS.items() if word in values), None)
        if home:
            found[home] = (*found.get(home, ()), word)
        elif word in SWITCHES:
            found[word] = True
        else:
            known = sorted({*SWITCHES, *(each for values in LISTS.values() for each in values)})
            raise ArgumentError(f"promises must be of {', '.join(known)}, got {word!r}")
    found.setdefault("dtypes", ("float32",))
    found.setdefault("devices", ("cpu",))
    return Promises(**found)


def names_of(promises: Promises) -> str | None:
    """Return the names of promises; None where one has none, a `SpeedClaim` say."""
    words: list[str] = []
    for key, value in promises:
        words += [key] if value is True else value if key in LISTS else ()
    names = ", ".join(words)
    return names if parse(names) == promises else None
