"""The command ``attnkit``, whole: `attnkit.cli.app`, ``check``, and `report_commands`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnkit.cli.app import FOUND, app, run, say, show_table
from attnkit_contracts.cli import report_commands

if TYPE_CHECKING:
    from attnkit_contracts.reports.expectations import ExpectedFailure
    from attnkit_contracts.reports.records import Record, Report

STDOUT = Path("-")


@app.command()
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Variants, or functions and layers as module:name; left out, all installed."
        ),
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
    json: Annotated[
        Path | None,
        typer.Option(help="Write the report as JSON; - prints it in place of the table."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write it as JUnit's XML; or -.")] = None,
    md: Annotated[Path | None, typer.Option(help="Write it as Markdown; or -.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one HTML page; or -.")] = None,
    expected_failures: Annotated[
        Path | None, typer.Option(help="A .toml or .json file of failures that are known.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Write a certificate of one variant to this file, .json.")
    ] = None,
    family: Annotated[
        str, typer.Option(help="Of what is named module:name: softmax, recurrence; mixer: a layer.")
    ] = "softmax",
    promise: Annotated[
        list[str] | None,
        typer.Option(help="What it claims: causal, gqa, padding, float32 ...; repeatable."),
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(
            help="Its name of an argument, as scale=softmax_scale, or scale=none; of a layer: x, "
            "padding, mask, causal, dropout; repeatable."
        ),
    ] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option(help="What every call is given, as need_weights=False; repeatable."),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="BHLE or BLHE of a function; BLD or LBD of a layer.")
    ] = None,
    mask_as: Annotated[
        str | None,
        typer.Option(
            help="bool, hidden (True is shut out), additive, additive_min; none of a function, "
            "integer of a layer."
        ),
    ] = None,
    output_layout: Annotated[
        str | None, typer.Option(help="Of a function's output, if it is another.")
    ] = None,
    causal_corner: Annotated[
        str | None, typer.Option(help="Of a function's causal flag: lower_right or upper_left.")
    ] = None,
    own_scale: Annotated[
        str | None,
        typer.Option(help="width for a recurrence that multiplies queries by E ** -0.5 unasked."),
    ] = None,
    always: Annotated[
        list[str] | None,
        typer.Option(help="What every call of a recurrence must bring: beta; repeatable."),
    ] = None,
    construct: Annotated[
        list[str] | None,
        typer.Option(help="What a layer is made with, as num_heads=4; repeatable."),
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="D of a layer's input and output; left out, 32.")
    ] = None,
    padding_as: Annotated[
        str | None, typer.Option(help="What a layer takes for padding, (B, L); as --mask-as.")
    ] = None,
    mask_shape: Annotated[
        str | None, typer.Option(help="Of a layer's mask: BHLS, LS; BLS: (B * heads, L, L).")
    ] = None,
    mask_heads: Annotated[int | None, typer.Option(help="Heads of a layer's mask.")] = None,
    pick: Annotated[
        str | None, typer.Option(help="Which attribute of what a layer returns is its output.")
    ] = None,
) -> None:
    """Run the conformance suite; exit code 0 only if all that is required ran and passed."""
    from attnkit_contracts.foreign import layers as foreign_layers
    from attnkit_contracts.reports.expectations import read_expected
    from attnkit_contracts.reports.formats import FORMATS

    asked = {".json": json, ".xml": junit, ".md": md, ".html": html}
    written = {suffix: path for suffix, path in asked.items() if path is not None}
    if list(written.values()).count(STDOUT) > 1:
        raise typer.BadParameter("one report can be printed, not several", param_hint="-")
    if certificate and len(names or ()) != 1:
        raise typer.BadParameter("takes exactly one variant", param_hint="--certificate")
    known = read_expected(expected_failures) if expected_failures else ()
    given = {
        "fixed": foreign_layers.values(fixed or ()),
        "layout": layout,
        "mask": mask_as,
        "output_layout": output_layout,
        "causal_corner": causal_corner,
        "own_scale": own_scale,
        "always": tuple(always or ()),
        "construct": foreign_layers.values(construct or ()),
        "width": width,
        "padding": padding_as,
        "mask_shape": mask_shape,
        "mask_heads": mask_heads,
        "output": pick,
    }
    options = {key: value for key, value in given.items() if value}
    names, made = _variants(names or [], family, promise or [], argument or [], options)
    if made and made == names and family != "mixer":
        implementation = implementation or ["function"]
    report = _checked(names, tier, dtype, device, implementation, seed, known)
    for suffix, path in written.items():
        _write(path, FORMATS[suffix](report))
    if STDOUT not in written.values():
        _print(report)
    if certificate:
        _certify(report, certificate)
    if not report.passed:
        raise typer.Exit(FOUND)


report_commands.add(app)


def main() -> None:
    """Run the command line."""
    run(app)


def _variants(
    names: list[str], family: str, promises: list[str], arguments: list[str], told: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Register what is named module:name; return names of variants, and which are of these.

    A file of the current folder can be named: it is searched first, as Python itself would.
    """
    from attnkit.registry import registry
    from attnkit_contracts import adapt, adapt_layer
    from attnkit_contracts.foreign import functions as foreign
    from attnkit_contracts.foreign import layers as foreign_layers

    is_layer = family == "mixer"
    door: Any = adapt_layer if is_layer else adapt
    told = {**told, "promises": ",".join(promises)} | ({} if is_layer else {"family": family})
    told |= (foreign_layers if is_layer else foreign).named_arguments(arguments)
    for key in told:
        if key not in door.__kwdefaults__ and key != "promises":
            raise typer.BadParameter(f"{key} is not about family {family}; leave it out")
    found, made = [], []
    for name in names:
        if ":" not in name:
            found.append(name)
            continue
        sys.path[:0] = [""] if "" not in sys.path else []
        variant = door(name, **told)
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

    from attnkit_contracts.running.plan import plan
    from attnkit_contracts.running.runner import check as run

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
        progress.update(task, total=len(plan(*names, **asked)))

        def advance(record: Record) -> None:
            progress.update(task, description=record.variant, advance=1)

        return run(*names, progress=advance, expected_failures=known, **asked)


