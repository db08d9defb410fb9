"""Plans from files and functions: read as in Python, wrong ones refused by name."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import pytest

from attnkit.errors import ArgumentError, ConfigError, UnsupportedError
from attnkit.sites import Needs, Site
from attnkit.swaps.plan import assign
from attnkit.swaps.plan_files import written_out

if TYPE_CHECKING:
    from pathlib import Path


def site(path: str, layer: str = "LlamaAttention", kind: Any = "attention") -> Site:
    return Site(
        path=path,
        kind=kind,
        layer=layer,
        host="transformers",
        needs=Needs(causal="decoder" in path),
        dtype="float32",
        device="cpu",
    )


SITES = (
    site("encoder.layers.0.attn", "Encoding"),
    site("decoder.layers.0.attn", "Decoding"),
    site("decoder.layers.0.mlp", "Mlp", "feedforward"),
    site("decoder.encoder.layers.0.attn", "Encoding"),
)

WINDOW = {"variant": "sliding_window", "window_size": 4}


def taken(source: Any) -> dict[str, str]:
    """Return which variant the plan puts at which site."""
    assignments = assign(written_out(source, SITES), SITES)
    return {each.site.path: each.variant.name for each in assignments}


@pytest.mark.parametrize(
    ("name", "text", "plan"),
    [
        ("plan.json", '"flash"', "flash"),
        ("plan.yaml", "flash\n", "flash"),
        ("plan.json", json.dumps(WINDOW), WINDOW),
        ("plan.yml", "variant: sliding_window\nwindow_size: 4\n", WINDOW),
        ("plan.json", json.dumps({"*.attn": WINDOW}), {"*.attn": WINDOW}),
        (
            "plan.yaml",
            "layers.0: {variant: sliding_window, window_size: 4}\n'*.attn': flash\n",
            {"layers.0": WINDOW, "*.attn": "flash"},
        ),
        ("plan.yaml", "type:Encoding: flash\n", {"type:Encoding": "flash"}),
    ],
)
def test_file_holds_what_a_plan_in_python_holds(
    tmp_path: Path, name: str, text: str, plan: object
) -> None:
    (tmp_path / name).write_text(text)
    assert written_out(tmp_path / name, SITES) == plan


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("plan.json", "{", "no JSON: "),
        ("plan.json", "null", "got nothing"),
        ("plan.json", "[1]", r"got \[1\]"),
        ("plan.json", '{"a": 3}', "'a' must be a variant's name or a mapping with 'variant', got"),
        ("plan.json", '{"a": "flash", "a": "linear"}', "'a' stands twice"),
        ("plan.yaml", "a: flash\na: linear\n", "'a' stands twice"),
        ("plan.yaml", "x: {variant: flash, variant: linear}\n", "'variant' stands twice"),
        ("plan.yaml", "*.attn: flash\n", r"quote a pattern that starts with '\*'"),
        ("plan.yaml", "0: flash\n", "a pattern is a string, got 0; quote it"),
        ("plan.toml", "", r"a plan's file ends in \.json, \.yaml, \.yml"),
    ],
)
def test_file_that_is_no_plan_is_refused_by_name(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"plan\.\w+: (.|\n)*{told}"):
        written_out(tmp_path / name, SITES)


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.json: cannot be read: .*No such file"):
        written_out(tmp_path / "plan.json", SITES)


def test_yaml_without_its_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plan.yaml").write_text("flash\n")
    monkeypatch.setattr("attnkit.swaps.plan_files.find_spec", lambda _: None)
    with pytest.raises(UnsupportedError, match="'PyYAML', which is not installed: pip install py"):
        written_out(tmp_path / "plan.yaml", SITES)
    assert importlib.util.find_spec("yaml") is not None


def test_function_is_asked_for_every_site_and_chooses() -> None:
    asked: list[str] = []

    def choose(one: Site) -> str | None:
        asked.append(one.path)
        return "flash" if one.layer == "Encoding" else None

    chosen = {SITES[0].path: "flash", SITES[3].path: "flash"}
    assert taken(choose) == chosen
    assert asked == [one.path for one in SITES]


def test_function_sees_what_a_site_needs() -> None:
    assert taken(lambda one: WINDOW if one.needs.causal and one.kind == "attention" else None) == {
        SITES[1].path: "sliding_window",
        SITES[3].path: "sliding_window",
    }


def test_function_that_chooses_nothing_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"None for every site: encoder\.layers\.0\.attn, "):
        written_out(lambda _: None, SITES)


def test_function_that_puts_attention_at_a_feedforward_site_is_refused() -> None:
    with pytest.raises(ArgumentError, match="fits only feedforward sites"):
        taken(lambda _: "flash")


@pytest.mark.parametrize("plan", [3, None, ["flash"]])
def test_what_is_no_plan_is_refused_by_its_type(plan: Any) -> None:
    with pytest.raises(ArgumentError, match=f"got {type(plan).__name__}"):
        written_out(plan, SITES)


def test_whole_path_of_a_site_fits_no_other() -> None:
    assert list(taken({"encoder.layers.0.attn": "flash"})) == ["encoder.layers.0.attn"]


def test_part_of_a_path_fits_wherever_it_stands() -> None:
    assert list(taken({"encoder.layers.0": "flash"})) == [SITES[0].path, SITES[3].path]


@pytest.mark.parametrize("pattern", ["type:Encoding", "type:Enc*"])
def test_pattern_over_classes_fits_by_class(pattern: str) -> None:
    assert list(taken({pattern: "flash"})) == [SITES[0].path, SITES[3].path]


def test_class_that_no_site_has_is_refused() -> None:
    with pytest.raises(ArgumentError, match="'type:LlamaAttention' fits no site"):
        taken({"type:LlamaAttention": "flash"})
