"""A variant of a family that attnkit does not have."""

from __future__ import annotations

import attnkit
from acme_ranking.family import RankingPromises

PROMISES = RankingPromises(
    bidirectional=True,
    gradients=True,
    deterministic=True,
    dtypes=("float64", "float32"),
    devices=("cpu",),
)
BY_SUM = attnkit.Variant(
    name="acme_by_sum",
    family="ranking",
    summary="Ranks tokens by the sum of their features.",
    source="Acme 2026, eq. 2",
    relation="different",
    promises=PROMISES,
    config=attnkit.LayerConfig,
    layer="acme_ranking.layer:RankingLayer",
    implementations=(
        attnkit.Implementation(
            name="reference",
            function="acme_ranking.layer:rank",
            summary="torch.argsort",
            promises=PROMISES,
            cost=lambda problem: 1e-6 * problem.query_length,
        ),
    ),
)


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Offer it."""
    return (BY_SUM,)
