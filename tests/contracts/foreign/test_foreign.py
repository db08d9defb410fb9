"""Functions that are no plugins: declared, judged, and the page about those of others."""

from __future__ import annotations

import inspect
import re
import runpy
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from typer.testing import CliRunner, Result
from warm_process import run

import attnkit
import attnkit_contracts
from attnkit.errors import ArgumentError, UnsupportedError
from attnkit_contracts import adapt
from attnkit_contracts.cli.app import app
from attnkit_contracts.foreign.claims import parse
from attnkit_contracts.foreign.conventions import Convention, LayerConvention
from attnkit_contracts.foreign.function_calls import SoftmaxCall
from attnkit_contracts.foreign.functions import FUNCTION

if TYPE_CHECKING:
    from attnkit_contracts.reports.records import Report

DOCS = Path(__file__).parents[3] / "docs"
SDPA = "torch.nn.functional:scaled_dot_product_attention"
PROMISES = "causal, bidirectional, cross, gqa, scale, dense, padding, gradients, float32"
RIGHT = {
    "causal_argument": "is_causal",
    "causal_corner": "upper_left",
    "gqa_argument": "enable_gqa",
}


def report_on(function: Any, **declared: Any) -> Report:
    variant = adapt(function, **{"promises": PROMISES, "name": "acme", **declared})
    return attnkit_contracts.check(variant, implementations=[FUNCTION])


def diagnoses(report: Report) -> set[str]:
    """Return the names of mistakes in the diagnoses of a report."""
    found = (record.diagnosis.named for record in report.failures())
    return {name for names in found for name in names}


def test_torchs_attention_passes_as_it_is_declared() -> None:
    report = report_on(SDPA, **RIGHT)

    assert [(record.id, record.told) for record in report.failures()] == []
    assert report.header.executed_count > 50


def test_a_causal_corner_that_is_not_declared_is_named() -> None:
    report = report_on(SDPA, **{**RIGHT, "causal_corner": "lower_right"})

    assert diagnoses(report) == {"upper_left_causal"}


def by_length(query: Any, key: Any, value: Any, **named: Any) -> torch.Tensor:
    """Attend in the layout (B, L, H, E)."""
    out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)), **named)
    return out.transpose(1, 2)


def hiding(query: Any, key: Any, value: Any, hidden: Any = None, **named: Any) -> torch.Tensor:
    """Attend with a mask that says what is hidden."""
    seen = None if hidden is None else ~hidden
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, **named)


def adding(query: Any, key: Any, value: Any, added: Any = None, **named: Any) -> tuple[Any, None]:
    """Attend with a mask that is added; return a pair."""
    return scaled_dot_product_attention(query, key, value, attn_mask=added, **named), None


CONVENTIONS = (
    (by_length, {"layout": "BLHE"}),
    (hiding, {"mask": "hidden", "mask_argument": "hidden"}),
    (adding, {"mask": "additive", "mask_argument": "added", "promises": f"{PROMISES}, bias"}),
)


@pytest.mark.parametrize(("function", "declared"), CONVENTIONS)
def test_a_declared_convention_is_kept(function: Any, declared: dict[str, Any]) -> None:
    report = report_on(function, **{**RIGHT, **declared})

    assert [(record.id, record.told) for record in report.failures()] == []


def test_a_polarity_that_is_not_declared_is_named() -> None:
    report = report_on(hiding, **RIGHT, mask_argument="hidden")

    assert {"mask_inverted", "dense_inverted"} & diagnoses(report)


def delta_rule(query: Any, key: Any, value: Any, g: Any = None, **named: Any) -> Any:
    """Run a gated delta rule over (B, L, H, E), scaled by E ** -0.5."""
    beta, state = named["beta"], named["state"].clone()
    outs = []
    for t in range(value.shape[1]):
        q, k, v = query[:, t], key[:, t], value[:, t]
        if g is not None:
            state = state * g[:, t].exp()[..., None, None]
        v = beta[:, t, :, None] * (v - torch.einsum("bhev,bhe->bhv", state, k))
        state = state + k[..., None] * v[..., None, :]
        outs.append(torch.einsum("bhev,bhe->bhv", state, q * q.shape[-1] ** -0.5))
    return torch.stack(outs, 1), state


RECURRENCE = {
    "family": "recurrence",
    "promises": "none, head, beta, scale, gradients",
    "layout": "BLHE",
    "scale_argument": None,
    "state_argument": "state",
    "always": ("beta",),
}


