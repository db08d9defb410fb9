"""Running a model on a sample, and its outputs by name; for hosts of plain modules."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn


def run_model(
    model: nn.Module, sample: Mapping[str, object], keep: Tensor | None = None
) -> Mapping[str, Tensor]:
    """Run a model.

    Args:
        model: Called with the sample as keyword arguments.
        sample: Its inputs.
        keep: Bool (B, L), the rows of outputs (B, L, D) that are no padding.

    Returns:
        Its float outputs by name, nested names joined by dots.
    """
    return named_tensors(model(**sample), keep)


def named_tensors(
    out: object, keep: Tensor | None = None, *, without: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return the float tensors of what a model returned, as `run_model` does.

    Args:
        out: It.
        keep: See `run_model`.
        without: Keys of mappings that are passed over.
    """
    return dict(_tensors("", out, keep, without))


def numbers(*shape: int, like: Tensor, seed: int = 0) -> Tensor:
    """Return standard normal numbers, always the same, of the dtype and device of ``like``."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _tensors(
    name: str, out: object, keep: Tensor | None, without: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    if isinstance(out, torch.Tensor):
        if out.is_floating_point():
            yield name or "output", _rows(out, keep)
    elif isinstance(out, Mapping):
        for key, value in out.items():
            if key not in without:
                yield from _tensors(f"{name}.{key}".strip("."), value, keep, without)
    elif isinstance(out, tuple | list):
        for number, value in enumerate(out):
            yield from _tensors(f"{name}.{number}".strip("."), value, keep, without)


def _rows(out: Tensor, keep: Tensor | None) -> Tensor:
    if keep is not None and out.dim() > 2 and out.shape[:2] == keep.shape:
        return out[keep]
    return out if out.dim() else out.reshape(1)
