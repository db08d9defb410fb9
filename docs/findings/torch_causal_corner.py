"""torch's is_causal with fewer queries than keys: the one query sees the oldest key alone."""

import torch
from torch.nn.functional import scaled_dot_product_attention

torch.manual_seed(0)
query = torch.randn(1, 1, 1, 4)  # the latest token
key, value = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)  # it and two before it

expected = scaled_dot_product_attention(query, key, value)  # the latest token sees all
got = scaled_dot_product_attention(query, key, value, is_causal=True)
print("expected", expected)
print("got     ", got)
print("the oldest value", value[:, :, :1])
