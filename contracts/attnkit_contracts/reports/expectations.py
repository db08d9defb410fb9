"""Failures that are known: which instance, why, where it is discussed, and until when.

A file of them, TOML or JSON, holds a list named ``expected_failure``:

    [[expected_failure]]
    id = "acme_window/blocked/float16/cpu/N1.forward"
    reason = "sums in float16"
    issue = "https://example.org/acme/issues/12"
    expires = 2027-01-31

`attnkit_contracts.running.runner` and `attnkit_contracts.pytest_plugin` take them. Imports no
torch.
"""

from __future__ import annotations

import datetime
import json
import tomllib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StringConstraints, ValidationError

from attnkit.errors import ArgumentError
from attnkit.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIST = "expected_failure"

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class ExpectedFailure(Frozen):
    """One instance that is known to fail."""

    id: Text = Field(description="of the check instance")
    reason: Text = Field(description="why it fails")
    issue: str | None = Field(
        default=None, pattern=r"^https?://\S+$", description="address of its discussion"
    )
    expires: datetime.date | None = Field(
        default=None, description="last day on which it is expected"
    )

    def __str__(self) -> str:
        """Say why, where it is discussed and until when."""
        until = f"until {self.expires}" if self.expires else ""
        return ", ".join(filter(None, (self.reason, self.issue, until)))


Given = Mapping[str, str] | Iterable[ExpectedFailure]
"""What functions take: reasons by id, or `ExpectedFailure` values."""


def read_expected(path: Path) -> tuple[ExpectedFailure, ...]:
    """Read a file of expected failures, TOML or JSON by its suffix.

    Raises:
        ArgumentError: It cannot be read; says which entry is wrong.
    """
    parsers: dict[str, Callable[[str], object]] = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in parsers:
        raise ArgumentError(f"expected failures must be in a .toml or .json file, got {path}")
    try:
        content = parsers[path.suffix](path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"cannot read expected failures from {path}: {error}") from error
    if not isinstance(content, dict) or list(content) != [LIST]:
        raise ArgumentError(f"{path} must hold one list named {LIST!r} and nothing else")
    entries = content[LIST]
    if not isinstance(entries, list):
        raise ArgumentError(f"{LIST!r} in {path} must be a list, got {type(entries).__name__}")
    return tuple(_entry(entry, f"{path}, entry {i}") for i, entry in enumerate(entries, 1))


def _entry(entry: object, where: str) -> ExpectedFailure:
    try:
        return ExpectedFailure.model_validate(entry)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'entry'}: {each['msg']}"
            for each in error.errors()
        )
        raise ArgumentError(f"{where}: {told}") from error


def by_id(given: Given | None, today: datetime.date | None = None) -> dict[str, ExpectedFailure]:
    """Return expected failures by id.

    Raises:
        ArgumentError: An id is listed twice, or one of them has expired.
    """
    if isinstance(given, Mapping):
        given = [_entry({"id": name, "reason": why}, repr(name)) for name, why in given.items()]
    today = today or datetime.datetime.now(tz=datetime.UTC).date()
    found: dict[str, ExpectedFailure] = {}
    for each in given or ():
        if each.id in found:
            raise ArgumentError(f"{each.id!r} is listed twice among the expected failures")
        if each.expires is not None and each.expires < today:
            raise ArgumentError(
                f"the expected failure {each.id!r} expired on {each.expires} ({each.reason}); "
                "repair what fails, or set a later date"
            )
        found[each.id] = each
    return found
