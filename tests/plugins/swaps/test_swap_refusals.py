"""What a swap cannot do it refuses by name, before anything is changed; what it did it records."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from tiny_models import GQA
from transformers.masking_utils import create_causal_mask

import attnkit
from attnkit.errors import (
    ArgumentError,
    ConfigError,
    SwapError,
    SwapRefusedError,
    UnknownVariantError,
    UnsupportedError,
)
from attnkit.swaps.decisions import decide
from attnkit.swaps.plan import assign
from attnkit.swaps.receipts import Receipt

SMALL: dict[str, Any] = {**GQA, "num_hidden_layers": 3}
LAYERS = tuple(f"model.layers.{number}.self_attn" for number in range(3))


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()


@pytest.mark.parametrize(
    ("plan", "accept", "error", "told"),
    [
        ("linaer", "exact", UnknownVariantError, "linear"),
        ("linear", "exact", UnsupportedError, "something else.*allow it by accept='different'"),
        ("moe", "exact", UnsupportedError, "num_experts: how many copies .* must be given"),
        ("self_attention", "exact", UnsupportedError, "num_heads: needs 4, offers 1"),
        ("sliding_window", "exact", UnsupportedError, "window_size: .*needs one"),
        ("block_sparse", "exact", UnsupportedError, "needs masks with blocks, no option of a plan"),
        ({"layers.7": "flash"}, "exact", ArgumentError, r"'layers\.7' fits no site; sites: model"),
        ({"layers.*": "flash", "layers.0": "flash"}, "exact", ArgumentError, "narrower"),
        ({"*.mlp": "flash"}, "exact", ArgumentError, "fits only feedforward sites"),
        ({}, "exact", ArgumentError, "plan is empty"),
        (
            {0: "flash"},
            "exact",
            ArgumentError,
            r"key of the plan must be .*a string, such as 'layers\.0', got 0 \(int\); sites",
        ),
        (
            {("layers", 0): "flash"},
            "exact",
            ArgumentError,
            r"a string, got \('layers', 0\) \(tuple",
        ),
        ({"*": {"window_size": 4}}, "exact", ConfigError, "has no 'variant'"),
        ({"variant": "flash", "windwo": 4}, "exact", ConfigError, "windwo.*window_size"),
        ({"variant": "flash", "window_size": 0}, "exact", ConfigError, "greater than 0"),
        ({"variant": "flash", "window_size": 4}, "exact", UnsupportedError, "4 hides keys"),
        ({"variant": "flash", "implementation": "no"}, "exact", ArgumentError, "'no'"),
        ("flash", "any", ArgumentError, "exact, approximate, different"),
    ],
)
def test_refusal_says_what_is_wrong_and_leaves_the_model(
    model: Any, plan: Any, accept: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=f"(?s){told}"):
        attnkit.swap(model, plan, accept=accept)
    assert all(model.get_submodule(path).config is model.config for path in LAYERS)


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        ({"foo": 1}, r"\(foo 1\): ValueError: You must specify exactly one of input_ids"),
        ({"input_ids": torch.full((1, 4), 97)}, r"\(input_ids \(1, 4\) int64\): IndexError: index"),
    ],
    ids=["argument", "tokens"],
)
def test_sample_that_the_model_does_not_run_on_is_named(
    model: Any, sample: dict[str, Any], told: str
) -> None:
    config = model.model.layers[0].self_attn.config
    told = f"sample: LlamaForCausalLM does not run on it {told}"
    with pytest.raises(SwapError, match=told) as caught:
        attnkit.swap(model, "flash", sample=sample)
    assert "give keyword arguments of the model's forward" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError | IndexError)
    assert model.model.layers[0].self_attn.config is config


def test_one_refusal_lists_every_layer_once(model: Any) -> None:
    with pytest.raises(UnsupportedError) as caught:
        attnkit.swap(model, "self_attention")
    assert [str(caught.value).count(path) for path in LAYERS] == [1, 1, 1]


def test_model_with_masks_of_another_kind_is_refused(model: Any) -> None:
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UnsupportedError, match="masks for attn_implementation='flash_attention_2'"):
        attnkit.swap(model, "flash")


def test_attention_outside_the_interface_is_surveyed_with_its_obstacle() -> None:
    sizes: Any = {"d_model": 64, "ffn_dim": 96, "num_layers": 1, "attention_heads": 4}
    model = transformers.XGLMForCausalLM(transformers.XGLMConfig(vocab_size=97, **sizes))
    found = [site for site in attnkit.survey(model) if site.kind == "attention"]
    told = (
        "XGLMAttention does not call transformers' attention interface; declare it as a module of "
        "your own: attnkit.declare(XGLMAttention, method=..., query=..., key=..., value=...)"
    )
    assert [site.obstacle for site in found] == [told]


def test_model_told_our_name_by_hand_is_refused_when_it_runs(model: Any) -> None:
    attnkit.swap(model, "flash").restore()
    model.set_attn_implementation("attnkit")
    with pytest.raises(SwapError, match=r"nothing was swapped into it; use attnkit\.swap"):
        model(torch.tensor([[3, 4]]))


def test_layer_that_makes_its_own_mask_gets_one_and_not_none(model: Any) -> None:
    with attnkit.swap(model, "flash"):
        config = model.get_submodule(LAYERS[0]).config
        mask = create_causal_mask(config, torch.zeros(1, 5, 64), None, None)
    assert mask is not None
    assert torch.equal(mask, torch.ones(1, 1, 5, 5, dtype=torch.bool).tril())


def test_model_of_no_host_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"no site in Linear.*hosts: .*transformers"):
        attnkit.swap(torch.nn.Linear(2, 2), "flash")


def test_core_and_adapter_work_where_transformers_is_not_installed() -> None:
    code = """if True:
        import sys
        sys.modules["transformers"] = None
        import attnkit_plugins.hosts.transformers, attnkit.swaps.api
        assert "torch" not in sys.modules
        import attnkit, torch
        assert not attnkit.survey(torch.nn.Linear(2, 2))"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_survey_tells_what_a_layer_needs(model: Any) -> None:
    needs = str({site.path: site for site in attnkit.survey(model)}[LAYERS[0]].needs)
    assert needs == "causal, GQA 4/2, head_dim 16, cache"


