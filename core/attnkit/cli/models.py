"""The commands on saved models: ``attnkit survey`` and ``attnkit swap``.

The folder is opened by the first host that knows what lies in it, see `Opener`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from attnkit.cli.terminal import FOUND, say, show_table
from attnkit.errors import ConfigError, SwapError
from attnkit.registry.registry import default

if TYPE_CHECKING:
    from torch import nn

    from attnkit.promises import Relation
    from attnkit.swaps.plan_files import PlanSource

Folder = Annotated[
    Path, typer.Argument(help="Folder of a saved model: config.json and weights.", exists=True)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def survey(model_dir: Folder, as_json: AsJson = False) -> None:
    """Show the attention and feed-forward sites of a saved model, and what each needs."""
    from attnkit.swaps.api import survey as survey_model

    sites = survey_model(open_model(model_dir))
    if as_json:
        say(json.dumps([site.model_dump(mode="json") for site in sites], indent=2))
    else:
        head = ("site", "kind", "layer", "needs")
        show_table(head, [(s.path, s.kind, s.layer, s.obstacle or str(s.needs)) for s in sites])
    if not sites:
        raise typer.Exit(FOUND)


def swap(
    model_dir: Folder,
    plan: Annotated[str, typer.Argument(help="A variant's name, or a file .json, .yaml, .yml.")],
    *,
    accept: Annotated[
        str, typer.Option(help="exact, approximate or different: how far the maths may change.")
    ] = "exact",
    as_json: AsJson = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Also write the receipt: a file .json, or a checkpoint's folder."),
    ] = None,
) -> None:
    """Try a swap on a saved model and print its receipt; the folder is not changed.

    Exit code 1 if the swap is refused or fails its verification, 2 if the plan is wrong.
    """
    from attnkit.swaps.api import swap as swap_model
    from attnkit.swaps.receipts import receipt_path

    written = None if output is None else receipt_path(output)
    model = open_model(model_dir)
    try:
        swapped = swap_model(model, _plan(plan), accept=cast("Relation", accept))
    except SwapError as error:
        typer.echo(f"attnkit: {error}", err=True)
        raise typer.Exit(FOUND) from error
    if written is not None:
        written.parent.mkdir(parents=True, exist_ok=True)
        swapped.save(written)
    say(swapped.receipt.model_dump_json(indent=2) if as_json else str(swapped.receipt))


def open_model(folder: Path) -> nn.Module:
    """Open a saved model with the first host that knows it.

    Raises:
        ConfigError: No host does.
    """
    from attnkit.hosts.answers import opened
    from attnkit.hosts.protocol import Opener

    openers = [host for host in default().hosts() if isinstance(host, Opener)]
    for host in openers:
        model = opened(host, folder)
        if model is not None:
            return model
    names = ", ".join(host.name for host in openers) or "none"
    raise ConfigError(f"{folder}: no host knows the model in this folder; hosts that open: {names}")


def _plan(text: str) -> PlanSource:
    from attnkit.swaps.plan_files import SUFFIXES

    return Path(text) if text.endswith(SUFFIXES) else text
