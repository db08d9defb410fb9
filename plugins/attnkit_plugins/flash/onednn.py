"""Softmax attention through torch's fused kernels, their float32 products made by oneDNN.

Half inputs are widened first: torch's half kernels run at float32 speed on a CPU, and round more.
Backward runs through torch's own graph, kept aside so that it too gets the faster products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnkit.products import fast_products
from attnkit_plugins.flash import sdpa

if TYPE_CHECKING:
    from attnkit.masks import Mask


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """Attend; see `attnkit.interface.SoftmaxFunction`.

    Note:
        O(L S) time, O(L + S) extra memory.
    """
    assert bias is None
    assert softcap is None
    assert sinks is None
    assert dropout_p == 0.0
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        # once_differentiable has no types
        out: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
            query, key, value, mask, scale
        )
        return out
    with fast_products():
        return _fused(query, key, value, mask, scale)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float
    ) -> Tensor:
        leaves = [
            x.detach().requires_grad_(needed)
            for x, needed in zip((query, key, value), ctx.needs_input_grad, strict=False)
        ]
        with torch.enable_grad(), fast_products():
            out = _fused(leaves[0], leaves[1], leaves[2], mask, scale)
        ctx.out, ctx.leaves = out, leaves
        return out.detach()

    @staticmethod
    @once_differentiable
    # the decorator has types that hide the signature
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        tracked = [leaf for leaf in ctx.leaves if leaf.requires_grad]
        with fast_products():
            # kept: whoever calls backward twice keeps the graph outside, and this one is inside
            found = torch.autograd.grad(ctx.out, tracked, grad_out, retain_graph=True)
        gradients = iter(found)
        return (
            *(next(gradients) if leaf.requires_grad else None for leaf in ctx.leaves),
            None,
            None,
        )


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float) -> Tensor:
    out = sdpa.attend(
        query.float(),
        key.float(),
        value.float(),
        mask=mask,
        bias=None,
        scale=scale,
        softcap=None,
        sinks=None,
        dropout_p=0.0,
    )
    return out.to(query.dtype)
