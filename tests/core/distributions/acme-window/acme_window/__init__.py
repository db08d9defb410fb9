"""Two complete variants by a stranger; where ACME_MARKER is set, importing them leaves a mark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import attnkit

if TYPE_CHECKING:
    from attnkit.problem import SoftmaxProblem

attnkit_api = "1.0"

if "ACME_MARKER" in os.environ:
    with Path(os.environ["ACME_MARKER"]).open("a") as marker:
        marker.write("acme_window was imported\n")

PROMISES = attnkit.Promises(
    causal=True,
    bidirectional=True,
    cross=True,
    masks=("window", "padding"),
    scale=True,
    gradients=True,
    dtypes=("float64", "float32"),
    devices=("cpu",),
)


def cost(problem: SoftmaxProblem) -> float:
    """Estimate seconds, from the size of the scores."""
    return 1e-9 * problem.query_length * problem.key_length


def declare(name: str) -> attnkit.Variant:
    """Declare one of two variants that differ in name only."""
    return attnkit.Variant(
        name=name,
        family="softmax",
        summary="Softmax attention, written out.",
        source="Acme 2026, eq. 1",
        relation="exact",
        promises=PROMISES,
        config=attnkit.LayerConfig,
        layer="acme_window.reference:Layer",
        implementations=(
            attnkit.Implementation(
                name="reference",
                function="acme_window.reference:attend",
                summary="float64, all scores at once",
                promises=PROMISES,
                cost=cost,
            ),
        ),
    )


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Offer both."""
    return (declare("acme_window"), declare("acme_taken"))
