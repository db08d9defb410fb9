"""``attnkit check`` is for variants, ``attnkit judge`` for code that is no plugin."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from attnkit.cli.terminal import WRONG
from attnkit.errors import ArgumentError
from attnkit_contracts.cli.app import app
from attnkit_contracts.cli.strangers import named_arguments, values
from attnkit_contracts.foreign.conventions import Convention, LayerConvention

DOCS = Path(__file__).parents[3] / "docs"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def options(command: str) -> dict[str, Any]:
    """Return the options of a command, by their first name."""
    group: Any = typer.main.get_command(app)
    found = group.commands[command].params
    return {each.opts[0]: each for each in found if each.param_type_name == "option"}


def test_check_has_few_options() -> None:
    assert len(options("check")) <= 15


def test_every_option_of_check_but_for_what_plugins_have_is_one_of_judge() -> None:
    # other processes know what is installed, which what is judged is not
    assert set(options("check")) - set(options("judge")) == {"--implementation", "--jobs"}


@pytest.mark.parametrize("command", ["check", "judge"])
def test_every_option_stands_in_a_panel_and_says_what_it_is(command: str) -> None:
    bare = [name for name, each in options(command).items()
            if not (each.help and each.rich_help_panel)]  # fmt: skip
    assert bare == []


def test_check_says_in_one_line_that_code_is_judged() -> None:
    done = run("check", "flash", "kernel:attend")

    assert done.exit_code == WRONG
    assert done.stderr == (
        "attnkit: 'kernel:attend' is no variant; code that is no plugin is for: "
        "attnkit judge kernel:attend\n"
    )


def test_judge_says_in_one_line_that_variants_are_checked() -> None:
    done = run("judge", "flash", "--promise", "causal")

    assert done.exit_code == WRONG
    assert done.stderr == (
        "attnkit: 'flash' is not module:name; a variant is for: attnkit check flash\n"
    )


WRONG_ONES = (
    (["--layout", "LBHE"], "layout must be one of BHLE, BLHE, got 'LBHE'"),
    (["--family", "moe"], "family must be softmax or recurrence, got 'moe'"),
    (["--width", "24"], "width is not about family softmax; leave it out"),
    (["--always", "beta"], "always is not about family softmax; leave it out"),
    (["--argument", "state=h"], "state_argument is not about family softmax; leave it out"),
    (["--promise", "tiled"], "got 'tiled'"),
    (["--certificate", "c.json", "torch:add"], "takes exactly one variant"),
)


@pytest.mark.parametrize(("told", "message"), WRONG_ONES)
def test_a_wrong_declaration_says_what_is_allowed(told: list[str], message: str) -> None:
    done = run("judge", "torch.nn.functional:scaled_dot_product_attention", "--promise", "causal",
               *told)  # fmt: skip
    printed = re.sub(r"[\s│]+", " ", f"{done.stderr} {done.exception}")

    assert done.exit_code
    assert message in printed


def test_arguments_are_named_in_pairs() -> None:
    told = ["scale=scaling", "log_decay=gk", "gqa=none"]

    assert named_arguments(Convention, told) == {
        "scale_argument": "scaling",
        "decay_argument": "gk",
        "gqa_argument": None,
    }
    assert named_arguments(LayerConvention, ["x=query,key", "mask=attn_mask"]) == {
        "x_arguments": ("query", "key"),
        "mask_argument": "attn_mask",
    }


@pytest.mark.parametrize("pair", ["scale", "scale=", "shape=x"])
def test_an_argument_without_a_name_is_an_error(pair: str) -> None:
    with pytest.raises(ArgumentError, match=f"got {pair!r}"):
        named_arguments(Convention, [pair])


def test_values_are_read_as_python_writes_them() -> None:
    assert values(["heads=4", "bias=False", "act=gelu"]) == {
        "heads": 4,
        "bias": False,
        "act": "gelu",
    }


@pytest.mark.parametrize("pair", ["heads", "=4", "heads="])
def test_a_value_without_a_name_is_an_error(pair: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"got {pair!r}")):
        values([pair])


def documented() -> list[list[str]]:
    """Return the commands ``attnkit check`` and ``attnkit judge`` of all pages, as words."""
    pages = (page.read_text() for page in sorted(DOCS.rglob("*.md")))
    lines = (page.replace("\\\n", " ") for page in pages)
    return [
        shlex.split(found)
        for page in lines
        for found in re.findall(r"^(?:\$ )?attnkit ((?:check|judge) [^|>\n]+)", page, re.MULTILINE)
    ]


@pytest.mark.parametrize("words", documented(), ids=" ".join)
def test_every_documented_command_can_be_read(words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    name, *arguments = words
    read = group.commands[name].make_context(name, arguments).params

    assert all(":" in target for target in read["targets"]) if name == "judge" else read["names"]


def test_pages_judge_functions_and_layers() -> None:
    judged = [words for words in documented() if words[0] == "judge"]

    assert len(judged) >= 4
    assert any("mixer" in words for words in judged)
