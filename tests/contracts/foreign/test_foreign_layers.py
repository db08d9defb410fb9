"""Layers that are no plugins: declared, judged without any reference, and caught where wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import strangers_layers as strangers
import torch
import warm_process
from torch import nn
from typer.testing import CliRunner, Result

import attnkit
import attnkit_contracts
from attnkit.errors import ArgumentError, UnsupportedError
from attnkit.promises import Promises
from attnkit_contracts import adapt_layer
from attnkit_contracts.cli.app import app
from attnkit_contracts.foreign.claims import parse
from attnkit_contracts.foreign.layers import Recipe

if TYPE_CHECKING:
    import subprocess

    from attnkit_contracts.catalogue import Tier
    from attnkit_contracts.reports.records import Report

FOLDER = Path(__file__).parent
MULTI_HEAD = "torch.nn:MultiheadAttention"
MASKS = "dense, padding, window, documents, prefix, blocks, union"
PROMISES = f"causal, bidirectional, {MASKS}, dropout, gradients, deterministic, compile"

TORCH: dict[str, Any] = {
    "construct": {"embed_dim": 32, "num_heads": 4, "batch_first": True},
    "promises": f"{PROMISES}, float64, float32, bfloat16, float16",
    "x_arguments": ("query", "key", "value"),
    "fixed": {"need_weights": False},
    "padding": "hidden",
    "padding_argument": "key_padding_mask",
    "mask": "hidden",
    "mask_argument": "attn_mask",
    "mask_shape": "BLS",
    "mask_heads": 4,
    "dropout_argument": "dropout",
}
STRANGER: dict[str, Any] = {
    "construct": {"dim": 32},
    "promises": f"{PROMISES}, float64, float32, bfloat16".replace(", compile", ""),
    "padding_argument": "real",
    "mask_argument": "seen",
    "dropout_argument": "drop",
}


def report_on(factory: Any, *, tier: Tier = "fast", **declared: Any) -> Report:
    variant = adapt_layer(factory, name="acme", **declared)
    with attnkit.register(variant):
        return attnkit_contracts.check(variant, tier=tier, explain=False)


def told(report: Report) -> list[tuple[str, str]]:
    return [(record.id, record.reason) for record in report.failures()]


def test_torchs_layer_passes_as_it_is_declared() -> None:
    report = report_on(MULTI_HEAD, tier="standard", **TORCH)

    assert told(report) == []
    assert report.passed


def test_more_than_twenty_checks_run_without_a_reference() -> None:
    report = report_on(MULTI_HEAD, **TORCH)
    passed = {record.check for record in report.records if record.status == "passed"}

    assert {record.status for record in report.records} == {"passed"}
    assert len(passed) >= 27
    assert passed >= {"S1.output", "M1.suffix_perturbation", "M10.padded", "A1.batch_independence",
                      "T1.prefix", "N4.parameters", "I4.state_dict"}  # fmt: skip


def test_every_check_of_a_layer_is_named_in_the_reference() -> None:
    promises = parse(f"{TORCH['promises']}, cpu, cuda").model_copy(
        update={"memory": "L", "time": "L", "stops_nan": True}
    )
    variant = adapt_layer(MULTI_HEAD, name="acme", **{**TORCH, "promises": promises})
    planned = {each.check.id for each in attnkit_contracts.plan(variant, tier="full")}
    page = (FOLDER.parents[2] / "docs" / "reference" / "checks.md").read_text()
    section = page.partition("## Layers that are no plugins")[2].partition("\n## ")[0]

    assert planned == set(re.findall(r"`([A-Z]\d+\.\w+)`", section))


RIGHT: tuple[tuple[Any, dict[str, Any]], ...] = (
    (strangers.Attention, STRANGER),
    (
        strangers.TokensFirst,
        {
            "construct": {"dim": 32},
            "promises": STRANGER["promises"].replace("dropout, ", ""),
            "layout": "LBD",
            "x_arguments": ("query", "value"),
            "fixed": {"loud": False},
            "output": "hidden",
            "padding": "additive_min",
            "padding_argument": "padded",
            "mask": "additive",
            "mask_argument": "added",
            "mask_shape": "BLS",
            "mask_heads": 4,
            "causal_argument": "causal",
        },
    ),
    (
        strangers.Averages,
        {
            "construct": {"dim": 24},
            "width": 24,
            "promises": Promises(causal=True, gradients=True, deterministic=True, memory="L",
                                 time="L", devices=("cpu",), dtypes=("float64", "float32")),
        },
    ),
)  # fmt: skip


@pytest.mark.parametrize(("factory", "declared"), RIGHT)
def test_a_right_layer_passes_under_its_conventions(factory: Any, declared: Any) -> None:
    report = report_on(factory, tier="standard", **declared)

    assert told(report) == []
    assert report.passed


DTYPES = {
    "not_cast": "bfloat16",
    "computed_when_made": "bfloat16",
    "wrong_gradient": "float64",
}


@pytest.mark.parametrize("mistake", strangers.KILLS)
def test_a_wrong_layer_is_caught_by_the_check_meant_for_it(mistake: str) -> None:
    dtype, check = DTYPES.get(mistake, "float32"), strangers.KILLS[mistake]
    promises = f"{PROMISES}, {dtype}".replace(", compile", "")
    variant = adapt_layer(getattr(strangers, mistake), **{**STRANGER, "promises": promises})
    planned = attnkit_contracts.plan(variant, tier="standard")
    with attnkit.register(variant):
        records = [each.run(explain=False) for each in planned if each.check.id == check]

    assert {record.status for record in records} & {"failed", "error"}, records


def test_another_convention_than_the_layers_is_caught() -> None:
    report = report_on(MULTI_HEAD, **{**TORCH, "padding": "bool"})
    red = {record.check for record in report.failures()}

    assert {"M9.padding_content", "M10.padded"} <= red


def test_a_failure_of_one_call_has_a_script_that_shows_it(tmp_path: Path) -> None:
    made = {"input_size": 32, "hidden_size": 32, "batch_first": True}
    variant = adapt_layer("torch.nn:GRU", promises="causal, float32", construct=made)
    with attnkit.register(variant):
        (record,) = attnkit_contracts.check(variant).failures()
    done = run(record.reproduction, tmp_path)

    assert record.check == "S8.empty"
    assert "VARIANT = adapt_layer('torch.nn:GRU', promises='causal, float32'" in record.reproduction
    assert "larger than 0 in RNN" in done.stderr


def test_a_failure_between_calls_has_a_script_that_shows_it(tmp_path: Path) -> None:
    variant = adapt_layer(strangers.neighbours_normalised, construct={"dim": 32},
                          promises="bidirectional, float32")  # fmt: skip
    with attnkit.register(variant):
        report = attnkit_contracts.check(variant)
    (record,) = [each for each in report.failures() if each.check == "A1.batch_independence"]
    done = run(record.reproduction, tmp_path)

    assert str(record.diagnosis) == "sample 0 gives something else alone"
    assert f"AssertionError: {record.diagnosis}: off by" in done.stderr, done.stderr


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that can import the layers of strangers."""
    (folder / "strangers_layers.py").write_text((FOLDER / "strangers_layers.py").read_text())
    (folder / "shown.py").write_text(script)
    return warm_process.run("shown.py", cwd=folder)


