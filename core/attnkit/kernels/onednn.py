"""Float32 matrix products by oneDNN, where they stay float32.

On a CPU torch gives float32 products to MKL, which on some AMD processors reaches half of what
oneDNN does. torch gives them to oneDNN once it is told that bfloat16 precision would do; on a
processor without bfloat16 matrix units (AMX) oneDNN then computes in float32 all the same. Whether
it does (`stays_exact`), and what is gained (`gain`), is measured once per process.

The setting is torch's and global to the process: while it is on, float32 products of other threads
take the same way, as exactly. It is touched only where the user has left it alone, so
``torch.backends.mkldnn.matmul.fp32_precision = "ieee"`` switches all of this off.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Inputs = TypeVarTuple("Inputs")
Outputs = TypeVar("Outputs")

_UNTOUCHED, _FAST, _IEEE = "none", "bf16", "ieee"

# torch declares no types for it
_mkldnn: Any = torch.backends.mkldnn


class fast_products:  # noqa: N801  # read as a verb, like torch.no_grad
    """Within this context float32 products on the CPU run by oneDNN, if they stay exact."""

    def __enter__(self) -> None:
        self.entered = not torch.compiler.is_compiling() and stays_exact() and _switch.enter()

    def __exit__(self, *_: object) -> None:
        if self.entered:
            _switch.leave()


def fast(function: Callable[[Unpack[Inputs]], Outputs], *inputs: *Inputs) -> Outputs:
    """Call a function with `fast_products`, in its backward pass too.

    Args:
        function: Takes tensors alone, returns a tensor or a tuple of tensors; reads no other
            tensor that needs a gradient.
        inputs: Its arguments.

    Note:
        Differentiable once. The graph of the call is kept inside of one node, so that its
        backward pass, which autograd runs later, is inside of the context as well.
    """
    if torch.compiler.is_compiling() or not stays_exact() or _setting() == _IEEE:
        return function(*inputs)
    tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        # torch gives apply no types
        found: Outputs = _Fast.apply(function, *inputs)  # type: ignore[no-untyped-call]
        return found
    with fast_products():
        return function(*inputs)


class _Fast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *inputs: Tensor) -> Any:
        ctx.leaves = [
            each.detach().requires_grad_(needed)
            for each, needed in zip(inputs, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.enable_grad(), fast_products():
            found = function(*ctx.leaves)
        ctx.outs = found if isinstance(found, tuple) else (found,)
        ctx.set_materialize_grads(value=False)
        plain = tuple(each.detach() for each in ctx.outs)
        return plain if isinstance(found, tuple) else plain[0]

    @staticmethod
    @once_differentiable
    # the decorator has types that hide the signature
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        given = [
            (out, grad)
            for out, grad in zip(ctx.outs, grads, strict=True)
            if grad is not None and out.requires_grad
        ]
        tracked = [leaf for leaf in ctx.leaves if leaf.requires_grad]
        if not given:
            return (None, *(None for _ in ctx.leaves))
        with fast_products():
            # kept: whoever calls backward twice keeps the graph outside, and this one is inside
            gradients = iter(
                torch.autograd.grad(
                    [out for out, _ in given],
                    tracked,
                    [grad for _, grad in given],
                    retain_graph=True,
                    allow_unused=True,
                )
            )
        return (None, *(next(gradients) if leaf.requires_grad else None for leaf in ctx.leaves))


@functools.cache
def stays_exact() -> bool:
    """Measure whether oneDNN keeps float32 products in float32 on this machine."""
    if not _mkldnn.is_available() or _setting() not in (_UNTOUCHED, _IEEE, _FAST):
        return False
    before = _setting()
    try:
        _set(_FAST)
        return all(_is_exact(*sizes) for sizes in ((4, 128, 64, 512), (4, 256, 1024, 64)))
    finally:
        _set(before)


@functools.cache
def gain() -> float:
    """Measure how many times as fast as MKL oneDNN makes a product, (256, 256) by (256, 256).

    The best of a few tries on either side, in turns, so that a busy machine changes little.
    """
    left, right = _filled(0.5, 2, 256, 256)
    plain, fast = [], []
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _ in range(8):
            plain.append(_seconds(left, right))
            with fast_products():
                fast.append(_seconds(left, right))
    return min(plain) / min(fast)


def _seconds(left: Tensor, right: Tensor) -> float:
    begun = time.perf_counter()
    _ = left @ right
    return time.perf_counter() - begun


def _is_exact(batch: int, rows: int, inner: int, columns: int) -> bool:
    # bfloat16 has 8 bits: it would make 1 of it, and the sum wrong by a 4096th
    value = 1 + 2.0**-12
    left, right = _filled(value, batch, rows, inner), _filled(1.0, batch, inner, columns)
    with torch.autocast("cpu", enabled=False):
        return torch.equal(left @ right, _filled(value * inner, batch, rows, columns))


def _filled(value: float, *shape: int) -> Tensor:
    # what is measured once must not depend on the defaults that a caller has set
    return torch.full(shape, value, dtype=torch.float32, device="cpu")


class _Switch:
    """The setting, on as long as any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def enter(self) -> bool:
        with self._lock:
            if self._inside == 0:
                if _setting() != _UNTOUCHED:
                    return False
                _set(_FAST)
            self._inside += 1
            return True

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            # what the user has set meanwhile stays
            if self._inside == 0 and _setting() == _FAST:
                _set(_UNTOUCHED)


_switch = _Switch()


def _setting() -> str:
    return str(_mkldnn.matmul.fp32_precision)


def _set(precision: str) -> None:
    _mkldnn.matmul.fp32_precision = precision