def test_a_recurrence_passes_as_it_is_declared() -> None:
    report = report_on(delta_rule, **RECURRENCE, own_scale="width")

    assert [(record.id, record.told) for record in report.failures()] == []
    assert report.counts()["passed"] > 20


def test_a_scale_of_their_own_is_made_up_for_without_rounding_what_they_are_given() -> None:
    seen: list[torch.Tensor] = []

    def noted(query: Any, key: Any, value: Any, **named: Any) -> Any:
        seen.append(query)
        return delta_rule(query, key, value, **named)

    variant = adapt(noted, name="noted", **RECURRENCE, own_scale="width")
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 1, 3, 5, generator=draw) for _ in range(3))
    beta = torch.rand(1, 1, 3, generator=draw)
    out, _ = attnkit.recurrence(query, key, value, variant=variant, beta=beta, scale=0.7)
    own, _ = attnkit.recurrence(query, key, value, variant=variant, beta=beta, scale=5**-0.5)

    assert torch.equal(seen[-1], query.transpose(1, 2))
    assert torch.equal(out, own * (0.7 / 5**-0.5))


def with_a_flag(query: Any, key: Any, value: Any, is_causal: bool = False) -> torch.Tensor:
    return SDPA(query, key, value, is_causal=is_causal)


def test_an_argument_that_a_function_does_not_have_is_refused_by_name() -> None:
    told = "causal_argument: with_a_flag has no argument 'iscausal', it has is_causal, key, query"
    with pytest.raises(ArgumentError, match=told):
        adapt(with_a_flag, promises="causal", causal_argument="iscausal")
    # one that takes any keyword may take this one
    adapt(delta_rule, **{**RECURRENCE, "scale_argument": "scaling"}, name="any")


def test_the_command_says_why_what_is_required_did_not_run(tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text(
        "def short(query, key, value, **named):\n    raise TypeError('no such keyword')\n"
    )
    promised = ["--family", "softmax", "--promise", "bidirectional"]
    done = run("-m", "attnkit_contracts", "judge", "short:short", *promised, cwd=tmp_path)

    assert done.returncode == 1
    assert "required but not run: short/function/float32/cpu\n  variant 'short'" in done.stdout
    assert "TypeError: no such keyword" in done.stdout


def test_a_scale_that_is_not_declared_is_named() -> None:
    assert diagnoses(report_on(delta_rule, **RECURRENCE)) == {"scale_of_softmax"}


def test_a_function_has_no_layer_to_check() -> None:
    planned = attnkit_contracts.plan(adapt(SDPA, promises=PROMISES, name="acme", **RIGHT))

    assert {each.target.implementation for each in planned} == {"reference", FUNCTION, "auto"}


def test_the_source_of_a_variant_makes_it_again() -> None:
    call = adapt(SDPA, promises=PROMISES, name="acme", **RIGHT).implementations[-1].function
    assert isinstance(call, SoftmaxCall)
    assert call.source is not None
    again = eval(call.source, {"adapt": adapt}).implementations[-1].function

    assert again.convention == call.convention


DECLARED = (
    Convention(promises="causal, float32", layout="BLHE"),
    Convention(promises="none, beta", family="recurrence", always=("beta",)),
    LayerConvention(promises="causal", construct={"bias": False}),
)


@pytest.mark.parametrize("declared", DECLARED)
def test_a_convention_survives_json(declared: Convention | LayerConvention) -> None:
    assert type(declared).model_validate_json(declared.model_dump_json()) == declared


WRONG = (
    ({"promises": "softcap, causal"}, "softcap is promised, but cannot be passed"),
    ({"promises": "gqa"}, "causal or bidirectional"),
    ({"promises": "causal, tiled"}, "got 'tiled'"),
    ({"promises": "causal, padding", "mask": "none"}, "mask parts padding are promised"),
    ({"promises": "causal", "layout": "LBHE"}, "layout must be one of BHLE, BLHE, got 'LBHE'"),
    ({"promises": "causal", "family": "mixer"}, "family must be softmax or recurrence"),
    ({"promises": "causal", "name": "flash"}, "'flash' is taken by a variant"),
    ({"promises": "causal", "always": ("beta",)}, "always is not about family softmax; leave it"),
    (
        {"promises": "none", "family": "recurrence", "window_argument": "window"},
        "window_argument is not about family recurrence; leave it out",
    ),
    (
        {"promises": "causal, padding", "mask_argument": None},
        "padding are promised, but cannot be passed: name its argument with mask_argument",
    ),
    ({"promises": "causal", "causal_argument": 3}, "causal_argument must be a str, got 3"),
)


@pytest.mark.parametrize(("declared", "told"), WRONG)
def test_a_declaration_that_contradicts_itself_is_an_error(
    declared: dict[str, Any], told: str
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(told)):
        adapt(SDPA, **declared)


@pytest.mark.parametrize("address", ["torch:no_such_function", "no_such_module:f", "torch"])
def test_a_function_that_is_not_there_is_an_error(address: str) -> None:
    with pytest.raises(ArgumentError):
        adapt(address, promises="causal")


def test_a_mask_that_has_no_name_is_refused_and_not_dropped() -> None:
    variant = adapt(SDPA, promises="causal, cross", name="acme", **{**RIGHT, "mask_argument": None})
    query, keys = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 3, 4)

    with pytest.raises(UnsupportedError, match="name its argument with mask_argument"):
        attnkit.attention(query, keys, keys, mask=attnkit.causal(), variant=variant,
                          implementation=FUNCTION)  # fmt: skip


