"""Whether what an implementation returned is what its door may pass on."""

from __future__ import annotations

import torch
from torch import Tensor

from attnkit.errors import ImplementationError


def check_output(whose: str, what: str, out: object, shape: tuple[int, ...], like: Tensor) -> None:
    """Check that it is a tensor of this shape, typed and placed as another.

    Args:
        whose: The implementation, as ``variant.implementation``.
        what: Its letters.
        out: What was returned.
        shape: What it has to be.
        like: Of the dtype and on the device that it has to be.
    """
    if not isinstance(out, torch.Tensor):
        raise ImplementationError(f"{whose} must return {what} = {shape}, got {_kind(out)}")
    if out.shape != shape or out.dtype != like.dtype or out.device != like.device:
        wanted = f"{shape} in {like.dtype} on {like.device}"
        raise ImplementationError(
            f"{whose} must return {what} = {wanted}, got {tuple(out.shape)} in {out.dtype} on "
            f"{out.device}; mend it, or name another implementation"
        )


def check_outputs(
    whose: str, answer: object, value: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what a recurrence answered, if it is outputs like the values and a state."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise ImplementationError(f"{whose} must return outputs and a state, got {_kind(answer)}")
    out, after = answer
    check_output(whose, "outputs (B, H, L, Ev)", out, tuple(value.shape), value)
    check_output(whose, "a state (B, H, E, Ev)", after, tuple(state.shape), state)
    return out, after


def _kind(answer: object) -> str:
    return "None" if answer is None else f"a {type(answer).__name__}"
