"""The configuration that the layers of softmax variants share; imports no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from attnkit.interface import LayerConfig


class SoftmaxConfig(LayerConfig):
    """Configuration of `attnkit.layers.softmax.SoftmaxLayer`; variants restrict or extend it."""

    num_heads: int = Field(gt=0, description="H, query heads")
    num_kv_heads: int | None = Field(
        default=None,
        gt=0,
        description="Hkv, key/value heads, a divisor of num_heads; None for num_heads",
    )
    head_dim: int | None = Field(
        default=None,
        gt=0,
        description="E, width of a query or key head; None for embed_dim / num_heads",
    )
    value_head_dim: int | None = Field(
        default=None, gt=0, description="Ev, width of a value head; None for head_dim"
    )
    context_dim: int | None = Field(
        default=None,
        gt=0,
        description="width of a cross-attention context; None attends to x itself",
    )
    is_causal: bool = Field(default=False, description="hide later keys")
    window_size: int | None = Field(
        default=None, gt=0, description="keys a query sees, itself included; None for no window"
    )
    scale: float | None = Field(
        default=None, gt=0, description="multiplies the logits, dimensionless; None for E ** -0.5"
    )
    softcap: float | None = Field(
        default=None,
        gt=0,
        description="logits become softcap * tanh(logits / softcap); None for no cap",
    )
    sinks: bool = Field(
        default=False, description="learn one extra logit per head, in the denominator"
    )
    dropout_p: float = Field(
        default=0.0, ge=0, lt=1, description="share of probabilities dropped in training"
    )
    projection_bias: bool = Field(default=False, description="add a bias in the four projections")
    rotary_base: float | None = Field(
        default=None,
        gt=0,
        description="base of rotary positions, 10000 in most models; None for none",
    )

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.num_heads % self.kv_heads:
            raise ValueError(
                "num_heads must be a multiple of num_kv_heads, "
                f"got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise ValueError(
                "embed_dim must be a multiple of num_heads where head_dim is left out, "
                f"got {self.embed_dim} and {self.num_heads}"
            )
        if self.rotary_base is not None and self.key_width % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.key_width}")
        if self.context_dim is not None:
            alone = [name for name in ("rotary_base", "window_size") if getattr(self, name)]
            alone += ["is_causal"] if self.is_causal else []
            if alone:
                raise ValueError(
                    f"context_dim excludes {', '.join(alone)}: a context has positions of its own"
                )
        return self

    @property
    def kv_heads(self) -> int:
        """Hkv."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def key_width(self) -> int:
        """E."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def value_width(self) -> int:
        """Ev."""
        return self.key_width if self.value_head_dim is None else self.value_head_dim
