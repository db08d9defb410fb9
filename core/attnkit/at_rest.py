"""What weights say between two calls, and when that is not what a call computes with.

They may rest elsewhere (offloaded), cut up (sharded), in other numbers (quantised) or below
something else (an adapter). So a layer calls its children and goes by the tensors that come out;
where nothing has come yet, these functions say what can be known.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weight_at_rest(module: nn.Module) -> Tensor | None:
    """Return the weight that a call of a module computes with; None where that is not known."""
    weight = module._parameters.get("weight")
    # a hook before a call, or another forward, may put anything in its place
    if module._forward_pre_hooks or "forward" in module.__dict__:
        return None
    return weight if weight is not None and weight.is_floating_point() else None


def input_like(module: nn.Module) -> Tensor:
    """Return no numbers, of the dtype and device that a module's inputs have, as far as it says."""
    floating = [each for each in module.parameters() if each.is_floating_point()]
    dtype = next((each.dtype for each in floating), torch.float32)
    device = next((each.device for each in floating if not each.is_meta), "cpu")
    return torch.empty(0, dtype=dtype, device=device)
