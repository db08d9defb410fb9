"""RecurrentGemma after a step of training: it keeps that step's graph, and cannot be copied."""

import copy

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaModel

config = RecurrentGemmaConfig(
    vocab_size=8,
    hidden_size=16,
    lru_width=16,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    block_types=["recurrent"],
)
model = RecurrentGemmaModel(config)


def attempt(when: str) -> None:
    """Copy the model, as an average of its weights does."""
    try:
        copy.deepcopy(model)
    except RuntimeError as error:
        print(f"{when}: RuntimeError: {error}")
    else:
        print(f"{when}: copied")


attempt("before")
model(torch.tensor([[1, 2, 3]]), use_cache=False).last_hidden_state.sum().backward()
model.zero_grad()
held = model.layers[0].temporal_block.rg_lru.recurrent_states
print("the state it keeps has a graph:", held.grad_fn is not None)
attempt("after a step")
