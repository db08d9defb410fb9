"""Llama's eager attention on float64: float32 answers, and NaN for a row that sees nothing."""

import torch
from torch import nn
from transformers.models.llama.modeling_llama import eager_attention_forward

torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 1, 2, 4, dtype=torch.float64)
module = nn.Module().eval()
module.num_key_value_groups = 1
lowest = torch.finfo(torch.float64).min

expected = ((query @ key.mT) / 2).softmax(-1) @ value
got = eager_attention_forward(module, query, key, value, None, scaling=0.5)[0].transpose(1, 2)
print("error of float64 inputs", float((got - expected).abs().max()))

hidden = torch.tensor([[lowest, lowest], [0.0, 0.0]], dtype=torch.float64)[None, None]
got = eager_attention_forward(module, query, key, value, hidden, scaling=0.5)[0]
print("a row that sees nothing", got[0, 0, 0])
