"""Linear attention: a feature map of query and key in place of the exponential of softmax.

    o_i = sum_{j <= i} phi(q_i) . phi(k_j) v_j / max(sum_{j <= i} phi(q_i) . phi(k_j), eps)

As a recurrence, S_t = S_{t-1} + phi(k_t) [v_t, 1]^T: the last column of the state, which is
(B, H, E, Ev + 1), sums the features of the keys; the last entry of S_t^T phi(q_t) is the
denominator.

It is causal by itself; there is no scale, as it would cancel. Features, sums and the division run
in at least float32.

Source: Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236, eq. 4-6 for the sum, 7 for the
feature map, 18-20 for the recurrence. Their division has no eps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

import attnkit
from attnkit.placements import Placement, SiteOptions
from attnkit.promises import ALL_DTYPES, Promises

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.problem import RecurrenceProblem


class LinearOptions(attnkit.Options):
    """Options of linear attention."""

    feature_map: Literal["elu1", "relu"] = Field(
        default="elu1", description="phi: elu1 is elu(x) + 1, relu is max(x, 0)"
    )
    eps: float = Field(
        default=1e-6, gt=0, allow_inf_nan=False, description="least denominator, dimensionless"
    )
    chunk_size: int = Field(default=64, gt=0, description="tokens per chunk of the chunked form")

    def features(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return phi(query), phi(key) and [value, 1], in at least float32."""
        import torch

        from attnkit_plugins.recurrence.linear.features import MAPS

        wide = torch.promote_types(value.dtype, torch.float32)
        phi = MAPS[self.feature_map]
        ones = value.new_ones((*value.shape[:-1], 1), dtype=wide)
        value = torch.cat((value.to(wide), ones), -1)  # (B, H, L, Ev + 1)
        return phi(query.to(wide)), phi(key.to(wide)), value

    def finish(self, out: Tensor) -> Tensor:
        """Divide by the last column: (B, H, L, Ev + 1) to (B, H, L, Ev)."""
        return out[..., :-1] / out[..., -1:].clamp(min=self.eps)

    def state_shape(self, head_dim: int, value_head_dim: int) -> tuple[int, int]:
        """Return E and Ev + 1."""
        return head_dim, value_head_dim + 1


class LinearConfig(attnkit.LayerConfig):
    """Configuration of the linear attention layer."""

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
    projection_bias: bool = Field(default=False, description="add a bias in the four projections")
    feature_map: Literal["elu1", "relu"] = Field(
        default="elu1", description="phi: elu1 is elu(x) + 1, relu is max(x, 0)"
    )
    eps: float = Field(
        default=1e-6, gt=0, allow_inf_nan=False, description="least denominator, dimensionless"
    )
    chunk_size: int = Field(default=64, gt=0, description="tokens per chunk of the chunked form")

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


class LinearSiteOptions(SiteOptions):
    """What a plan may say about linear attention in place of a layer's attention function."""

    feature_map: Literal["elu1", "relu"] = Field(
        default="elu1", description="phi: elu1 is elu(x) + 1, relu is max(x, 0)"
    )
    eps: float = Field(
        default=1e-6, gt=0, allow_inf_nan=False, description="least denominator, dimensionless"
    )
    chunk_size: int = Field(
        default=64, gt=0, strict=True, description="tokens per chunk of the chunked form"
    )


PROMISES = Promises(
    causal=True,
    masks=("padding", "documents"),
    gqa=True,
    value_width=True,
    decay=("none",),
    state=True,
    reorder=True,
    gradients=True,
    dtypes=ALL_DTYPES,
    devices=("cpu",),
    deterministic=True,
    compile=True,
    memory="L",
    time="L",
)


# float32 on one thread of a Zen 5 CPU, torch 2.13; training takes three times a forward pass


def _size(problem: RecurrenceProblem) -> float:
    """Numbers in all states, three times over in training."""
    return _passes(problem) * (
        problem.batch * problem.heads * problem.head_dim * problem.value_head_dim
    )


def _passes(problem: RecurrenceProblem) -> int:
    return 3 if problem.gradients else 1


def _reference_cost(problem: RecurrenceProblem) -> float:
    return problem.query_length * (200e-6 * _passes(problem) + 4e-9 * _size(problem))


def _recurrent_cost(problem: RecurrenceProblem) -> float:
    step = 16e-6 * _passes(problem) + 3e-10 * _size(problem)
    return 20e-6 + problem.query_length * step


def _chunked_cost(problem: RecurrenceProblem) -> float:
    token = 0.5e-6 * _passes(problem) + 1e-10 * _size(problem)
    return 50e-6 * _passes(problem) + problem.query_length * token


VARIANT = attnkit.Variant(
    name="linear",
    family="recurrence",
    summary="Linear attention: a feature map in place of the exponential of softmax.",
    source="Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236, eq. 4-6",
    relation="different",
    promises=PROMISES,
    config=LinearConfig,
    layer="attnkit_plugins.recurrence.linear.layer:LinearLayer",
    options=LinearOptions,
    placement=Placement(
        build="attnkit_plugins.recurrence.linear.site:LinearSite", options=LinearSiteOptions
    ),
    implementations=(
        attnkit.Implementation(
            name="reference",
            function="attnkit.reference:recurrence",
            summary="float64, token by token",
            promises=PROMISES,
            cost=_reference_cost,
        ),
        attnkit.Implementation(
            name="recurrent",
            function="attnkit.kernels.stepwise:recur",
            summary="token by token in at least float32",
            promises=PROMISES,
            cost=_recurrent_cost,
        ),
        attnkit.Implementation(
            name="chunked",
            function="attnkit_plugins.recurrence.linear.chunks:scan",
            summary="matrix products within chunks, a running sum between them",
            promises=PROMISES,
            cost=_chunked_cost,
        ),
    ),
)


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Offer linear attention."""
    return (VARIANT,)
