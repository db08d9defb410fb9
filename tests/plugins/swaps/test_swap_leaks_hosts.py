"""Every host asks its models what they can be asked, and a variant that leaks is found by name.

The variants that leak are of other mathematics by their own word, so that each site is compared
with the variant's own definition, which leaks as well: the question to the whole model is all that
is left to find it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from timm_alone import timm
from tiny_models import lively
from torch import nn
from torch.nn import functional

import attnkit
from attnkit.errors import VerificationError
from attnkit.masks.constructors import Sizes, dense
from attnkit.reference import softmax
from attnkit.registry.registry import default
from attnkit.swaps.api import Needs

if TYPE_CHECKING:
    from collections.abc import Callable

    Sample = dict[str, Any] | None

# torch's own encoder warns once per process that it makes nested tensors, and why it cannot
pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(length: int) -> torch.Tensor:
    return torch.randint(3, 97, (2, length), generator=torch.Generator().manual_seed(length))


def padded(length: int) -> torch.Tensor:
    """Return (2, L), True for two tokens of the first sample.

    They are not at an end: padding there is known by name, and cleared before a variant runs.
    """
    hidden = torch.zeros(2, length, dtype=torch.bool)
    hidden[0, [2, 5]] = True
    return hidden


def later(length: int) -> torch.Tensor:
    """Return (L, L), True for later keys."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


class Mixing(nn.Module):
    """Projections around an attention that the subclasses have."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, **masks: Any) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        return x + self.out(self.attend(q, k, v, **masks).transpose(1, 2).flatten(2))

    def attend(self, q: Any, k: Any, v: Any) -> torch.Tensor:
        raise NotImplementedError


class Calling(Mixing):
    """Calls torch's function."""

    def forward(self, x: torch.Tensor, **masks: Any) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, **masks)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Causal(Mixing):
    """Is causal, and takes a mask of padding."""

    def attend(self, q: Any, k: Any, v: Any, padding: Any = None) -> torch.Tensor:
        hidden = later(q.shape[2]) if padding is None else later(q.shape[2]) | padding
        logits = (q @ k.mT * q.shape[3] ** -0.5).masked_fill(hidden, -1e30)
        mixed: torch.Tensor = logits.softmax(-1) @ v
        return mixed


