"""Models whose weights rest elsewhere, or in other numbers, between two calls."""

from __future__ import annotations

import warnings
from typing import Any

import accelerate
import pytest
import torch
import transformers
from tiny_models import GQA, SMALL, lively
from torch import nn

import attnkit
from attnkit.errors import SwapRefusedError, UnsupportedError

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
MIXTURE = {"*.mlp": {"variant": "moe", "num_experts": 2, "top_k": 1}}
EXPERTS = {"*.experts": "moe"}
FIXED = {"variant": "gated_linear", "decay": "fixed"}


def bert() -> Any:
    return transformers.BertModel(transformers.BertConfig(**SMALL))


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA))


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**GQA, num_local_experts=4))


def vit() -> Any:
    sizes: Any = {"hidden_size": 64, "intermediate_size": 96, "image_size": 32, "patch_size": 8}
    layers: Any = {"num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, **layers))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return (self.out(mixed.transpose(1, 2).flatten(2)),)


def offloaded(model: Any) -> Any:
    return accelerate.cpu_offload(model, execution_device="cpu")


def quantised(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


INPUTS: dict[Any, dict[str, Any]] = {
    bert: {"input_ids": IDS},
    llama: {"input_ids": IDS},
    vit: {"pixel_values": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))},
    Own: {"x": torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(3))},
}


@pytest.mark.parametrize("build", INPUTS)
@pytest.mark.parametrize("rest", [offloaded, quantised])
@torch.no_grad()
def test_exact_variant_goes_in_and_changes_nothing(build: Any, rest: Any) -> None:
    model, given = rest(lively(build)), INPUTS[build]
    expected = model(**given)[0]
    for sample in (None, given) if build is not Own else (given,):
        with attnkit.swap(model, "flash", sample=sample):
            # float32: a hundred roundings of 6e-8 relative
            torch.testing.assert_close(model(**given)[0], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(**given)[0], expected)


@pytest.mark.parametrize("options", [{"variant": "linear"}, FIXED], ids=str)
def test_recurrence_without_weights_goes_in_and_generates(options: Any) -> None:
    model = offloaded(lively(llama))
    with attnkit.swap(model, {"*.self_attn": options}, accept="different"):
        assert model.generate(IDS, max_new_tokens=2, do_sample=False).shape == (2, 11)


@pytest.mark.parametrize(
    ("build", "plan", "told"),
    [
        (llama, "gated_linear", r"at 2 sites[^;]*\n[^;]*\n    device: the layer's weights are off"),
        (llama, MIXTURE, r"weights of LlamaMLP\.gate_proj cannot be read"),
        (mixtral, EXPERTS, "weights of MixtralExperts cannot be read"),
    ],
)
def test_swap_that_reads_or_adds_weights_is_refused_by_name(
    build: Any, plan: Any, told: str
) -> None:
    with pytest.raises(SwapRefusedError, match=told):
        attnkit.swap(offloaded(lively(build)), plan, accept="different")


@pytest.mark.parametrize(
    ("build", "plan"),
    [(llama, "flash"), (llama, "gated_linear"), (llama, MIXTURE), (mixtral, EXPERTS)],
)
@torch.no_grad()
def test_swapped_model_computes_the_same_bits_once_it_is_offloaded(build: Any, plan: Any) -> None:
    model = lively(build)
    attnkit.swap(model, plan, accept="different")
    expected = model(IDS).logits
    assert torch.equal(offloaded(model)(IDS).logits, expected)


def test_dense_layer_is_kept_where_something_of_its_children_would_be_lost() -> None:
    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    hooked, adapted = lively(llama), lively(llama)
    hooked.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match="LlamaMLP has hooks"):
        attnkit.swap(hooked, MIXTURE)
    adapted.model.layers[0].mlp.up_proj = Adapted(64, 96, bias=False)
    with pytest.raises(UnsupportedError, match=r"gate: .* LlamaMLP is not known to be"):
        attnkit.swap(adapted, MIXTURE)
