"""Rules for arguments, one function per rule; each error names what came and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attnkit.at_rest import weight_at_rest
from attnkit.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    MaskError,
    ShapeError,
    StateError,
    UnsupportedError,
)
from attnkit.masks.constructors import Mask
from attnkit.text import described

if TYPE_CHECKING:
    from attnkit.state import State

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def check_tensors(tensors: Mapping[str, object], *, rank: int, letters: str) -> None:
    """Check that all are dense tensors of this rank, of one floating dtype, on one device."""
    check_plain(tensors.values())
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise ArgumentError(f"{name} must be a tensor {letters}, got {described(tensor)}")
        if tensor.dim() != rank:
            raise ShapeError(
                f"{name} must have {rank} dimensions, {letters}, got {tuple(tensor.shape)}"
            )
    found = [tensor for tensor in tensors.values() if isinstance(tensor, torch.Tensor)]
    names, first = " and ".join(tensors), found[0]
    rule = ""
    if any(tensor.dtype not in FLOATING for tensor in found):
        rule = "be float32, bfloat16, float16 or float64"
    elif any(tensor.dtype != first.dtype for tensor in found):
        rule = "have one dtype"
    if rule:
        dtypes = ", ".join(dtype_name(tensor.dtype) for tensor in found)
        raise DtypeError(f"{names} must {rule}, got {dtypes}; convert with .to()")
    if any(tensor.device != first.device for tensor in found):
        raise DeviceError(
            f"{names} must be on one device, got "
            f"{', '.join(str(tensor.device) for tensor in found)}; move with .to()"
        )


def check_plain(tensors: Iterable[object]) -> None:
    """Check that no tensor is nested or sparse, of which no variant can ask its sizes."""
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and (
            tensor.is_nested or tensor.layout != torch.strided
        ):
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise UnsupportedError(
                f"tensors must be dense, got a {kind} one of type {type(tensor).__name__}; pad it "
                "with .to_padded_tensor(0.0) and say where with attnkit.padding(lengths), or use "
                ".to_dense()"
            )


def check_tokens(name: str, x: object, width: int, meets: Tensor | nn.Module) -> None:
    """Check what a layer is given: (B, L, width), in the dtype of its weights or under autocast.

    Args:
        name: Of the argument.
        x: What came.
        width: D.
        meets: The layer's parameter, or its child, that x is multiplied with.
    """
    if not isinstance(x, torch.Tensor):
        raise ArgumentError(
            f"{name} must be a tensor (B, L, D) with D = {width}, got {described(x)}; "
            "make one with torch.as_tensor()"
        )
    if x.dim() != 3 or x.shape[-1] != width:
        raise ShapeError(
            f"{name} must be (B, L, D) with D = {width}, got {tuple(x.shape)}; project it, or "
            "make the layer for that width"
        )
    weight = meets if isinstance(meets, torch.Tensor) else weight_at_rest(meets)
    if weight is None or x.dtype == weight.dtype:
        return
    if not torch.is_autocast_enabled(x.device.type):
        raise DtypeError(
            f"{name} must have the dtype of the weights, {dtype_name(weight.dtype)}, got "
            f"{dtype_name(x.dtype)}; convert one with .to()"
        )


def check_state(state: State, kind: type[object], batch_size: int) -> None:
    """Check that a layer's state is of its kind, and of as many samples as the call."""
    if not isinstance(state, kind):
        raise StateError(
            f"state must be a {kind.__name__}, got {type(state).__name__}; "
            "start with this layer's init_state(batch_size)"
        )
    if state.batch_size != batch_size:
        raise StateError(
            f"state holds {state.batch_size} samples, the call has {batch_size}; start with "
            "init_state(batch_size), or pick samples with state.reorder(index)"
        )


def check_same(tensors: Mapping[str, Tensor], what: str, dim: int) -> None:
    """Check that all tensors agree in one size."""
    sizes = [tensor.shape[dim] for tensor in tensors.values()]
    if any(size != sizes[0] for size in sizes):
        shapes = " and ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        unequal = " != ".join(str(size) for size in dict.fromkeys(sizes))
        raise ShapeError(f"{' and '.join(tensors)} must share {what}, got {shapes}: {unequal}")