def test_the_source_of_a_layers_variant_makes_it_again() -> None:
    recipe = adapt_layer(MULTI_HEAD, **TORCH).layer
    assert isinstance(recipe, Recipe)
    assert recipe.source is not None
    again = eval(recipe.source, {"adapt_layer": adapt_layer}).layer

    assert again.convention == recipe.convention


def test_a_layer_that_cannot_be_written_down_has_no_source() -> None:
    norm = adapt_layer(strangers.Averages, promises="causal", construct={"dim": object()}).layer
    assert isinstance(norm, Recipe)

    assert norm.source is None


WRONG = (
    ({"promises": "causal, state"}, "state is promised, but adapt_layer passes a layer its input"),
    ({"promises": "causal, gqa"}, "gqa is promised, but adapt_layer passes"),
    ({"promises": "causal, dropout"}, "dropout is promised, but cannot be set"),
    ({"promises": "gradients"}, "promises must have causal or bidirectional"),
    ({"promises": "causal, bidirectional"}, "causal and bidirectional are promised, but nothing"),
    ({"promises": "causal, padding"}, "the mask parts padding are promised, but cannot be passed"),
    (
        {"promises": "causal, window", "padding_argument": "real"},
        "the mask parts window are promised, but cannot be passed",
    ),
    (
        {"promises": "causal, documents", "mask_argument": "seen", "mask_shape": "LS"},
        "documents are promised, but a mask (L, L) is the same for every sample",
    ),
    ({"promises": "causal", "layout": "BHLE"}, "layout must be one of BLD, LBD, got 'BHLE'"),
    ({"promises": "causal", "padding": "none"}, "padding must be one of bool, hidden"),
    ({"promises": "causal", "width": 0}, "width must be a positive int, got 0"),
    ({"promises": "causal", "name": "flash"}, "'flash' is taken by a variant"),
)


