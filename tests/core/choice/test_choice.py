"""Which implementation runs, and what is said about the others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
from attnkit.choice.decision import explain_choice
from attnkit.choice.first_call import BELIEVED, USES
from attnkit.choice.front import choose
from attnkit.errors import ArgumentError, BrokenImplementationWarning, UnsupportedError
from attnkit.interface import load
from attnkit.problem import SoftmaxProblem
from attnkit.reference import softmax

if TYPE_CHECKING:
    from collections.abc import Callable

MULTI_HEAD = attnkit.get_variant("multi_head")


def problem(**changes: Any) -> SoftmaxProblem:
    sizes: dict[str, Any] = {"batch": 1, "heads": 2, "kv_heads": 2, "query_length": 4}
    sizes |= {"key_length": 4, "head_dim": 8, "value_head_dim": 8}
    return SoftmaxProblem(**{"device": "cpu", "dtype": "float32", **sizes, **changes})


def implementation(name: str, cost: float, **changes: Any) -> attnkit.Implementation:
    given: dict[str, Any] = dict(
        function="attnkit.reference:softmax",
        summary="for a test",
        promises=MULTI_HEAD.promises.model_copy(update={"dropout": False}),
        cost=lambda _: cost,
    )
    return attnkit.Implementation(name=name, **{**given, **changes})


def variant(*implementations: attnkit.Implementation) -> attnkit.Variant:
    fields = {f: getattr(MULTI_HEAD, f) for f in ("summary", "source", "config", "layer")}
    return attnkit.Variant(
        name="acme_attention",
        family="softmax",
        relation="exact",
        promises=MULTI_HEAD.promises,
        implementations=implementations,
        **fields,
    )


def raising(error: Exception) -> Callable[..., torch.Tensor]:
    def function(*_: object, **__: object) -> torch.Tensor:
        raise error

    return function


def test_auto_takes_the_cheapest_that_can() -> None:
    parts = variant(implementation("reference", 2.0), implementation("cheap", 1.0))
    assert choose(parts, problem()).name == "cheap"


def test_auto_passes_over_one_that_does_not_promise_enough() -> None:
    plain = implementation(
        "cheap", 1.0, promises=MULTI_HEAD.promises.model_copy(update={"softcap": False})
    )
    assert choose(variant(implementation("reference", 2.0), plain), problem(softcap=True)).name == (
        "reference"
    )


def test_one_that_fails_a_small_call_is_not_chosen_and_says_why() -> None:
    broken = implementation("cheap", 1.0, function=raising(RuntimeError("no kernel image")))
    parts = variant(implementation("reference", 2.0), broken)
    choice = explain_choice(parts, problem())
    assert choice.chosen is None
    told = {each.implementation: each.reasons for each in choice.candidates}
    assert told["cheap"] == ("a small call fails here: RuntimeError: no kernel image",)


def test_the_reference_never_stands_in_for_one_that_fails() -> None:
    broken = implementation("cheap", 1.0, function="acme.no_such_module:attend")
    with pytest.raises(UnsupportedError) as refused:
        choose(variant(implementation("reference", 0.0), broken), problem())

    told = str(refused.value)
    assert "acme_attention.cheap: acme.no_such_module:attend does not load: ModuleNotF" in told
    assert "acme_attention.reference: the float64 reference never stands in" in told
    assert choose(variant(implementation("reference", 0.0), broken), problem(), "reference")


def test_the_reference_is_taken_where_it_is_alone_however_little_it_costs() -> None:
    able = implementation("reference", 0.0), implementation("dear", 2.0)

    assert choose(variant(*able), problem()).name == "dear"
    assert choose(variant(able[0]), problem()).name == "reference"


def test_one_that_fails_is_passed_over_with_one_warning() -> None:
    broken = implementation("cheap", 1.0, function=raising(TypeError("no argument 'softcap'")))
    parts = variant(implementation("reference", 3.0), broken, implementation("whole", 2.0))
    told = "acme_attention.cheap promises this call and fails, acme_attention.whole runs instead"
    with pytest.warns(BrokenImplementationWarning, match=told):
        assert choose(parts, problem()).name == "whole"

    # filterwarnings = error: another one would raise
    assert choose(parts, problem()).name == "whole"
    assert choose(parts, problem(query_length=1)).name == "whole"


@pytest.mark.filterwarnings("ignore::attnkit.errors.BrokenImplementationWarning")
def test_one_that_is_mended_is_taken_again_however_often_it_failed() -> None:
    is_broken = True

    def flaky(*tensors: torch.Tensor, **given: Any) -> torch.Tensor:
        if is_broken:
            raise RuntimeError("the driver is not ready")
        return softmax(*tensors, **given)

    parts = variant(
        implementation("reference", 3.0),
        implementation("flaky", 1.0, function=flaky),
        implementation("whole", 2.0),
    )
    query = torch.randn(1, 2, 4, 8)
    for _ in range(3 * BELIEVED):
        attnkit.attention(query, query, query, variant=parts)
    is_broken = False
    for _ in range(8 * USES):
        attnkit.attention(query, query, query, variant=parts)

    assert choose(parts, problem()).name == "flaky"


def test_a_named_one_that_fails_a_small_call_is_refused() -> None:
    broken = implementation("cheap", 1.0, function=raising(RuntimeError("no kernel image")))
    with pytest.raises(UnsupportedError, match="no kernel image"):
        choose(variant(implementation("reference", 2.0), broken), problem(), "cheap")


def test_a_missing_package_is_a_reason() -> None:
    needy = implementation("cheap", 1.0, packages=("surely_not_installed",))
    with pytest.raises(UnsupportedError, match="package surely_not_installed is not installed"):
        choose(variant(implementation("reference", 2.0), needy), problem(), "cheap")


def test_an_own_refusal_is_a_reason() -> None:
    picky = implementation("cheap", 1.0, refuses=lambda p: f"head_dim: {p.head_dim} is not 64")
    with pytest.raises(UnsupportedError, match="head_dim: 8 is not 64"):
        choose(variant(implementation("reference", 2.0), picky), problem(), "cheap")


def test_a_choice_is_remembered_until_the_registry_changes() -> None:
    asked: list[SoftmaxProblem] = []

    def cost(each: SoftmaxProblem) -> float:
        asked.append(each)
        return 1.0

    parts = variant(replace(implementation("reference", 0.0), cost=cost))
    choose(parts, problem())
    first = len(asked)
    choose(parts, problem())
    assert len(asked) == first
    with attnkit.register(variant(implementation("reference", 1.0))):
        pass
    choose(parts, problem())
    assert len(asked) > first


def test_an_explanation_survives_json() -> None:
    choice = explain_choice("multi_head", problem(softcap=True))
    assert type(choice).model_validate_json(choice.model_dump_json()) == choice
    assert str(choice).startswith("chosen: multi_head.eager\n")
    assert "multi_head.sdpa: softcap: asked for, not promised" in str(choice)


def test_a_variant_that_is_not_the_registered_one_is_refused() -> None:
    parts = variant(implementation("reference", 1.0))
    with (
        attnkit.register(variant(implementation("reference", 1.0))),
        pytest.raises(ArgumentError, match="'acme_attention' is not the one that is registered"),
    ):
        choose(parts, problem())


def test_an_implementation_whose_small_call_failed_once_runs_the_next_time() -> None:
    calls = []

    def short_of_memory_at_first(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return load("attnkit.reference:softmax")(*args, **options)

    own = implementation("own", 0.0, function=short_of_memory_at_first)
    parts, query = variant(implementation("reference", 1.0), own), torch.randn(1, 2, 4, 8)
    with pytest.raises(UnsupportedError, match="a small call fails here: RuntimeError: out of mem"):
        attnkit.attention(query, query, query, variant=parts, implementation="own")
    attnkit.attention(query, query, query, variant=parts, implementation="own")
    assert choose(parts, problem()).name == "own"


@pytest.mark.filterwarnings("ignore::attnkit.errors.BrokenImplementationWarning")
def test_a_small_call_that_fails_every_time_is_tried_ever_less_often() -> None:
    calls = []

    def broken(*_: object, **__: object) -> object:
        calls.append(1)
        raise RuntimeError("no such kernel")

    own = implementation("own", 0.0, function=broken)
    parts = variant(implementation("reference", 1.0), own, implementation("whole", 0.5))
    for batch in range(1, 65):
        assert choose(parts, problem(batch=batch)).name == "whole"
    # at the first, second and third question, and whenever twice as many were asked
    assert len(calls) == 7


def test_the_warning_of_a_broken_one_points_at_whoever_called() -> None:
    one = implementation("ok", 1.0)
    broken = implementation("cheap", 0.5, function="acme.no_such_module:attend")
    x = torch.ones(1, 2, 4, 8)
    parts = variant(implementation("reference", 2.0), one, broken)
    with pytest.warns(BrokenImplementationWarning, match="no_such_module:attend does not") as told:
        attnkit.attention(x, x, x, variant=parts)
    assert [each.filename for each in told] == [__file__]

    layer = attnkit.create(parts, embed_dim=16, num_heads=2)
    attnkit.registry.registry.default().remembered.first_calls.clear()
    attnkit.registry.registry.default().remembered.choices.clear()
    with pytest.warns(BrokenImplementationWarning) as told:
        layer(torch.ones(1, 4, 16))
    assert [each.filename for each in told] == [__file__]


def test_an_implementation_needs_no_hash() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]  # as of a dataclass that compares

        def __call__(self, *tensors: Any, **given: Any) -> Any:
            return softmax(*tensors, **given)

    x = torch.ones(1, 2, 4, 8)
    parts = variant(
        implementation("reference", 2.0), implementation("own", 1.0, function=Unhashable())
    )
    assert attnkit.attention(x, x, x, variant=parts).shape == x.shape
    assert choose(parts, problem()).name == "own"
