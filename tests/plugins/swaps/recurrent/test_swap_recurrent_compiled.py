"""Recurrences in a compiled model: one graph, the same numbers, states from step to step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_models import GQA

import attnkit
from attnkit.errors import UnsupportedError

SMALL: dict[str, Any] = {**GQA, "num_hidden_layers": 1}
IDS = torch.randint(3, 97, (2, 13), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones(2, 13, dtype=torch.long)
PADDED[1, :4] = 0


def build(variant: str, **changed: Any) -> Any:
    torch.manual_seed(0)
    torch.compiler.reset()
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **changed)).eval()
    attnkit.swap(model, variant, accept="different")
    return model


@pytest.mark.parametrize("own", ["sdpa", "eager"])  # masks that say what is seen, and that add
def test_loss_and_gradients_of_a_padded_batch_are_those_of_the_eager_model(own: str) -> None:
    model = build("gated_linear", attn_implementation=own)
    given = {"input_ids": IDS, "attention_mask": PADDED, "labels": IDS, "use_cache": False}

    def gradients(run: Any) -> list[torch.Tensor]:
        model.zero_grad()
        run(**given).loss.backward()
        return [each.grad.clone() for each in model.parameters()]

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    pairs = zip(gradients(compiled), gradients(model), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("variant", ["linear", "gated_linear", "state_space"])
def test_tokens_made_one_by_one_are_those_of_the_eager_model(variant: str, cache: str) -> None:
    model = build(variant, eos_token_id=None)
    wanted = model.generate(IDS, max_new_tokens=3, do_sample=False)[:, IDS.shape[1] :]
    past: Any = transformers.DynamicCache()
    if cache == "static":
        past = transformers.StaticCache(config=model.config, max_cache_len=20)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        out, made = compiled(IDS, past_key_values=past, use_cache=True), []
        for _ in range(3):
            made.append(out.logits[:, -1:].argmax(-1))
            out = compiled(made[-1], past_key_values=past, use_cache=True)
    assert torch.equal(torch.cat(made, 1), wanted)


def test_a_mask_that_adds_to_logits_is_refused_when_the_graph_runs() -> None:
    model = build("linear", attn_implementation="eager")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    adds = torch.zeros(2, 1, 13, 13)
    adds.masked_fill_(~torch.ones(13, 13).tril().bool(), torch.finfo(torch.float32).min)
    with torch.no_grad():
        same = compiled(IDS, attention_mask=adds, use_cache=False).logits
        assert torch.equal(same, model(IDS, use_cache=False).logits)
        with pytest.raises(RuntimeError, match="attention_mask: adds to logits"):
            compiled(IDS, attention_mask=adds + 0.5, use_cache=False)


def test_a_mask_with_later_keys_is_refused_when_the_graph_runs() -> None:
    model = build("linear")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    seen = torch.ones(2, 1, 13, 13, dtype=torch.bool)
    with torch.no_grad():
        same = compiled(IDS, attention_mask=seen.tril(), use_cache=False).logits
        assert torch.equal(same, model(IDS, use_cache=False).logits)
        with pytest.raises(UnsupportedError, match="see later keys"):
            compiled(IDS, attention_mask=seen, use_cache=False)