def test_the_help_of_a_door_says_what_every_keyword_means() -> None:
    told = inspect.getdoc(adapt) or ""

    assert set(inspect.signature(adapt).parameters) == {"function", *Convention.model_fields}
    assert [name for name in Convention.model_fields if f"\n    {name}: " not in told] == []


def test_promises_have_the_smallest_dtypes_and_devices_by_default() -> None:
    assert parse("causal, window, cuda").model_dump(exclude_defaults=True) == {
        "causal": True,
        "masks": ("window",),
        "dtypes": ("float32",),
        "devices": ("cuda",),
    }


def attnkit_judge(address: str, *declared: str) -> Result:
    """Judge a function of a module in the folder that one stands in."""
    sys.modules.pop(address.partition(":")[0], None)
    return CliRunner().invoke(app, ["judge", address, *declared])


def test_the_command_line_judges_a_recurrence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect.getsource(delta_rule)
    (tmp_path / "delta.py").write_text(f"from typing import Any\n\nimport torch\n\n\n{source}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    declared = ["--family", "recurrence", "--promise", "none, head, beta, scale, gradients",
                "--layout", "BLHE", "--argument", "scale=none", "--argument", "state=state",
                "--own-scale", "width", "--always", "beta"]  # fmt: skip
    done = attnkit_judge("delta:delta_rule", *declared)

    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith("passed: ")


def test_the_command_line_judges_a_function(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(
        "from torch.nn.functional import scaled_dot_product_attention as attend\n"
    )
    done = run(
        *("-m", "attnkit_contracts", "judge", "kernel:attend"),
        *("--promise", "causal,bidirectional", "--promise", "cross,dense"),
        *("--argument", "causal=is_causal", "--argument", "scale=scale"),
        cwd=tmp_path,
    )

    assert done.returncode == 1, done.stderr
    assert "(upper_left_causal)" in done.stdout
    assert "VARIANT = adapt('kernel:attend'" in done.stdout or "VARIANT = adapt(" in done.stdout


def test_the_page_has_a_row_for_every_implementation() -> None:
    page = (DOCS / "reference" / "foreign.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    functions = import_module("foreign_functions").FOREIGN
    layers = import_module("foreign_layers").FOREIGN_LAYERS

    assert rows == [each.name for each in (*functions, *layers)]
    assert len(functions) >= 10 <= len(layers)


def test_every_deviation_on_the_page_has_its_note() -> None:
    assert "without a note" not in (DOCS / "reference" / "foreign.md").read_text()


def test_every_finding_has_its_place_on_the_page() -> None:
    page = (DOCS / "reference" / "foreign.md").read_text()
    written = {path.name for path in (DOCS / "findings").glob("*.py")}

    assert written == set(re.findall(r"\.\./findings/(\w+\.py)", page))


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("torch_causal_corner.py", "the oldest value"),
        ("torch_mask_and_causal.py", "the default backend applies both"),
        ("transformers_float64.py", "a row that sees nothing tensor([nan"),
        ("torch_mha_nan_gradients.py", "need_weights=True gives 32 of 32 gradients NaN"),
        ("recurrent_gemma_deepcopy.py", "after a step: RuntimeError"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_a_finding_shows_what_it_says(
    script: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng():
        runpy.run_path(str(DOCS / "findings" / script), run_name="__main__")

    assert told in capsys.readouterr().out
