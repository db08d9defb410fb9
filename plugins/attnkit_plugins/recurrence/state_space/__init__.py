"""State-space layer of the Mamba-2 class: a linear recurrence whose decay depends on the token.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,    y_t = h_t C_t + D x_t

with dt = softplus(dt + dt_bias) and A < 0, one number each per head. In the words of the recurrence
family: query is C, key is B, both shared by the heads of a group; value is dt x and log_decay is
dt A. The state here is (B, H, E, Ev), the transpose of the paper's h, with E its N, the state size,
and Ev its P, the head size.

The layer puts this between projections, after a short convolution over time of x, B and C, and
before a norm gated by z; see `layer`.

Source: Dao & Gu 2024, https://arxiv.org/abs/2405.21060, eq. 2 (with A a scalar times identity),
section 6 for the chunked form, section 7.1 and figure 6 for the layer.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

import attnkit
from attnkit.kernels.implementations import RECURRENCE, ChunkSize, chunked_cost, recurrences
from attnkit.layers import check_multiple
from attnkit.placements import Placement, SiteOptions
from attnkit.problem import RecurrenceProblem
from attnkit.promises import Decay


class StateSpaceOptions(attnkit.Options):
    """Options of the state-space recurrence."""

    chunk_size: ChunkSize = 64


class StateSpaceConfig(attnkit.LayerConfig):
    """Configuration of the state-space layer."""

    num_heads: int = Field(gt=0, description="H, heads of x; each has its own A, D and dt")
    head_dim: int | None = Field(
        default=None,
        gt=0,
        description="Ev, width of a head of x; None for 2 * embed_dim / num_heads",
    )
    state_size: int = Field(default=128, gt=0, description="E, width of B and C")
    num_groups: int = Field(
        default=1, gt=0, description="G, groups of B and C, a divisor of num_heads"
    )
    conv_size: int = Field(
        default=4, gt=0, description="tokens a convolution sees, its own included"
    )
    conv_bias: bool = Field(default=True, description="add a bias in the convolution")
    projection_bias: bool = Field(default=False, description="add a bias in the two projections")
    norm_eps: float = Field(
        default=1e-5, gt=0, allow_inf_nan=False, description="eps of the gated norm"
    )
    chunk_size: ChunkSize = 64

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        check_multiple("num_heads", self.num_heads, "num_groups", self.num_groups)
        if self.head_dim is None:
            left_out = "num_heads where head_dim is left out"
            check_multiple("2 * embed_dim", 2 * self.embed_dim, left_out, self.num_heads)
        return self

    @property
    def value_width(self) -> int:
        """Ev."""
        return 2 * self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def inner_width(self) -> int:
        """H Ev, width of x and z inside the layer."""
        return self.num_heads * self.value_width

    @property
    def conv_width(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.inner_width + 2 * self.num_groups * self.state_size


class StateSpaceSiteOptions(SiteOptions):
    """What a plan may say about it in place of a layer's attention function; see `site`."""

    chunk_size: ChunkSize = Field(default=64, strict=True)


def _site_decay(options: StateSpaceSiteOptions) -> Decay:
    return "head"


PROMISES = RECURRENCE.model_copy(update={"scale": True, "decay": ("head",)})


def _chunked_cost(problem: RecurrenceProblem) -> float:
    return chunked_cost(problem, start=90e-6, token=1e-6, number=1.1e-10)


VARIANT = attnkit.Variant(
    name="state_space",
    family="recurrence",
    summary="State-space layer with one decay per head and token (Mamba-2, SSD).",
    source="Dao & Gu 2024, https://arxiv.org/abs/2405.21060, eq. 2 and section 6",
    relation="different",
    promises=PROMISES,
    config=StateSpaceConfig,
    layer="attnkit_plugins.recurrence.state_space.layer:StateSpaceLayer",
    layer_definition="attnkit_plugins.recurrence.state_space.definition:state_space",
    options=StateSpaceOptions,
    placement=Placement(
        build="attnkit_plugins.recurrence.state_space.site:StateSpaceSite",
        options=StateSpaceSiteOptions,
        decay=_site_decay,
    ),
    implementations=recurrences(
        PROMISES,
        "attnkit_plugins.recurrence.state_space.chunks:scan",
        "state-space duality: matrix products within chunks, a recurrence between",
        _chunked_cost,
    ),
)

attnkit_variants = attnkit.hookimpl(lambda: (VARIANT,))
