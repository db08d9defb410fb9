"""What the commands share: printing, and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, NoReturn

import typer

FOUND, WRONG = 1, 2

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def say(text: str) -> None:
    """Print to the standard output."""
    typer.echo(text)


def fail(message: str) -> NoReturn:
    """Print a message to the standard error and end with exit code 2."""
    typer.echo(f"attnkit: {message}", err=True)
    sys.exit(WRONG)


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows: a table on a terminal, lines with tabs in a pipe."""
    if not sys.stdout.isatty():
        for line in (head, *rows):
            say("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
