"""The options of ``attnkit check`` and ``attnkit judge``: a record for each group of them.

A command takes the records whole; `grouped` tells typer of their fields. Beside the type of a field
stands its help, and its name where that is another.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STDOUT = Path("-")

File = Path | None
Word = str | None
Words = list[str] | None


@dataclass(frozen=True)
class Suite:
    """What is run, in the words of `attnkit_contracts.check`."""

    PANEL: ClassVar = "How much is checked"

    tier: Annotated[str, "fast, standard or full"] = "fast"
    dtypes: Annotated[Words, "A dtype to check; left out, all promised; repeatable.", "--dtype"] = (
        None
    )
    device: Annotated[str, "cpu or cuda"] = "cpu"
    seed: Annotated[int, "Of the inputs."] = 0


@dataclass(frozen=True)
class Reports:
    """What is written of a run."""

    PANEL: ClassVar = "What is written"

    json: Annotated[File, "Write the report as JSON; - prints it in place of the table."] = None
    junit: Annotated[File, "Write it as JUnit's XML; or -."] = None
    md: Annotated[File, "Write it as Markdown; or -."] = None
    html: Annotated[File, "Write it as one HTML page; or -."] = None
    expected_failures: Annotated[File, "A .toml or .json file of failures that are known."] = None
    certificate: Annotated[File, "Write a certificate of one variant to this file, .json."] = None

    def files(self) -> dict[str, Path]:
        """Return the files that are asked for, by the suffix of their format."""
        asked = {".json": self.json, ".xml": self.junit, ".md": self.md, ".html": self.html}
        return {suffix: path for suffix, path in asked.items() if path is not None}

    def check(self, count: int) -> None:
        """Refuse two reports on one screen, and one certificate of several variants."""
        if list(self.files().values()).count(STDOUT) > 1:
            raise typer.BadParameter("one report can be printed, not several", param_hint="-")
        if self.certificate and count != 1:
            raise typer.BadParameter("takes exactly one variant", param_hint="--certificate")
        if self.html is not None:
            from attnkit_contracts.reports.html import environment

            # what it needs beside attnkit is missed before the checks, not after them
            environment()


@dataclass(frozen=True)
class Code:
    """What is said of any code that is no plugin."""

    PANEL: ClassVar = "What it is, and how it is called"

    family: Annotated[str, "softmax or recurrence, of a function; mixer: a layer."] = "softmax"
    promise: Annotated[Words, "What it claims: causal, gqa, padding, float32 ...; repeatable."] = (
        None
    )
    argument: Annotated[
        Words,
        "Its name for an argument, as scale=softmax_scale; scale=none if it takes none; of a "
        "layer: x, padding, mask, causal, dropout; repeatable.",
    ] = None
    fixed: Annotated[Words, "What every call is given, as need_weights=False; repeatable."] = None
    layout: Annotated[Word, "Of its tensors: BHLE or BLHE; of a layer, BLD or LBD."] = None
    mask: Annotated[
        Word,
        "What it takes for a mask: bool (True may attend), hidden (True is shut out), additive, "
        "additive_min; of a function also none, of a layer integer.",
        "--mask-as",
    ] = None


@dataclass(frozen=True)
class FunctionCode:
    """What is said of functions alone."""

    PANEL: ClassVar = "Of a function"

    output_layout: Annotated[Word, "Layout of its output, if it is another."] = None
    causal_corner: Annotated[
        Word, "What its causal flag means for L != S: lower_right or upper_left."
    ] = None
    own_scale: Annotated[
        Word, "width, for a recurrence that multiplies queries by E ** -0.5 unasked."
    ] = None
    always: Annotated[Words, "What every call of a recurrence must bring: beta; repeatable."] = None


@dataclass(frozen=True)
class LayerCode:
    """What is said of layers alone."""

    PANEL: ClassVar = "Of a layer"

    construct: Annotated[Words, "What it is made with, as num_heads=4; repeatable."] = None
    width: Annotated[int | None, "D of its input and output; left out, 32."] = None
    padding: Annotated[Word, "What it takes for padding, (B, L); as --mask-as.", "--padding-as"] = (
        None
    )
    mask_shape: Annotated[Word, "Of its mask: BHLS, LS; BLS is (B * heads, L, L)."] = None
    mask_heads: Annotated[int | None, "Heads of its mask."] = None
    definition: Annotated[
        Word, "The whole layer as a plain float64 function, module:function, to be judged by."
    ] = None
    output: Annotated[Word, "Which attribute of what it returns is its output.", "--pick"] = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes records the fields of these records for options."""
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    records = {
        each.name: each.annotation for each in parameters if hasattr(each.annotation, "PANEL")
    }

    @wraps(command)
    def called(**given: Any) -> None:
        made = {
            name: record(**{each.name: given.pop(each.name) for each in fields(record)})
            for name, record in records.items()
        }
        command(**given, **made)

    told = [each for each in parameters if each.name not in records]
    told += [each for record in records.values() for each in _options(record)]
    # what typer reads, by inspect; the type of functions does not declare it
    called.__signature__ = inspect.Signature(told)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in told}
    return called


def _options(record: Any) -> Iterator[inspect.Parameter]:
    """Yield the fields of a record as parameters of a command."""
    hints = get_type_hints(record, include_extras=True)
    for each in fields(record):
        hint = hints[each.name]
        meaning, *names = hint.__metadata__
        option = typer.Option(*names, help=meaning, rich_help_panel=record.PANEL)
        yield inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=Annotated[hint.__origin__, option],
        )