class Masked(Mixing):
    """Takes any mask; before it, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 32)

    def forward(self, x: torch.Tensor, **masks: Any) -> torch.Tensor:
        return super().forward(self.embed(x), **masks)

    def attend(self, q: Any, k: Any, v: Any, visible: Any = None) -> torch.Tensor:
        mixed: torch.Tensor = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return mixed


NAMES: Any = {"method": "attend", "query": "q", "key": "k", "value": "v"}
attnkit.declare(Causal, **NAMES, hidden="padding", needs=Needs(heads=4, causal=True))
attnkit.declare(Masked, **NAMES, mask="visible")


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, **options), 2)


def decoder(**options: Any) -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 48, **options), 2)


def self_attention(**options: Any) -> dict[str, Any]:
    x = normal(11, 2, 32)
    return {"query": x, "key": x, "value": x, **options}


def vit() -> Any:
    sizes: Any = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return timm.models.VisionTransformer(**sizes, num_classes=5)


def hugging_vit() -> Any:
    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    images: Any = {"intermediate_size": 48, "image_size": 32, "patch_size": 8}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, **images))


ENDS: Any = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}
BART: Any = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 97,
}


def bart() -> Any:
    config = transformers.BartConfig(**BART, **ENDS, max_position_embeddings=64)
    return transformers.BartForConditionalGeneration(config)


def t5() -> Any:
    sizes: Any = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=97, **sizes))


def whisper() -> Any:
    lengths: Any = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64}
    config = transformers.WhisperConfig(**BART, **ENDS, **lengths)
    return transformers.WhisperForConditionalGeneration(config)


def unequal(length: int) -> dict[str, Any]:
    """Return tokens of an encoder and of a decoder, both padded."""
    given = {"input_ids": ids(13), "attention_mask": (~padded(13)).long()}
    given |= {"decoder_input_ids": ids(length)}
    return given | {"decoder_attention_mask": (~padded(length)).long()}


def forward_args(**given: Any) -> Callable[[], dict[str, Any]]:
    return lambda: given


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Sample], set[str]]] = {
    "MultiheadAttention": (lambda: nn.MultiheadAttention(32, 4), lambda: None, {"padding"}),
    "MultiheadAttention, causal": (
        lambda: nn.MultiheadAttention(32, 4),
        lambda: self_attention(attn_mask=later(11)),
        {"causality"},
    ),
    "MultiheadAttention, cross": (
        lambda: nn.MultiheadAttention(32, 4, kdim=12, vdim=20, batch_first=True),
        lambda: None,
        {"padding"},
    ),
    "TransformerEncoder": (encoder, lambda: None, {"padding"}),
    "TransformerEncoder, nested": (lambda: encoder(batch_first=True), lambda: None, {"padding"}),
    "TransformerEncoder, causal": (
        lambda: encoder(batch_first=True),
        forward_args(
            src=normal(2, 9, 32),
            mask=torch.zeros(9, 9).masked_fill(later(9), -torch.inf),
            src_key_padding_mask=torch.zeros(2, 9).masked_fill(padded(9), -torch.inf),
        ),
        {"padding", "causality"},
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(32, 4, 48),
        lambda: None,
        {"padding"},
    ),
    "TransformerDecoder": (decoder, lambda: None, {"padding", "causality"}),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(32, 4, 48, batch_first=True),
        lambda: None,
        {"padding", "causality"},
    ),
    "Transformer": (
        lambda: nn.Transformer(32, 4, 1, 1, 48),
        lambda: None,
        {"padding", "causality"},
    ),
    "timm": (vit, lambda: None, set()),
    "own, torch's function": (
        Calling,
        forward_args(x=normal(2, 9, 32), attn_mask=~later(9)),
        {"causality"},
    ),
    "own, told to be causal": (
        Calling,
        forward_args(x=normal(2, 9, 32), is_causal=True),
        {"causality"},
    ),
    "own, declared": (
        Causal,
        forward_args(x=normal(2, 9, 32), padding=padded(9)[:, None, None]),
        {"padding", "causality"},
    ),
    "own, declared mask": (
        Masked,
        forward_args(x=ids(9), visible=~padded(9)[:, None, None]),
        {"padding"},
    ),
    "ViT": (hugging_vit, lambda: None, set()),
    "BART": (bart, lambda: None, {"padding", "causality"}),
    "BART, decoder padded": (bart, lambda: unequal(9), {"padding", "causality"}),
    "T5": (t5, lambda: None, {"padding", "causality"}),
    "Whisper": (
        whisper,
        forward_args(input_features=normal(2, 8, 32), decoder_input_ids=ids(9)),
        {"causality"},
    ),
}


def make(name: str) -> tuple[Any, Sample]:
    build, sample, _ = CASES[name]
    return lively(build), sample()


def holed(model: Any, sample: Sample) -> Sample:
    """Return a sample, or the one that attnkit makes, with padding that is not at an end."""
    if sample is None:
        sites = attnkit.survey(model)
        host = next(host for host in default().hosts() if host.name == sites[0].host)
        sample = dict(host.sample(model, sites))
    for name, given in sample.items():
        if name.endswith("padding_mask") and given.dtype == torch.bool:
            sample[name] = padded(given.shape[1])
        if name == "attention_mask":
            sample[name] = (~padded(given.shape[1])).long()
    return sample


@pytest.mark.parametrize("name", CASES)
def test_right_variant_leaks_nothing_that_the_model_can_be_asked_about(name: str) -> None:
    model, sample = make(name)
    leaks = attnkit.swap(model, "multi_head", sample=sample).receipt.leaks
    assert {leak.name for leak in leaks} == CASES[name][2] | {"batch"}
    assert {leak.outcome for leak in leaks} <= {"equal", "rounding"}


@pytest.mark.parametrize("name", ["own, declared mask", "TransformerEncoder, nested", "BART"])
def test_mask_that_makes_no_difference_has_passed_nothing(name: str) -> None:
    model, sample = make(name)
    for module in model.modules():
        # nothing comes out of attention
        for out in ("out", "out_proj"):
            if hasattr(module, out):
                nn.init.zeros_(getattr(module, out).weight)
    leaks = attnkit.swap(model, "multi_head", sample=sample).receipt.leaks
    assert {leak.outcome for leak in leaks if leak.name == "padding"} == {"idle"}
    assert {leak.outcome for leak in leaks if leak.name == "batch"} == {"equal"}


def visible(query: Any, key: Any, mask: Any) -> torch.Tensor:
    """Return (B, 1 or H, L, S), where a mask lets a query look."""
    sizes = Sizes(*query.shape[:3], key.shape[2])
    seen: torch.Tensor = mask.to_bool(sizes, query.device).expand(query.shape[0], -1, -1, -1)
    return seen


def ignoring_padding(query: Any, key: Any, value: Any, *, mask: Any, **rest: Any) -> Any:
    """See what no query may see."""
    seen = visible(query, key, mask)
    nobodys = ~seen.any(dim=2, keepdim=True)
    return softmax(query, key, value, mask=dense(seen | nobodys), **rest)


def looking_ahead(query: Any, key: Any, value: Any, *, mask: Any, **rest: Any) -> Any:
    """See one more key, but for padding."""
    seen = visible(query, key, mask)
    ahead = functional.pad(seen[..., :-1], (1, 0)) & seen.any(dim=2, keepdim=True)
    return softmax(query, key, value, mask=dense(seen | ahead), **rest)


def mixing_samples(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """Let each sample see a little of the one before it; the first sees none."""
    out = softmax(query, key, value, **rest)
    return out + 0.1 * torch.cat([torch.zeros_like(out[:1]), out[:-1]])


LEAKING = {"padding": ignoring_padding, "causality": looking_ahead, "batch": mixing_samples}


def leaking(name: str) -> attnkit.Variant:
    """Return a variant of other mathematics, whose definition leaks."""
    model = attnkit.get_variant("multi_head")
    reference = dataclasses.replace(model.implementations[0], function=LEAKING[name])
    return dataclasses.replace(
        model, name="leaking", relation="different", implementations=(reference,)
    )


def members(model: nn.Module) -> list[Any]:
    """Return all that a model is made of, by identity: classes, members, hooks, tensors' bits."""
    found: list[Any] = [
        (name, type(module), [(key, id(value)) for key, value in vars(module).items()])
        for name, module in model.named_modules()
    ]
    found += [list(module._forward_pre_hooks) for module in model.modules()]
    return found + [(name, each.data_ptr(), each._version) for name, each in _tensors(model)]


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@pytest.mark.parametrize(
    ("name", "leak"),
    [(name, leak) for name, case in CASES.items() for leak in sorted({*case[2], "batch"})],
)
def test_variant_that_leaks_is_found_by_name_and_the_model_stays_as_it_was(
    name: str, leak: str
) -> None:
    model, sample = make(name)
    before = members(model)
    with (
        attnkit.register(leaking(leak)),
        pytest.raises(VerificationError, match=f"the swap was undone: {leak} leaks: with"),
    ):
        attnkit.swap(model, "leaking", sample=holed(model, sample), accept="different")
    assert members(model) == before
