"""The commands on what ``attnkit check`` wrote: ``diff`` and ``badge``. They run no check."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from attnkit.cli.terminal import FOUND, AsJson, fail, say

if TYPE_CHECKING:
    from attnkit_contracts.reports.comparison import Difference

Model = TypeVar("Model", bound=BaseModel)


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(diff)
    app.command()(badge)


def diff(
    old: Annotated[Path, typer.Argument(help="A report, .json.")],
    new: Annotated[Path, typer.Argument(help="A later report, .json.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Say what changed between two reports; exit code 1 if something got worse."""
    from attnkit_contracts.reports.comparison import compare
    from attnkit_contracts.reports.records import Report

    found = compare(_read(old, Report), _read(new, Report))
    if as_json:
        say(found.model_dump_json(indent=2))
    else:
        _print(found)
    if found.is_worse:
        raise typer.Exit(FOUND)


def badge(
    certificate: Annotated[Path, typer.Argument(help="What `check --certificate` wrote, .json.")],
) -> None:
    """Print a badge as SVG; refused if the suite or the plugin's files changed since."""
    from attnkit_contracts.certificates.badge import to_svg
    from attnkit_contracts.certificates.certificate import Certificate

    read = _read(certificate, Certificate)
    outdated = read.outdated()
    if outdated:
        fail(f"no badge from {certificate}: {outdated}; check again")
    say(to_svg(read))


def _read(path: Path, model: type[Model]) -> Model:
    """Read a file that `check` wrote; what it is not is exit code 2."""
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {path}: {error}")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        fail(f"{path} is no {model.__name__.lower()}: {where}: {first['msg']}")


def _print(found: Difference) -> None:
    from attnkit_contracts.reports.comparison import ORDER

    for name, (before, after) in found.environment.items():
        say(f"{name}: {before} -> {after}")
    for kind in ORDER:
        changes = found.of(kind)
        if changes:
            say(f"\n{kind}: {len(changes)}")
        for change in changes:
            say(f"  {change.line()}")
    say(f"\n{'worse' if found.is_worse else 'not worse'}: {len(found.changes)} changes")
