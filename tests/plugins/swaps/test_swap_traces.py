"""Runs of a verification use nothing up, and what a swap cannot promise is said."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers
from tiny_models import SMALL
from torch import nn

import attnkit
from attnkit.errors import SwapRefusedError, UnsupportedError, VerificationError

SHORT = {**SMALL, "max_position_embeddings": 16}
IDS = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))
LONG = torch.randint(3, 97, (1, 40), generator=torch.Generator().manual_seed(1))


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHORT, num_key_value_heads=2, **options)
    return transformers.LlamaForCausalLM(config).eval()


def bert() -> Any:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SHORT)).eval()


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    out: torch.Tensor = model(ids).logits
    return out


def test_cache_in_a_sample_is_not_written_to() -> None:
    model = llama()
    with torch.no_grad():
        cache = model(IDS, use_cache=True).past_key_values
    sample = {"input_ids": IDS[:, :2], "past_key_values": cache}
    swapped = attnkit.swap(model, "flash", sample=sample)
    assert cache.get_seq_length() == IDS.shape[1]
    assert all(out.relative < 1e-5 for out in swapped.receipt.outputs)


def test_length_that_a_model_notes_is_put_back() -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model, other = (llama(rope_parameters=dynamic) for _ in range(2))
    attnkit.swap(model, "flash", sample={"input_ids": LONG}).restore()
    assert torch.equal(logits(model), logits(other))


def test_module_that_counts_its_calls_is_compared_at_the_same_count() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(64, 4, batch_first=True)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            out: torch.Tensor = self.inner(x, x, x)[0] * (1 + self.calls)
            return out

    model = Counts().eval()
    swapped = attnkit.swap(model, "multi_head", sample={"x": torch.randn(1, 7, 64)})
    assert model.calls == 0
    assert all(out.relative < 1e-5 for out in swapped.receipt.outputs)


class Remembers(nn.Module):
    """Keeps of its calls what models keep: tensors, lists, buffers; no past after a long one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(64, 4, batch_first=True)
        self.past: torch.Tensor | None = None
        self.lengths: list[int] = []
        self.written = torch.zeros(1)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.past = x if x.shape[1] < 8 else None
        self.lengths.append(x.shape[1])
        self.written += 1
        self.count += 1
        self.register_buffer("latest", x)
        self.first = x
        out: torch.Tensor = self.inner(x, x, x)[0]
        return out


def test_what_a_model_keeps_of_its_calls_is_put_back() -> None:
    model, x = Remembers().eval(), torch.randn(1, 3, 64)
    attnkit.swap(model, "multi_head", sample={"x": torch.randn(1, 9, 64)}).restore()
    assert not hasattr(model, "latest")
    assert not hasattr(model, "first")
    model(x)
    before = vars(model).copy()
    attnkit.swap(model, "multi_head", sample={"x": torch.randn(1, 9, 64)}).restore()
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is value for name, value in before.items())
    assert model.past is model.latest is x
    assert (model.lengths, int(model.written), int(model.count)) == ([3], 1, 1)


def test_hooks_that_a_model_registers_in_its_first_call_are_taken_out() -> None:
    model, given = llama(), {"input_ids": IDS, "output_hidden_states": True}
    swapped = attnkit.swap(model, "flash", sample=given)
    assert [out.name for out in swapped.receipt.outputs if "hidden" in out.name] == [
        f"hidden_states.{number}" for number in range(3)
    ]
    assert not any(module._forward_hooks for module in model.modules())
    assert len(model(**given).hidden_states) == 3


def test_recurrent_blocks_generate_after_a_swap_and_its_restore() -> None:
    torch.manual_seed(0)
    sizes = {**SMALL, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 16}
    config = transformers.RecurrentGemmaConfig(**sizes, lru_width=64, attention_window_size=12)
    model: Any = transformers.RecurrentGemmaForCausalLM(config).eval()
    before = model.generate(IDS, max_new_tokens=2, do_sample=False)
    attnkit.swap(model, "flash").restore()
    assert torch.equal(model.generate(IDS, max_new_tokens=2, do_sample=False), before)


def test_exact_swap_on_top_of_other_mathematics_is_caught() -> None:
    model = llama()
    plan = {"variant": "sliding_window", "window_size": 2}
    with attnkit.swap(model, plan, accept="different"):
        narrow = logits(model)
        with pytest.raises(VerificationError, match="noise units"):
            attnkit.swap(model, "multi_head")
        assert torch.equal(logits(model), narrow)


def test_output_of_another_dtype_is_refused_by_name() -> None:
    model = attnkit.get_variant("multi_head")
    reference = model.implementations[0]

    def widened(*tensors: Any, **rest: Any) -> torch.Tensor:
        return attnkit.reference.softmax(*tensors, **rest).double()

    own = dataclasses.replace(reference, name="own", function=widened, cost=lambda _: 0.0)
    wide = dataclasses.replace(model, name="wide", implementations=(reference, own))
    told = r"wide.own must return .* torch\.float32 .*, got .* torch\.float64"
    with attnkit.register(wide), pytest.raises(UnsupportedError, match=told):
        attnkit.swap(llama(), "wide")


def test_dropout_is_refused_in_training_and_remarked_on_before() -> None:
    model = bert()
    swapped = attnkit.swap(model, "flash")
    assert "'flash' will refuse" in str(swapped.receipt)
    swapped.restore()
    assert attnkit.swap(model, "multi_head").receipt.remarks == ()

    training = bert().train()
    assert not attnkit.explain(training, "flash").possible
    with pytest.raises(SwapRefusedError, match="dropout: asked for, not promised"):
        attnkit.swap(training, "flash")
    assert attnkit.explain(training, "multi_head").possible


def test_layer_that_attends_and_that_no_host_knows_is_remarked_on() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normed = nn.Softmax(-1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.normed(x @ x.mT) @ x
            return out

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known = nn.MultiheadAttention(64, 4, batch_first=True)
            self.unknown = nn.Sequential(Mixing(), Mixing())
            self.router = nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.known(x, x, x)[0]
            return self.unknown(x) * self.router(x).softmax(-1)[..., :1]

    remarks = attnkit.swap(Both().eval(), "flash", sample={"x": torch.randn(1, 7, 64)}).receipt
    assert "Mixing (unknown.0, unknown.1) takes a softmax" in remarks.remarks[0]
    assert len(remarks.remarks) == 1


def test_version_that_was_not_tested_is_in_the_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnkit.swaps.api.untested", lambda *_: "was not tested")
    assert "was not tested" in attnkit.swap(llama(), "flash").receipt.remarks


def test_outputs_that_nobody_compared_are_remarked_on() -> None:
    @dataclasses.dataclass
    class Answer:
        number: int

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(64, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> Answer:
            return Answer(int(self.inner(x, x, x)[0].argmax()))

    swapped = attnkit.swap(Counts().eval(), "multi_head", sample={"x": torch.randn(1, 7, 64)})
    assert swapped.receipt.outputs == ()
    assert "not compared" in swapped.receipt.remarks[0]
