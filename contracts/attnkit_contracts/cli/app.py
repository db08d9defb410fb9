"""The command ``attnkit``, whole: `attnkit.cli.app`, and ``check``, ``judge``, ``diagnose``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

import attnkit
from attnkit.cli.app import app, run
from attnkit.cli.terminal import FOUND, AsJson, fail, say
from attnkit_contracts.cli import report_commands
from attnkit_contracts.cli.options import Code, FunctionCode, LayerCode, Reports, Suite, grouped
from attnkit_contracts.cli.outcome import conclude


@app.command()
@grouped
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Variants; left out, all installed.")
    ] = None,
    *,
    implementation: Annotated[
        list[str] | None,
        typer.Option(
            help="An implementation; left out, all; repeatable.", rich_help_panel=Suite.PANEL
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes to run it in.", rich_help_panel=Suite.PANEL)
    ] = 1,
    suite: Suite,
    reports: Reports,
) -> None:
    """Run the conformance suite; exit code 0 only if all that is required ran and passed."""
    for name in names or ():
        if ":" in name:
            fail(f"{name!r} is no variant; code that is no plugin is for: attnkit judge {name}")
    reports.check(len(names or ()))
    conclude(names or (), implementation, suite, reports, jobs=jobs)


@app.command()
@grouped
def judge(
    targets: Annotated[
        list[str], typer.Argument(help="Functions, or layers, as module:name; called alike.")
    ],
    *,
    code: Code,
    function: FunctionCode,
    layer: LayerCode,
    suite: Suite,
    reports: Reports,
) -> None:
    """Run the suite on functions and layers that are no plugins; exit codes are those of check."""
    from attnkit_contracts.cli.strangers import variant
    from attnkit_contracts.foreign.functions import FUNCTION

    for target in targets:
        if ":" not in target:
            fail(f"{target!r} is not module:name; a variant is for: attnkit check {target}")
    reports.check(len(targets))
    some = None if code.family == "mixer" else [FUNCTION]
    with ExitStack() as registered:
        made = [variant(target, code, function, layer) for target in targets]
        for each in made:
            registered.enter_context(attnkit.register(each))
        conclude([each.name for each in made], some, suite, reports)


@app.command()
@grouped
def diagnose(
    target: Annotated[str, typer.Argument(help="A function of softmax attention, as module:name.")],
    *,
    as_json: AsJson = False,
    code: Code,
    function: FunctionCode,
) -> None:
    """Say which known mistake a function equals, in whatever convention it is written.

    What is not told is guessed by the names of its arguments, or tried in every way. Exit code 0 if
    all small calls are right in one of them, 1 if not, 2 if the function cannot be called.
    """
    from attnkit_contracts.cli.strangers import told_of
    from attnkit_contracts.diagnosis.functions import diagnose as look

    found = look(target, **told_of(code, function))
    say(found.model_dump_json(indent=2) if as_json else str(found))
    if found.verdict != "right":
        raise typer.Exit(FOUND)


report_commands.add(app)


def main() -> None:
    """Run the command line."""
    run(app)
