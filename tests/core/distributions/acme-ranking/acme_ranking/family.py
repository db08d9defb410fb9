"""A family that attnkit does not have: operations that put tokens in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import attnkit
from attnkit.families import Family
from attnkit.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RankingProblem(Problem):
    """A call that ranks tokens; ``margin`` asks for more than an implementation may have."""

    family: str = "ranking"
    margin: bool = False

    def wants(self) -> dict[str, bool]:
        return {"margin": self.margin, **super().wants()}


class RankingPromises(attnkit.Promises):
    """What its variants may claim beside what all may."""

    margin: bool = False


def small_call(
    function: Callable[..., Tensor], variant: attnkit.Variant, problem: RankingProblem
) -> None:
    """Rank as many equal tokens as the problem has."""
    import torch

    function(torch.ones(1, problem.query_length, 4), margin=0.0)


def rank(
    x: Tensor, *, margin: float = 0.0, variant: attnkit.Variant | str = "acme_by_sum"
) -> Tensor:
    """Order the tokens of (B, L, D) by any variant of the family, (B, L)."""
    from attnkit.choice import choose

    call = RankingProblem(
        device=x.device.type,
        dtype=str(x.dtype).removeprefix("torch."),
        batch=x.shape[0],
        query_length=x.shape[1],
        margin=margin != 0.0,
    )
    out: Tensor = choose(variant, call).function(x, margin=margin)
    return out


RANKING = Family(
    name="ranking",
    summary="tokens put in order",
    door="acme_ranking.family.rank",
    problem=RankingProblem,
    promises=RankingPromises,
    operation=True,
    first_call=small_call,
)


@attnkit.hookimpl
def attnkit_families() -> tuple[Family, ...]:
    """Offer the family."""
    return (RANKING,)
