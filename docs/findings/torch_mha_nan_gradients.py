"""MultiheadAttention over left padding, causal: a row sees nothing, and all gradients are NaN."""

import torch

torch.manual_seed(0)
layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
padded = torch.tensor([[True, False, False, False]])  # True: padding
later = torch.ones(4, 4, dtype=torch.bool).triu(1)  # True: hidden

for need_weights in (False, True):
    x = torch.randn(1, 4, 8, requires_grad=True)
    y, _ = layer(x, x, x, key_padding_mask=padded, attn_mask=later, need_weights=need_weights)
    real = y[:, 1:]  # nobody reads the row of the padding
    assert real.isfinite().all()
    (gradient,) = torch.autograd.grad(real.sum(), x)
    told = f"{int(gradient.isnan().sum())} of {gradient.numel()} gradients NaN"
    print(f"need_weights={need_weights} gives {told}")
