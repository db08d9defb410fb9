"""A function is told which known mistake it equals, in whatever convention it is written."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

import pytest
import strangers_functions
from typer.testing import CliRunner

import attnkit_contracts
from attnkit.errors import ArgumentError
from attnkit_contracts.cli.app import app
from attnkit_contracts.definitions.mistakes.softmax import MISTAKES
from attnkit_contracts.diagnosis.remedies import REMEDIES

if TYPE_CHECKING:
    import torch

RIGHT = {
    "usual": {},
    "tokens_first": {"layout": "BLHE"},
    "true_drops": {"mask": "hidden"},
    "additive": {"mask": "additive"},
    "aligned_upper_left": {"causal_corner": "upper_left"},
    "causal_by_itself": {"mask": "none"},
    "heads_first_out": {"layout": "BLHE", "output_layout": "BHLE"},
    "tokens_first_drops": {"layout": "BLHE", "mask": "hidden"},
}
MISTAKEN = {
    "no_scale": ("scale_missing",),
    "tiled_heads": ("heads_tiled",),
    "cap_after_bias": ("softcap_after_bias",),
    "one_ahead": ("causal_one_ahead",),
    "scale_of_width": ("scale_twice",),
    "scale_ignored": ("scale_argument_ignored",),
    "default_of_value_width": ("scale_value_width",),
    "base_two": ("base_2",),
    "tokens_first_unscaled": ("scale_missing",),
    "drops_and_tiles": ("heads_tiled",),
    "window_too_long": ("window_one_long",),
    "tiled_and_unscaled": ("scale_missing", "heads_tiled"),
    "unscaled_one_ahead": ("scale_missing", "causal_one_ahead"),
}


def diagnosed(name: str) -> attnkit_contracts.FunctionDiagnosis:
    return attnkit_contracts.diagnose(f"strangers_functions:{name}")


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_in_another_convention_is_told_which(name: str) -> None:
    found = diagnosed(name)

    assert (found.verdict, found.mistakes) == ("right", ())
    assert RIGHT[name].items() <= found.convention.items()


@pytest.mark.parametrize("name", MISTAKEN)
def test_a_mistake_is_named_with_its_fix_in_whatever_convention(name: str) -> None:
    found = diagnosed(name)

    assert found.verdict == "mistaken"
    assert tuple(each.name for each in found.mistakes) == MISTAKEN[name]
    assert len(found.fixes) == len(found.mistakes)
    layout = "BLHE" if name.startswith("tokens_first") else "BHLE"
    assert found.convention.get("layout", "BHLE") == layout


@pytest.mark.parametrize("name", ["values_turned", "noisy", "odd_temperature"])
def test_what_no_mistake_explains_is_said_and_not_named(name: str) -> None:
    found = diagnosed(name)

    assert (found.verdict, found.mistakes) == ("unexplained", ())
    assert "no named mistake nor two of them explain it all" in str(found)


def test_what_is_unexplained_is_shown_by_a_number() -> None:
    found = diagnosed("noisy")
    first = next(each for each in found.asked if each.outcome == "unexplained")

    assert re.fullmatch(r"out\[[\d, ]+\]: expected \S+, got \S+", first.told)
    assert f"  {first.what}: {first.told}" in str(found)


def test_arguments_that_no_call_gave_are_told() -> None:
    found = diagnosed("names_of_its_own")

    assert found.untried == ("m", "tri")
    assert "not tried: m, tri; say what they are, --argument mask=NAME" in str(found)
    assert diagnosed("usual").untried == ()


def test_a_callable_is_diagnosed_as_well_and_what_is_told_is_not_tried() -> None:
    found = attnkit_contracts.diagnose(strangers_functions.tokens_first, layout="BHLE")

    assert found.verdict == "unexplained"
    assert "layout" not in found.convention


def test_one_mistake_is_found_where_two_ways_to_call_it_hide_it() -> None:
    told = dict(layout="BLHE", mask="hidden", mask_argument="mask", scale_argument=None)
    found = attnkit_contracts.diagnose(strangers_functions.tokens_first_drops, **told)

    assert found.verdict == "right"


def test_the_command_that_is_told_judges_the_function_green() -> None:
    words = shlex.split(diagnosed("tokens_first_drops").command)
    result = CliRunner().invoke(app, words[1:])

    assert words[:3] == ["attnkit", "judge", "strangers_functions:tokens_first_drops"]
    assert (result.exit_code, result.stdout.splitlines()[-1][:6]) == (0, "passed")


def test_the_command_line_ends_with_1_for_a_mistake_and_says_it_as_json() -> None:
    result = CliRunner().invoke(app, ["diagnose", "strangers_functions:tiled_heads", "--json"])

    assert result.exit_code == 1
    assert json.loads(result.stdout)["mistakes"][0]["name"] == "heads_tiled"


def test_a_function_that_takes_no_call_is_refused_with_what_it_raised() -> None:
    def sums(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        raise ValueError("not today")

    with pytest.raises(ArgumentError, match="sums takes no call: ValueError: not today"):
        attnkit_contracts.diagnose(sums)


def test_every_remedy_is_of_a_mistake() -> None:
    assert REMEDIES.keys() <= {each.name for each in MISTAKES}