def _certify(report: Report, path: Path) -> None:
    """Write a certificate, or say why there is none and end with exit code 1."""
    from attnkit.registry import registry
    from attnkit_contracts.certificates.certificate import CertificateRefusedError, certify

    try:
        told = certify(registry.get_variant(report.header.variants[0]), report).to_json()
    except CertificateRefusedError as error:
        typer.echo(f"attnkit: {error}", err=True)
        raise typer.Exit(FOUND) from error
    _write(path, told)


def _write(path: Path, text: str) -> None:
    if path == STDOUT:
        say(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _why(report: Report, missing: str) -> str:
    """Return what most of the checks say that came to no verdict, of an instance or a subject."""
    reasons = Counter(
        record.reason
        for record in report.records
        if f"{record.id}/".startswith(f"{missing}/")
        and record.status in ("unsupported", "skipped_env", "inconclusive")
    )
    return "".join(f"\n  {reason}" for reason, _ in reasons.most_common(1))


def _print(report: Report) -> None:
    from attnkit_contracts.reports.markdown import matrix

    show_table(*matrix(report))
    for record in report.failures():
        say(f"\n{record.id}: {record.status}\n{record.told}\n{record.reproduction}")
    for missing in report.header.required_missing:
        say(f"required but not run: {missing}{_why(report, missing)}")
    for proof in report.proofs:
        say(f"{proof.check} on the wrong variant {proof.wrong}: {proof.caught_by or 'NOT caught'}")
    for fault in report.header.broken_extensions:
        say(f"its checks are missing: {fault}")
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts().items()))
    header = report.header
    verdict = "passed" if report.passed else "FAILED"
    uncaught = sum(not proof.caught_by for proof in report.proofs)
    also = f"; {uncaught} wrong variants of extensions not caught" if uncaught else ""
    say(f"{verdict}: {counts}; {header.executed_count} of {header.expected_count} executed{also}")
