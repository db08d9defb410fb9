"""The configuration that the layers of softmax variants share; imports no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from attnkit.layers.heads import GroupedHeadsConfig


class SoftmaxConfig(GroupedHeadsConfig):
    """Configuration of `attnkit.layers.softmax.SoftmaxLayer`; variants restrict or extend it."""

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
    def _check_positions(self) -> Self:
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
