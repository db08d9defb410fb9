"""Layers are judged by their variant's definition; where there is none, that is said."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
import attnkit_contracts
from attnkit.errors import ArgumentError
from attnkit.interface import load
from attnkit.layers.definition import softmax
from attnkit_contracts.checks.numerics.layers import layer
from attnkit_contracts.inputs.options import joint_options, mixed_options, single_options
from attnkit_contracts.reports.markdown import matrix
from attnkit_contracts.running.runner import report_of
from attnkit_contracts.subjects.layers import sample_options
from attnkit_contracts.subjects.opener import subject_of
from attnkit_plugins.softmax.multi_head import VARIANT as MULTI_HEAD

if TYPE_CHECKING:
    from types import ModuleType

    from attnkit_contracts.reports.records import Report

BUILT_IN = ("block_sparse", "flash", "gated_linear", "linear", "moe", "multi_head")
BUILT_IN += ("self_attention", "sliding_window", "state_space")

LAYERS_OWN = (
    "layer",
    "attnkit.layers.softmax",
    "attnkit.layers.rotary",
    "attnkit.layers.recurrent",
)
LAYERS_OWN += ("attnkit.layers.heads", "attnkit.layers", "attnkit.operations", "attnkit.kernels")


def _run(variant: attnkit.Variant, check: str, **asked: Any) -> Report:
    with attnkit.register(variant):
        planned = attnkit_contracts.plan(variant, dtypes=["float32"], implementations=["layer"])
        some = tuple(each for each in planned if each.check.id == check)
        records = tuple(each.run(explain=False) for each in some)
        return report_of(some, records, asked=(variant.name,), tier="fast", device="cpu", seed=0)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_layer_brings_a_definition_that_shares_no_code_with_it(name: str) -> None:
    defined = load(attnkit.get_variant(name).layer_definition or "")
    tree = ast.parse(inspect.getsource(inspect.getmodule(defined) or pytest.fail("no module")))
    imported = [each.module or "" for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)]

    assert [each for each in imported if each in LAYERS_OWN or each.endswith(".layer")] == []


def test_a_report_says_whose_mathematics_nobody_judged(made: ModuleType) -> None:
    of_layer = made.record("acme/layer/float32/cpu/T2.steps")
    judged = made.record("acme/layer/float32/cpu/N1.layer")
    undecided = made.record("acme/layer/float32/cpu/N1.mixture", status="unsupported")

    def unjudged(*records: Any) -> tuple[str, ...]:
        found = report_of((), records, asked=("acme",), tier="fast", device="cpu", seed=0)
        return found.header.unjudged

    assert unjudged(of_layer) == unjudged(of_layer, undecided) == ("acme",)
    assert unjudged(of_layer, judged) == ()
    # an operation alone was asked for
    assert unjudged(made.record()) == ()


def test_the_table_and_the_page_say_it_in_plain_words(made: ModuleType) -> None:
    report = made.report(made.record("acme/layer/float32/cpu/T2.steps"))
    told = report.model_copy(
        update={"header": report.header.model_copy(update={"unjudged": ("acme",)})}
    )

    assert matrix(report)[1][0][0] == "acme / layer"
    assert matrix(told)[1][0][0] == "acme / layer (mathematics not judged)"
    assert "nobody judged its mathematics" in told.to_markdown()
    assert "nobody judged" in told.to_html()


def test_without_a_definition_no_check_asks_for_one() -> None:
    plain = replace(MULTI_HEAD, name="acme_undefined", layer_definition=None)

    assert _run(plain, "N1.layer").records == ()
    assert [
        each.status for each in _run(replace(plain, layer_definition=softmax), "N1.layer").records
    ] == ["passed"]


def test_a_definition_is_loaded_by_name_or_given_as_a_function() -> None:
    def wrong(*given: Any, **told: Any) -> torch.Tensor:
        return 1.01 * softmax(*given, **told)

    report = _run(replace(MULTI_HEAD, name="acme_wrong", layer_definition=wrong), "N1.layer")

    assert [each.status for each in report.records] == ["failed"]
    assert "probe units" in report.records[0].reason


def test_what_is_no_definition_is_refused() -> None:
    wrong: Any = 3
    with pytest.raises(ArgumentError, match="layer_definition must be"):
        attnkit.register(replace(MULTI_HEAD, name="acme_three", layer_definition=wrong))


def test_what_a_layer_begins_with_is_moved_so_that_it_shows() -> None:
    (instance,) = (
        each
        for each in attnkit_contracts.plan("gated_linear", dtypes=["float32"])
        if each.check.id == layer.id
    )
    subject: Any = subject_of(instance.target)
    before = {name: each.clone() for name, each in subject.weights().items()}

    after = subject.varied().weights()

    assert (after["norm_weight"] != before["norm_weight"]).all()
    assert torch.equal(after["q_proj.weight"], before["q_proj.weight"])


def test_a_layer_unlike_its_definition_is_shown_by_a_call() -> None:
    made = attnkit.get_variant("multi_head")

    def other(*given: Any, **named: Any) -> torch.Tensor:
        return softmax(*given, **named) + 1

    unlike = replace(made, name="unlike", layer_definition=other)
    with attnkit.register(unlike):
        planned = attnkit_contracts.plan(unlike, implementations=["layer"], dtypes=["float32"])
        record = next(each for each in planned if each.check.id == "N1.layer").run()

    assert "the layer and the definition that its variant brings differ" in str(record.diagnosis)
    assert record.smallest.startswith("x=(2, 1, 32)")
    assert "64 of 64 elements of out are wrong" in record.elements


def broken(*_: Any, **__: Any) -> torch.Tensor:
    raise KeyError("out_bias")


def test_a_definition_that_raises_is_said_to() -> None:
    unlike = replace(attnkit.get_variant("multi_head"), name="unlike", layer_definition=broken)
    with attnkit.register(unlike):
        planned = attnkit_contracts.plan(unlike, implementations=["layer"], dtypes=["float32"])
        record = next(each for each in planned if each.check.id == "N1.layer").run()

    assert record.status == "error"
    assert str(record.diagnosis) == "the definition that its variant brings raises"
    assert record.reason.startswith("KeyError: 'out_bias' (in broken,")


@pytest.mark.parametrize("name", ["multi_head", "block_sparse", "gated_linear", "moe"])
def test_every_option_is_mixed_in_and_every_two_come_together(name: str) -> None:
    variant = attnkit.get_variant(name)
    config = variant.config(**sample_options(variant))
    singles, joint = list(single_options(config)), joint_options(config)

    def holds(rows: list[dict[str, Any]], *options: dict[str, Any]) -> bool:
        wanted = {name: value for each in options for name, value in each.items()}
        return any(row.items() >= wanted.items() for row in rows)

    assert all(holds(mixed_options(config), each) for each in singles)
    pairs = [(a, b) for a in singles for b in singles if a.keys().isdisjoint(b)]
    missing = [(a, b) for a, b in pairs if not holds(joint, a, b)]
    for a, b in missing:
        with pytest.raises(ValueError, match=r"excludes|multiple|must"):
            variant.config(**{**config.model_dump(), **a, **b})


def test_a_mixed_set_is_few_layers() -> None:
    variant = attnkit.get_variant("multi_head")
    config = variant.config(**sample_options(variant))

    assert len(mixed_options(config)) <= 4 < len(list(single_options(config)))
