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

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

import attnkit
from attnkit.kernels.implementations import RECURRENCE, ChunkSize, chunked_cost, recurrences
from attnkit.layers import GroupedHeadsConfig
from attnkit.placements import Placement, SiteOptions

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.problem import RecurrenceProblem

FeatureMap = Annotated[
    Literal["elu1", "relu"], Field(description="phi: elu1 is elu(x) + 1, relu is max(x, 0)")
]
Eps = Annotated[
    float, Field(gt=0, allow_inf_nan=False, description="least denominator, dimensionless")
]


class LinearOptions(attnkit.Options):
    """Options of linear attention."""

    feature_map: FeatureMap = "elu1"
    eps: Eps = 1e-6
    chunk_size: ChunkSize = 64

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


class LinearConfig(GroupedHeadsConfig):
    """Configuration of the linear attention layer."""

    projection_bias: bool = Field(default=False, description="add a bias in the four projections")
    feature_map: FeatureMap = "elu1"
    eps: Eps = 1e-6
    chunk_size: ChunkSize = 64


class LinearSiteOptions(SiteOptions):
    """What a plan may say about linear attention in place of a layer's attention function."""

    feature_map: FeatureMap = "elu1"
    eps: Eps = 1e-6
    chunk_size: ChunkSize = Field(default=64, strict=True)


PROMISES = RECURRENCE.model_copy(update={"decay": ("none",)})


def _chunked_cost(problem: RecurrenceProblem) -> float:
    return chunked_cost(problem, start=50e-6, token=0.5e-6, number=1e-10)


VARIANT = attnkit.Variant(
    name="linear",
    family="recurrence",
    summary="Linear attention: a feature map in place of the exponential of softmax.",
    source="Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236, eq. 4-6",
    relation="different",
    promises=PROMISES,
    config=LinearConfig,
    layer="attnkit_plugins.recurrence.linear.layer:LinearLayer",
    layer_definition="attnkit_plugins.recurrence.linear.definition:linear",
    options=LinearOptions,
    placement=Placement(
        build="attnkit_plugins.recurrence.linear.site:LinearSite", options=LinearSiteOptions
    ),
    implementations=recurrences(
        PROMISES,
        "attnkit_plugins.recurrence.linear.chunks:scan",
        "matrix products within chunks, a running sum between them",
        _chunked_cost,
    ),
)

attnkit_variants = attnkit.hookimpl(lambda: (VARIANT,))
