"""Heads of layers: their widths, as configurations say them, and cutting; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from attnkit.interface import LayerConfig

if TYPE_CHECKING:
    from torch import Tensor


class HeadsConfig(LayerConfig):
    """Configuration of a layer with heads; a variant adds its own fields."""

    num_heads: int = Field(gt=0, description="H, query heads")
    head_dim: int | None = Field(
        default=None,
        gt=0,
        description="E, width of a query or key head; None for embed_dim / num_heads",
    )
    value_head_dim: int | None = Field(
        default=None, gt=0, description="Ev, width of a value head; None for head_dim"
    )

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.head_dim is None:
            left_out = "num_heads where head_dim is left out"
            check_multiple("embed_dim", self.embed_dim, left_out, self.num_heads)
        return self

    @property
    def key_width(self) -> int:
        """E."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def value_width(self) -> int:
        """Ev."""
        return self.key_width if self.value_head_dim is None else self.value_head_dim


class GroupedHeadsConfig(HeadsConfig):
    """Configuration of a layer in which query heads may share key/value heads."""

    num_kv_heads: int | None = Field(
        default=None,
        gt=0,
        description="Hkv, key/value heads, a divisor of num_heads; None for num_heads",
    )

    @model_validator(mode="after")
    def _check_kv_heads(self) -> Self:
        check_multiple("num_heads", self.num_heads, "num_kv_heads", self.kv_heads)
        return self

    @property
    def kv_heads(self) -> int:
        """Hkv."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * width) -> (B, heads, L, width)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def check_multiple(name: str, number: int, of: str, divisor: int) -> None:
    """Raise `ValueError`, which pydantic reports, unless the second divides the first."""
    if number % divisor:
        raise ValueError(f"{name} must be a multiple of {of}, got {number} and {divisor}")