@pytest.mark.parametrize(("declared", "message"), WRONG)
def test_a_declaration_that_contradicts_itself_is_an_error(
    declared: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        adapt_layer(strangers.Attention, **declared)


def test_what_is_no_module_is_an_error() -> None:
    variant = adapt_layer(dict, promises="causal")

    with pytest.raises(
        ArgumentError, match=re.escape("dict must make a torch.nn.Module, got dict")
    ):
        attnkit.create(variant)


def made(**declared: Any) -> nn.Module:
    return attnkit.create(adapt_layer(strangers.Attention, **{**STRANGER, **declared}))


def test_what_is_not_promised_is_refused() -> None:
    layer, x = made(promises="bidirectional, float32"), torch.zeros(2, 4, 32)

    with pytest.raises(UnsupportedError, match="mask window: not promised"):
        layer(x, mask=attnkit.sliding_window(2))
    with pytest.raises(UnsupportedError, match="causal: not promised"):
        layer(x, mask=attnkit.causal())
    with pytest.raises(UnsupportedError, match="state: a layer given to adapt_layer promises none"):
        layer.init_state(2)
    with pytest.raises(UnsupportedError, match="state: a layer"):
        layer(x, state=object())


def test_a_mask_that_one_square_cannot_say_is_refused() -> None:
    layer = made(promises="bidirectional, dense, float32", mask_shape="LS")
    seen = torch.ones(2, 1, 4, 4, dtype=torch.bool)

    with pytest.raises(UnsupportedError, match=re.escape("one (L, L) for all")):
        layer(torch.zeros(2, 4, 32), mask=attnkit.dense(seen))


COMMAND = (
    *("--family", "mixer", "--promise", "causal,bidirectional,padding,dense,gradients,float32"),
    *("--construct", "embed_dim=24", "--construct", "num_heads=4", "--width", "24"),
    *("--argument", "x=query,key,value", "--argument", "padding=key_padding_mask"),
    *("--argument", "mask=attn_mask", "--mask-as", "hidden", "--layout", "LBD"),
    *("--fixed", "need_weights=False", "--mask-shape", "LS"),
)


def attnkit_judge(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["judge", MULTI_HEAD, *arguments])


def test_the_command_line_judges_a_layer() -> None:
    done = attnkit_judge(*COMMAND, "--padding-as", "hidden")

    assert done.exit_code == 0, done.output
    assert "MultiheadAttention / layer" in done.stdout


def test_the_command_line_shows_what_is_wrong_with_a_layer() -> None:
    done = attnkit_judge(*COMMAND)

    assert done.exit_code == 1, done.stderr
    assert "MultiheadAttention/layer/float32/cpu/M10.padded: failed" in done.stdout
    assert "VARIANT = adapt_layer('torch.nn:MultiheadAttention'" in done.stdout


def test_the_command_line_refuses_an_option_of_another_family() -> None:
    done = attnkit_judge(*COMMAND, "--causal-corner", "upper_left")

    assert done.exit_code == 2
    assert "causal_corner is not about family mixer" in re.sub(r"[\s│]+", " ", done.stderr)
