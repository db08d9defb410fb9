"""A mask beside is_causal: applied together in silence, or refused, by backend and gradients."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 1, 4, 8)
mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]], dtype=torch.bool)
joined = scaled_dot_product_attention(query, key, value, attn_mask=mask.tril())


def attempt(what: str, **given: object) -> None:
    """Say what comes out."""
    try:
        out = scaled_dot_product_attention(query, key, value, **given)  # type: ignore[arg-type]  # a table
    except RuntimeError as error:
        print(what, "raises:", error)
    else:
        both = torch.allclose(out, joined, atol=1e-6)
        print(what, "applies both" if both else "applies one of them")


attempt("the default backend", attn_mask=mask, is_causal=True)
with sdpa_kernel(SDPBackend.MATH):
    attempt("the math backend", attn_mask=mask, is_causal=True)
bias = torch.zeros(4, 4).masked_fill(~mask, -float("inf")).requires_grad_()
attempt("a mask that wants a gradient", attn_mask=bias, is_causal=True)
