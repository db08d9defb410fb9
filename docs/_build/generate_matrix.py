"""Write ``reference/swap-matrix.md``: every architecture times every softmax variant.

    python docs/_build/generate_matrix.py

Each cell is a swap that was carried out on a tiny random model, and verified, or what refused it.
Needs timm beside the packages of the test group.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from architectures import ARCHITECTURES, sample_for

import attnkit
from attnkit.errors import AttnkitError
from attnkit.registry.registry import default

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attnkit.promises import Relation

PAGE = Path(__file__).parents[1] / "reference" / "swap-matrix.md"

HEAD = """# Which variant goes into which model

Made by `python docs/_build/generate_matrix.py` with {versions}.

Each model is tiny and random, in float32, on the CPU. A number is a swap that was made, verified
and undone: the largest error of any of the model's attention layers, on the tensors that reach it,
in units of what rounding may do ([Numerics](../explanation/numerics.md#after-a-swap); 3 is
allowed), and what ran. A number in brackets is a refusal, listed below the table; it left the
model as it was.

The last column gives `sliding_window` a window that is longer than any of the samples. It hides
nothing there, and is other mathematics all the same, since a longer text would show it: where the
layer has no window itself, such a swap is refused as exact and made with `accept="different"`.
Its error is that against the variant's own definition, and behind it stands the drift, the change
of a layer's output relative to it.
"""

WIDE = 64
"""Keys; more than the samples have."""


class Column(NamedTuple):
    """A plan for every attention layer of a model, and how much of a change is accepted."""

    plan: dict[str, object]
    accept: Relation


class Cell(NamedTuple):
    """What became of one swap: ``text`` or, of a refusal, ``reason``."""

    text: str
    reason: str | None


def columns() -> dict[str, Column]:
    """Return what is swapped, by its title: attnkit's own softmax variants, one with an option."""
    entries = [entry.name for entry in default().entries() if entry.owner == "attnkit"]
    names = [name for name in entries if attnkit.get_variant(name).family == "softmax"]
    wide = Column({"variant": "sliding_window", "window_size": WIDE}, "different")
    return {
        **{name: Column({"variant": name}, "exact") for name in names},
        f"sliding_window, {WIDE} keys": wide,
    }


def swapped(name: str, column: Column) -> Cell:
    """Swap what a column says into a fresh model."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name][1]().eval()
    for parameter in model.parameters():
        # larger than most initialise: attention must prefer some keys to others
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    try:
        receipt = attnkit.swap(
            model, column.plan, sample=sample_for(name), accept=column.accept
        ).receipt
    except AttnkitError as error:
        return Cell("", _reason(str(error)))
    worst = max(site.error_after for site in receipt.sites)
    ran = dict.fromkeys(key for site in receipt.sites for key in site.implementations)
    told = f"{worst:.2f} {', '.join(key.partition('.')[2] for key in ran)}"
    drift = max(site.drift or 0.0 for site in receipt.sites)
    return Cell(told if column.accept == "exact" else f"{told}, drift {drift:.0e}", None)


def page() -> Iterator[str]:
    """Make the lines of the page."""
    titles, reasons = columns(), dict[str, int]()
    yield from HEAD.format(versions=_versions()).splitlines()
    yield ""
    yield f"| model | host | {' | '.join(f'`{title}`' for title in titles)} |"
    yield "|" + " --- |" * (len(titles) + 2)
    for name, (host, _) in ARCHITECTURES.items():
        cells = []
        for column in titles.values():
            cell = swapped(name, column)
            if cell.reason is not None:
                number = reasons.setdefault(cell.reason, len(reasons) + 1)
                cell = Cell(f"({number})", None)
            cells.append(cell.text)
        yield f"| {name} | {host} | {' | '.join(cells)} |"
    yield ""
    yield "What refused:"
    yield ""
    yield from (f"{number}. {reason}" for reason, number in reasons.items())


def _reason(told: str) -> str:
    """Return the reasons of a refusal on one line, without sites and implementations."""
    indented = [line.strip() for line in told.splitlines() if line.startswith("    ")]
    # what a call is refused with has a head, and ends with what could take it
    lines = [each for each in indented if not re.search(r":$|^what can: ", each)] or [told]
    reasons = [re.sub(r"^\w+\.\w+: ", "", line).split("; ") for line in lines]
    return "; ".join(dict.fromkeys(each for line in reasons for each in line)).replace("|", "\\|")


def _versions() -> str:
    from attnkit.versions import version_of

    names = ("attnkit", "torch", "transformers", "timm")
    return ", ".join(f"{name} {version_of(name).partition('+')[0]}" for name in names)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")
