"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import warm_process
from typer.testing import CliRunner, Result

import attnkit
from attnkit.cli.terminal import FOUND, WRONG
from attnkit_contracts.cli.app import app, main

BUILT_INS = [
    "block_sparse",
    "flash",
    "gated_linear",
    "linear",
    "moe",
    "multi_head",
    "self_attention",
    "sliding_window",
    "state_space",
]


@pytest.fixture
def variant() -> attnkit.Variant:
    """One with an implementation that does not load."""
    right = attnkit.get_variant("multi_head")
    promises = right.promises.model_copy(update={"dtypes": ("float32", "bfloat16")})
    astray = replace(
        right.implementations[0],
        name="astray",
        function="acme.no_such_module:attend",
        promises=promises,
    )
    return replace(right, name="acme_fails", implementations=(right.implementations[0], astray))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def rows(result: Result) -> dict[str, list[str]]:
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    return {line[0]: line[1:] for line in lines if len(line) > 1}


def test_list_shows_every_built_in_with_its_promises() -> None:
    found = rows(run("list"))
    assert set(BUILT_INS) <= set(found)
    assert found["flash"][0] == "softmax"
    assert "causal" in found["flash"][3]


def test_list_names_as_json_is_a_list_of_names() -> None:
    assert set(BUILT_INS) <= set(json.loads(run("list", "--names", "--json").stdout))


def test_list_as_json_holds_the_typed_promises() -> None:
    found = {each["name"]: each for each in json.loads(run("list", "--json").stdout)}
    expected = attnkit.get_variant("multi_head").promises
    assert type(expected).model_validate(found["multi_head"]["promises"]) == expected


def test_show_tells_options_and_implementations() -> None:
    found = rows(run("show", "multi_head"))
    assert found["num_heads"][0] == "required"
    assert found["sdpa"][0].startswith("torch's scaled_dot_product_attention")


def test_explain_says_what_runs_and_why_not_the_others() -> None:
    result = run("explain", "multi_head", "--needs", "softcap", "--causal")
    assert result.exit_code == 0
    assert "chosen: multi_head.eager" in result.stdout
    assert "softcap: asked for, not promised" in rows(result)["multi_head.sdpa"][1]


def test_explain_knows_what_compiles_and_which_transforms_it_runs_under() -> None:
    told = rows(run("explain", "flash", "--needs", "compile", "--needs", "jvp"))
    assert told["flash.onednn"][1].startswith("transforms: needs jvp, offers vmap; compile: asked")
    assert "transforms: needs jvp" in told["flash.sdpa"][1]


def test_explain_refuses_heads_that_do_not_divide() -> None:
    result = run("explain", "flash", "--kv-heads", "3")
    assert result.exit_code == WRONG
    assert "must divide --heads 8, got 3" in result.stderr


def test_explain_ends_with_1_where_nothing_can() -> None:
    result = run("explain", "self_attention", "--heads", "2", "--json")
    assert result.exit_code == FOUND
    assert json.loads(result.stdout)["chosen"] is None


def test_doctor_tries_every_implementation() -> None:
    result = run("doctor", "--json")
    told = json.loads(result.stdout)
    tried = {(each["variant"], each["implementation"]) for each in told["trials"]}
    declared = {
        (name, each.name)
        for name in BUILT_INS
        for each in attnkit.get_variant(name).implementations
    }
    assert declared <= tried
    assert not told["broken"]
    assert result.exit_code == 0


def test_doctor_tells_once_of_all_dtypes_what_fails_and_where(variant: attnkit.Variant) -> None:
    with attnkit.register(variant):
        told, found = run("doctor").stdout, json.loads(run("doctor", "--json").stdout)

    fails = "fails: acme_fails.astray, acme.no_such_module:attend, in cpu float32, cpu bfloat16\n"
    assert told.count("ModuleNotFoundError") == 1
    assert fails + "Traceback (most recent call last)" in told
    assert told.endswith("broken plugins: 0, failing implementations: 1\n")
    called = {each["called"] for each in found["trials"] if each["implementation"] == "astray"}
    assert called == {False}


def test_check_writes_every_report_that_is_asked_for(tmp_path: Path) -> None:
    files = {name: str(tmp_path / "reports" / name) for name in ("junit", "md", "html")}
    written = [word for name, file in files.items() for word in (f"--{name}", file)]
    result = run("check", "self_attention", "--dtype", "float32", "--json", "-", *written)
    report = json.loads(result.stdout)
    begins = {name: Path(file).read_text().lstrip()[:5].lower() for name, file in files.items()}

    assert result.exit_code == 0
    assert report["header"]["executed_count"] > 10
    assert begins == {"junit": "<?xml", "md": "# con", "html": "<!doc"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "flsh"], "Did you mean 'flash'?"),
        (["check", "flsh"], "Did you mean 'flash'?"),
        (["check", "moe", "--tier", "brief"], "tier must be one of"),
        (["check", "moe", "--device", "cuda:99"], "device 'cuda:99' is not here: torch finds"),
        (["check", "moe", "--json", "-", "--md", "-"], "one report can be printed"),
        (["explain", "flash", "--needs", "speed"], "--needs must be one of"),
        (["explain", "moe", "--needs", "bias"], "--needs must be one of compile, grad, vmap, jvp"),
        (["explain", "flash", "--mask", "holes"], "--mask must be one of"),
        (["list", "--all"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_ends_with_2_and_says_what_is_allowed(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["attnkit", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == WRONG
    assert message in told
    assert "Traceback" not in told


def test_the_process_of_a_wrong_command_ends_so_too() -> None:
    done = warm_process.run("-m", "attnkit_contracts", "check", "flsh")
    assert done.returncode == WRONG
    assert "Did you mean 'flash'?" in done.stderr
    assert "Traceback" not in done.stderr
