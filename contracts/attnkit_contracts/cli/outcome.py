"""A run on the command line: its progress, what is printed and written of it, its exit code."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import typer

from attnkit.cli.terminal import FOUND, say, show_table
from attnkit_contracts.cli.options import STDOUT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from attnkit_contracts.cli.options import Reports, Suite
    from attnkit_contracts.reports.expectations import ExpectedFailure
    from attnkit_contracts.reports.records import Record, Report


def conclude(
    names: Sequence[str],
    implementations: list[str] | None,
    suite: Suite,
    reports: Reports,
    *,
    jobs: int = 1,
) -> None:
    """Run the suite, print and write what is asked for, and end with 1 if anything is red."""
    from attnkit_contracts.reports.expectations import read_expected
    from attnkit_contracts.reports.records import FORMATS

    known = read_expected(reports.expected_failures) if reports.expected_failures else ()
    report = _checked(names, implementations, suite, known, jobs)
    files = reports.files()
    for suffix, path in files.items():
        _write(path, FORMATS[suffix](report))
    if STDOUT not in files.values():
        _print(report)
    if reports.certificate:
        _certify(report, reports.certificate)
    if not report.passed:
        raise typer.Exit(FOUND)


def _checked(
    names: Sequence[str],
    implementations: list[str] | None,
    suite: Suite,
    known: tuple[ExpectedFailure, ...],
    jobs: int,
) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from attnkit_contracts.running.plan import plan
    from attnkit_contracts.running.runner import check as run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("planning", total=None)
        planned = plan(*names, implementations=implementations, **vars(suite))
        progress.update(task, total=len(planned))

        def advance(record: Record) -> None:
            progress.update(task, description=record.variant, advance=1)

        return run(
            *names,
            implementations=implementations,
            progress=advance,
            expected_failures=known,
            jobs=jobs,
            **vars(suite),
        )


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
    from attnkit_contracts.reports.distinct import distinct, rules
    from attnkit_contracts.reports.markdown import matrix
    from attnkit_contracts.reports.records import UNCOMPARED, UNJUDGED

    show_table(*matrix(report))
    failures = report.failures()
    faults, statements = distinct(failures), rules(failures)
    for fault in faults:
        record = fault.record
        rule = statements.get(record.check)
        told = f"the rule: {rule}\n{record.told}" if rule else record.told
        say(f"\n{record.id}: {record.status}\n{told}\n{record.reproduction}")
        if fault.more:
            checks = ", ".join(dict.fromkeys(each.check for each in fault.more))
            say(f"{fault.folded}: {checks}")
    for missing in report.header.required_missing:
        say(f"required but not run: {missing}{_why(report, missing)}")
    for proof in report.proofs:
        say(f"{proof.check} on the wrong variant {proof.wrong}: {proof.caught_by or 'NOT caught'}")
    for name in report.header.uncompared:
        say(f"implementations of {name} were not compared with its reference: {UNCOMPARED}")
    for name in report.header.unjudged:
        say(f"layer of {name}: {UNJUDGED}")
    for broken in report.header.broken_extensions:
        say(f"its checks are missing: {broken}")
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts().items()))
    header = report.header
    verdict = "passed" if report.passed else "FAILED"
    uncaught = sum(not proof.caught_by for proof in report.proofs)
    also = f"; {uncaught} wrong variants of extensions not caught" if uncaught else ""
    also += f"; {len(faults)} distinct faults" if faults else ""
    say(f"{verdict}: {counts}; {header.executed_count} of {header.expected_count} executed{also}")