def test_receipt_survives_json_and_prints_every_site(model: Any, tmp_path: Any) -> None:
    receipt = attnkit.swap(model, {"variant": "flash", "implementation": "tiled"}).receipt
    receipt.save(tmp_path / "receipt.json")
    assert Receipt.load(tmp_path / "receipt.json") == receipt
    assert all(path in str(receipt) for path in LAYERS)
    assert {name for site in receipt.sites for name in site.implementations} == {"flash.tiled"}
    assert receipt.plan == {"*": {"variant": "flash", "implementation": "tiled"}}


def test_explanation_lists_reasons_as_swap_does(model: Any) -> None:
    decisions = [decide(each) for each in assign("self_attention", attnkit.survey(model))]
    assert all("num_heads: needs 4, offers 1" in d.reasons[0] for d in decisions)
    assert not attnkit.explain(model, "self_attention").possible


HYBRID: dict[str, Any] = {**SMALL, "bos_token_id": 1, "eos_token_id": 2}


def falcon_h1() -> Any:
    mamba: Any = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}
    sizes: Any = {"mamba_n_groups": 1, "mamba_chunk_size": 8}
    return transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**HYBRID, **mamba, **sizes))


def zamba2() -> Any:
    mamba: Any = {"mamba_ngroups": 1, "n_mamba_heads": 4, "mamba_headdim": 32, "mamba_d_state": 16}
    layers: Any = {"layers_block_type": ["mamba", "hybrid", "mamba"], "hybrid_layer_ids": [1]}
    sizes: Any = {"chunk_size": 8, "attention_head_dim": 32, "num_mem_blocks": 1}
    config = transformers.Zamba2Config(
        **{**HYBRID, "num_key_value_heads": 4}, **mamba, **layers, **sizes
    )
    return transformers.Zamba2ForCausalLM(config)


@pytest.mark.parametrize("build", [falcon_h1, zamba2])
def test_layer_that_shares_its_place_in_the_cache_has_none_for_a_state(build: Any) -> None:
    torch.manual_seed(0)
    model = build().eval()
    path = next(site.path for site in attnkit.survey(model) if site.kind == "attention")
    assert not attnkit.explain(model, {path: "linear"}).possible
    with pytest.raises(SwapRefusedError, match=r"state: .* needs .* a place of its own"):
        attnkit.swap(model, {path: "linear"}, accept="different")
    with attnkit.swap(model, {path: "flash"}):
        model.generate(torch.tensor([[5, 7, 9]]), max_new_tokens=2, do_sample=False)
