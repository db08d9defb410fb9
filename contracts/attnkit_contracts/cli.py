"""The command ``attnkit``, whole: `attnkit.cli` and ``check``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnkit.cli import FOUND, app, run, say, show_table

if TYPE_CHECKING:
    from attnkit_contracts.records import Record, Report


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Variants; left out, all that are installed.")
    ] = None,
    *,
    tier: Annotated[str, typer.Option(help="fast, standard or full")] = "fast",
    dtype: Annotated[
        list[str] | None, typer.Option(help="A dtype to check; left out, all promised.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    implementation: Annotated[
        list[str] | None, typer.Option(help="An implementation; left out, all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    output: Annotated[
        list[Path] | None,
        typer.Option(help="Also write the report to this file, .json or .md; repeatable."),
    ] = None,
) -> None:
    """Run the conformance suite; exit code 0 only if all that is required ran and passed."""
    for path in output or ():
        if path.suffix not in (".json", ".md"):
            raise typer.BadParameter(f"must end in .json or .md, got {path}", param_hint="--output")
    report = _checked(names or [], tier, dtype, device, implementation, seed)
    for path in output or ():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report.to_json() if path.suffix == ".json" else report.to_markdown())
    if as_json:
        say(report.to_json())
    else:
        _print(report)
    if not report.passed:
        raise typer.Exit(FOUND)


def main() -> None:
    """Run the command line."""
    run(app)


def _checked(
    names: list[str],
    tier: str,
    dtypes: list[str] | None,
    device: str,
    implementations: list[str] | None,
    seed: int,
) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from attnkit_contracts import runner

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("planning", total=None)
        asked: dict[str, Any] = {
            "tier": tier,
            "dtypes": dtypes,
            "device": device,
            "implementations": implementations,
            "seed": seed,
        }
        progress.update(task, total=len(runner.plan(*names, **asked)))

        def advance(record: Record) -> None:
            progress.update(task, description=record.variant, advance=1)

        return runner.check(*names, progress=advance, **asked)


def _print(report: Report) -> None:
    from attnkit_contracts.markdown import matrix

    show_table(*matrix(report))
    for record in report.failures():
        say(f"\n{record.id}: {record.status}\n  {record.reason}\n{record.reproduction}")
    for missing in report.header.required_missing:
        say(f"required but not run: {missing}")
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts().items()))
    header = report.header
    verdict = "passed" if report.passed else "FAILED"
    say(f"{verdict}: {counts}; {header.executed_count} of {header.expected_count} executed")
