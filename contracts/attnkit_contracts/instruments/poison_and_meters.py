"""What a check looks through: poisoned allocations, calls of custom operations, and meters."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

if TYPE_CHECKING:
    from collections.abc import Callable

ALLOCATORS = (
    torch.empty,
    torch.empty_like,
    torch.empty_strided,
    torch.Tensor.new_empty,
    torch.Tensor.new_empty_strided,
)
"""What returns memory that nobody has written to."""


class Poisoned(TorchFunctionMode):
    """Fills what code of some packages allocates without a value.

    Code that dynamo traces has no frames to tell whose it is: there, every allocation of the
    graph is filled.

    Attributes:
        packages: Top-level names; allocations of other code are left alone.
        value: What the memory holds; integers hold 1 where it is NaN.
    """

    def __init__(self, packages: frozenset[str], value: float) -> None:
        super().__init__()
        self.packages = packages
        self.value = value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; see `torch.overrides`."""
        made = func(*args, **(kwargs or {}))
        if func in ALLOCATORS and (
            # dynamo traces this method too, and cannot look at frames
            torch.compiler.is_dynamo_compiling()
            # what is called from Python has its caller one frame up: C functions have no frame
            or sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] in self.packages
        ):
            floating = made.is_floating_point() or made.is_complex()
            made.fill_(self.value if floating or self.value == 0 else 1)
        return made


TORCHS = frozenset(
    """
    _c10d_functional _c10d_functional_autograd _dtensor _native _quantized aten c10d
    c10d_functional debug_mode_ops debugprims export flex_lib fsdp inductor inductor_prims mkl
    mkldnn mkldnn_prepacked onednn onnx onnx_symbolic prims profiler quantization quantized
    quantized_decomposed rngprims sparse static_runtime streams symm_mem torch_attn
    """.split()  # noqa: SIM905  # a list would take a line for each
)
"""Namespaces of torch 2.13's own operations; one that is missing here is checked like others."""


class Asked(NamedTuple):
    """A call of a custom operation.

    Attributes:
        operation: What was called.
        args: Copies of what it was given, without gradients.
        kwargs: By name, likewise.
        differentiated: Whether autograd was recording, and an input needed a gradient.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    differentiated: bool

    @property
    def name(self) -> str:
        """``namespace::name``, with the overload behind a dot where there is one."""
        return str(self.operation.name())


class CustomCalls(TorchFunctionMode):
    """Notes what is called that is no operation of torch itself.

    Attributes:
        asked: The first call of each operation, those with and without autograd told apart.
        count: How many calls of torch were seen in all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[tuple[str, bool], Asked] = {}
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; see `torch.overrides`."""
        # what dynamo traces is seen when the graph runs
        if not torch.compiler.is_dynamo_compiling():
            self._note(func, args, dict(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _note(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.count += 1
        if isinstance(func, torch._ops.OpOverloadPacket):
            overload = torch._C._jit_resolve_packet(func._qualified_op_name, *args, **kwargs)
            func = getattr(func, overload)
        if not isinstance(func, torch._ops.OpOverload) or func.namespace in TORCHS:
            return
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        needed = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
        given, named = tree_map_only(
            torch.Tensor, lambda each: each.detach().clone(), (args, kwargs)
        )
        asked = Asked(func, given, named, needed)
        self.asked.setdefault((asked.name, needed), asked)


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the memory that operations hold at once, and the work they do.

    Attributes:
        held: Bytes that are alive now.
        peak: The most that were alive at once.
        moved: Elements that operations read or wrote.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.held = self.peak = self.moved = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; see `torch.utils._python_dispatch`."""
        kwargs = dict(kwargs or {})
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        known = {each.untyped_storage()._cdata for each in given}
        made = func(*args, **kwargs)
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self._add(each, known)
        views = getattr(func, "is_view", False)
        if not views:
            results = [each for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
            self.moved += sum(_distinct(each) for each in (*given, *results))
        return made

    def _add(self, tensor: torch.Tensor, known: set[int]) -> None:
        storage = tensor.untyped_storage()
        at = storage._cdata
        if at in known or at in self._known:
            return
        self._known.add(at)
        size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._drop, at, size)

    def _drop(self, at: int, size: int) -> None:
        self._known.discard(at)
        self.held -= size


def _distinct(tensor: torch.Tensor) -> int:
    """Return how many elements of memory a tensor covers: expanded axes count once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count
