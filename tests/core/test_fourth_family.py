"""A family that attnkit does not have is brought from outside: listed, run by its door, refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
from attnkit.choice.front import choose
from attnkit.errors import ArgumentError, DuplicateVariantError, SwapRefusedError, UnsupportedError
from attnkit.families import Family
from attnkit.interface import LayerConfig
from attnkit.problem import Problem
from attnkit.registry.registry import default

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RankingProblem(Problem):
    """A call that ranks tokens; ``margin`` asks for more than an implementation may have."""

    family: str = "ranking"
    margin: bool = False

    def wants(self) -> dict[str, bool]:
        return {"margin": self.margin, **super().wants()}


class RankingPromises(attnkit.Promises):
    margin: bool = False


def rank(x: Tensor, *, margin: float) -> Tensor:
    """(B, L, D) to the ranks of its tokens, (B, L)."""
    return x.sum(-1).argsort(1)


class RankingLayer(torch.nn.Module):
    def __init__(self, config: LayerConfig, **_: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, *, mask: Any = None) -> Tensor:
        return x.softmax(1)


def call(function: Any, variant: attnkit.Variant, problem: RankingProblem) -> None:
    function(torch.ones(1, problem.query_length, 4), margin=0.0)


RANKING = Family(
    name="ranking",
    summary="tokens put in order",
    door="acme.rank",
    problem=RankingProblem,
    promises=RankingPromises,
    operation=True,
    first_call=call,
)
PROMISES = RankingPromises(dtypes=("float32",), devices=("cpu",), bidirectional=True)
BY_SUM = attnkit.Variant(
    name="acme_by_sum",
    family="ranking",
    summary="Ranks by the sum of a token.",
    source="none",
    relation="different",
    promises=PROMISES,
    config=LayerConfig,
    layer=RankingLayer,
    implementations=(
        attnkit.Implementation(
            name="reference",
            function=rank,
            summary="argsort",
            promises=PROMISES,
            cost=lambda _: 1.0,
        ),
    ),
)
CALL = RankingProblem(device="cpu", dtype="float32", query_length=8)


@pytest.fixture
def ranking() -> Iterator[None]:
    with attnkit.register(RANKING), attnkit.register(BY_SUM):
        yield


def test_a_variant_of_a_family_that_nobody_brings_is_refused_with_the_families_there_are() -> None:
    with pytest.raises(ArgumentError, match="family must be one of softmax, recurrence, feedforw"):
        attnkit.register(BY_SUM)


@pytest.mark.usefixtures("ranking")
def test_it_is_listed_and_explained() -> None:
    assert "acme_by_sum" in str(attnkit.list_variants())
    assert "ranking" in str(attnkit.list_variants())
    assert default().family("ranking") is RANKING


@pytest.mark.usefixtures("ranking")
def test_its_calls_are_chosen_for_by_its_own_problem() -> None:
    chosen = choose("acme_by_sum", CALL)
    assert chosen.function(torch.eye(4)[None], margin=0.0).shape == (1, 4)
    asking = RankingProblem(device="cpu", dtype="float32", query_length=8, margin=True)
    with pytest.raises(UnsupportedError, match="margin: asked for, not promised"):
        choose("acme_by_sum", asking)


@pytest.mark.usefixtures("ranking")
def test_other_doors_refuse_it_and_name_its_own() -> None:
    x = torch.randn(1, 1, 4, 8)
    with pytest.raises(ArgumentError, match=r"of family 'ranking'.*run it through acme.rank"):
        attnkit.attention(x, x, x, variant="acme_by_sum")
    with pytest.raises(ArgumentError, match=r"must be of family 'recurrence'.*'ranking'"):
        attnkit.recurrence(x, x, x, variant="acme_by_sum")


@pytest.mark.usefixtures("ranking")
def test_a_swap_refuses_it_by_name_until_it_says_how_its_variants_stand() -> None:
    model = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True)
    with pytest.raises(SwapRefusedError, match=r"'acme_by_sum' \(family ranking\) declares no pl"):
        attnkit.swap(model, "acme_by_sum")


@pytest.mark.usefixtures("ranking")
def test_its_layer_is_created_by_name() -> None:
    assert attnkit.create("acme_by_sum", embed_dim=4)(torch.randn(1, 3, 4)).shape == (1, 3, 4)


@pytest.mark.usefixtures("ranking")
def test_a_name_is_taken_once() -> None:
    with pytest.raises(DuplicateVariantError, match="family 'ranking' is already offered"):
        attnkit.register(RANKING)


def test_attnkits_own_names_are_taken() -> None:
    with pytest.raises(ArgumentError, match="'softmax' is attnkit's own"):
        attnkit.register(Family(name="softmax", summary="", door=""))


def test_a_promise_of_another_family_is_refused_by_name() -> None:
    variant = attnkit.get_variant("multi_head")
    promises = variant.promises.model_copy(update={"beta": True})
    wrong = attnkit.Variant(
        **{
            name: getattr(variant, name)
            for name in ("family", "summary", "source", "relation", "config", "layer")
        },
        name="acme_wrong",
        promises=promises,
        implementations=variant.implementations,
    )
    with pytest.raises(
        ArgumentError, match=r"promises: beta is nothing that .* 'softmax' can prom"
    ):
        attnkit.register(wrong)
