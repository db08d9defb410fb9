"""The command ``attnkit``, whole: `attnkit.cli`, ``check``, and `report_commands`."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnkit.cli import FOUND, app, run, say, show_table
from attnkit_contracts import report_commands

if TYPE_CHECKING:
    from attnkit_contracts.expected import ExpectedFailure
    from attnkit_contracts.records import Record, Report


@app.command()
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Variants, or functions as module:name; left out, all installed."),
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
        typer.Option(help="Also write the report: .json, .md, .html, .xml (JUnit); repeatable."),
    ] = None,
    expected_failures: Annotated[
        Path | None, typer.Option(help="A .toml or .json file of failures that are known.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Write a certificate of one variant to this file, .json.")
    ] = None,
    family: Annotated[str, typer.Option(help="Of functions: softmax or recurrence.")] = "softmax",
    promise: Annotated[
        list[str] | None,
        typer.Option(help="What functions claim: causal, gqa, padding, float32 ...; repeatable."),
    ] = None,
    layout: Annotated[str, typer.Option(help="Of functions: BHLE or BLHE.")] = "BHLE",
    output_layout: Annotated[
        str | None, typer.Option(help="Of their outputs, if it is another.")
    ] = None,
    mask_as: Annotated[
        str, typer.Option(help="bool, hidden (True is shut out), additive, additive_min or none.")
    ] = "bool",
    causal_corner: Annotated[
        str, typer.Option(help="What their causal flag means: lower_right or upper_left.")
    ] = "lower_right",
    argument: Annotated[
        list[str] | None,
        typer.Option(help="Their name of an argument, as scale=softmax_scale; repeatable."),
    ] = None,
) -> None:
    """Run the conformance suite; exit code 0 only if all that is required ran and passed."""
    from attnkit_contracts.expected import read_expected
    from attnkit_contracts.records import FORMATS

    for path in output or ():
        if path.suffix not in FORMATS:
            told = f"must end in {', '.join(FORMATS)}, got {path}"
            raise typer.BadParameter(told, param_hint="--output")
    if certificate and len(names or ()) != 1:
        raise typer.BadParameter("takes exactly one variant", param_hint="--certificate")
    known = read_expected(expected_failures) if expected_failures else ()
    declared = {
        "family": family,
        "promises": ",".join(promise or ()),
        "layout": layout,
        "output_layout": output_layout,
        "mask": mask_as,
        "causal_corner": causal_corner,
    }
    names, functions = _functions(names or [], declared, argument or [])
    if functions and functions == names:
        implementation = implementation or ["function"]
    report = _checked(names, tier, dtype, device, implementation, seed, known)
    for path in output or ():
        report.write(path)
    if as_json:
        say(report.to_json())
    else:
        _print(report)
    if certificate:
        _certify(report, certificate)
    if not report.passed:
        raise typer.Exit(FOUND)


report_commands.add(app)


def main() -> None:
    """Run the command line."""
    run(app)


def _functions(
    names: list[str], declared: dict[str, Any], arguments: list[str]
) -> tuple[list[str], list[str]]:
    """Register the functions among some names; return names of variants, and which are functions.

    A file of the current folder can be named: it is searched first, as Python itself would.
    """
    from attnkit import registry
    from attnkit_contracts.foreign import adapt, named_arguments

    found, made = [], []
    for name in names:
        if ":" not in name:
            found.append(name)
            continue
        sys.path[:0] = [""] if "" not in sys.path else []
        variant = adapt(name, **declared, **named_arguments(arguments))
        registry.register(variant)
        found.append(variant.name)
        made.append(variant.name)
    return found, made


def _checked(
    names: list[str],
    tier: str,
    dtypes: list[str] | None,
    device: str,
    implementations: list[str] | None,
    seed: int,
    known: tuple[ExpectedFailure, ...],
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

        return runner.check(*names, progress=advance, expected_failures=known, **asked)


def _certify(report: Report, path: Path) -> None:
    """Write a certificate, or say why there is none and end with exit code 1."""
    from attnkit import registry
    from attnkit_contracts.certificate import CertificateRefusedError, certify

    try:
        told = certify(registry.get_variant(report.header.variants[0]), report).to_json()
    except CertificateRefusedError as error:
        typer.echo(f"attnkit: {error}", err=True)
        raise typer.Exit(FOUND) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(told, encoding="utf-8")


def _print(report: Report) -> None:
    from attnkit_contracts.markdown import matrix

    show_table(*matrix(report))
    for record in report.failures():
        say(f"\n{record.id}: {record.status}\n{record.told}\n{record.reproduction}")
    for missing in report.header.required_missing:
        say(f"required but not run: {missing}")
    for proof in report.proofs:
        say(f"{proof.check} on the wrong variant {proof.wrong}: {proof.caught_by or 'NOT caught'}")
    for fault in report.header.broken_extensions:
        say(f"its checks are missing: {fault}")
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts().items()))
    header = report.header
    verdict = "passed" if report.passed else "FAILED"
    say(f"{verdict}: {counts}; {header.executed_count} of {header.expected_count} executed")