def check_heads(query: Tensor, key: Tensor) -> None:
    """Check that Hkv divides H, and that there are heads and width."""
    heads, kv_heads = query.shape[1], key.shape[1]
    if not heads or not kv_heads or heads % kv_heads:
        raise ShapeError(
            f"heads of query must be a multiple of those of key and value, got {heads} and "
            f"{kv_heads}: query {tuple(query.shape)}, key {tuple(key.shape)}"
        )
    if not query.shape[3]:
        raise ShapeError(f"head_dim must be positive, got query {tuple(query.shape)}")


def check_groups(value: Tensor, key: Tensor) -> None:
    """Check that G divides H, and that there are groups and width."""
    heads, groups = value.shape[1], key.shape[1]
    if not heads or not groups or heads % groups:
        raise ShapeError(
            f"heads of value must be a multiple of the groups of query and key, got {heads} and "
            f"{groups}: value {tuple(value.shape)}, key {tuple(key.shape)}"
        )
    if not key.shape[3] or not value.shape[3]:
        raise ShapeError(
            f"widths must be positive, got key {tuple(key.shape)}, value {tuple(value.shape)}"
        )


def check_gate(name: str, gate: object, value: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Check a gate of a recurrence: floating, on the device, of one of these shapes."""
    if not isinstance(gate, torch.Tensor):
        either = " or ".join(map(str, shapes))
        raise ArgumentError(f"{name} must be a floating tensor {either}, got {described(gate)}")
    _floating(name, gate, "floating tensor", value)
    if tuple(gate.shape) not in shapes:
        either = " or ".join(map(str, shapes))
        raise ShapeError(f"{name} must be {either}, got {tuple(gate.shape)}")


def check_mask(mask: object) -> None:
    """Check that the mask is one."""
    if mask is None:
        raise MaskError("mask must be an attnkit.Mask, got None; attnkit.full() hides nothing")
    if isinstance(mask, torch.Tensor):
        raise MaskError(
            f"mask must be an attnkit.Mask, got a tensor {described(mask)}; wrap a bool tensor "
            "as attnkit.dense(tensor), give float terms as bias"
        )
    if not isinstance(mask, Mask):
        raise MaskError(
            f"mask must be an attnkit.Mask, got {described(mask)}; "
            "make one with attnkit.causal(), attnkit.padding(lengths) ..."
        )


def check_number(name: str, given: object, *, above: float = -math.inf) -> None:
    """Check that a number, if given, is finite and larger than a bound."""
    if given is None:
        return
    wanted = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
    # compared, as torch.compile has no isfinite of numbers that are symbols
    if isinstance(given, bool) or not (
        isinstance(given, int | float) and -math.inf < given < math.inf
    ):
        raise ArgumentError(f"{name} must be {wanted} or None, got {described(given)}")
    if given <= above:
        raise ArgumentError(f"{name} must be {wanted} or None, got {given!r}")


def check_share(name: str, given: object) -> None:
    """Check 0 <= given < 1."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1:
        raise ArgumentError(f"{name} must be a number with 0 <= {name} < 1, got {described(given)}")


def check_bias(bias: object, query: Tensor, key: Tensor) -> None:
    """Check that the bias is floating, on the device, and broadcasts to (B, H, L, S)."""
    hint = "; a bool tensor that hides keys is a mask, attnkit.dense(tensor)"
    shape = _floating("bias", bias, "floating tensor or None", query, hint).shape
    wanted = (*query.shape[:3], key.shape[2])
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    if len(shape) > 4 or any(got not in (1, size) for got, size in pairs):
        raise ShapeError(f"bias must broadcast to (B, H, L, S) = {wanted}, got {tuple(shape)}")


def check_sinks(sinks: object, query: Tensor) -> None:
    """Check that the sinks are floating, on the device, and one per query head."""
    shape = _floating("sinks", sinks, "floating tensor (H,) or None", query).shape
    if tuple(shape) != (query.shape[1],):
        raise ShapeError(f"sinks must be (H,) = ({query.shape[1]},), got {tuple(shape)}")


def _floating(name: str, given: object, kind: str, like: Tensor, hint: str = "") -> Tensor:
    """Return what is given if it is a floating tensor on the device of another one."""
    if not isinstance(given, torch.Tensor):
        raise ArgumentError(f"{name} must be a {kind}, got {described(given)}")
    if given.dtype not in FLOATING:
        raise DtypeError(f"{name} must be floating, got {described(given)}{hint}")
    if given.device != like.device:
        raise DeviceError(
            f"{name} must be on the device of the others, got {given.device} and {like.device}; "
            "move with .to()"
        )
    return given
