"""Gated linear attention: linear attention whose state decays, per head or per key channel.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t

g <= 0 is a natural logarithm, (B, H, L) for one decay per head or (B, H, L, E) for one per key
channel. Where g is the same for all tokens this is the retention of RetNet (without its rotation
of query and key). There is no feature map and no denominator; the layer normalises each head.

Source: Yang et al. 2023, https://arxiv.org/abs/2312.06635, eq. 3-4 (alpha = exp(g)), section 4.4
for the layer; fixed decays: Sun et al. 2023, https://arxiv.org/abs/2307.08621, eq. 6 and 8.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

import attnkit
from attnkit.kernels.implementations import RECURRENCE, ChunkSize, chunked_cost, recurrences
from attnkit.layers import HeadsConfig, check_multiple
from attnkit.placements import Placement, SiteOptions
from attnkit.problem import RecurrenceProblem
from attnkit.promises import Decay, SpeedClaim


class GatedLinearOptions(attnkit.Options):
    """Options of gated linear attention."""

    chunk_size: ChunkSize = 64


class GatedLinearConfig(HeadsConfig):
    """Configuration of the gated linear attention layer."""

    num_heads: int = Field(gt=0, description="H, value heads")
    num_groups: int | None = Field(
        default=None,
        gt=0,
        description="G, heads of query and key, a divisor of num_heads; None for num_heads",
    )
    decay: Literal["channel", "head", "fixed"] = Field(
        default="channel",
        description="log_decay is logsigmoid of a projection of x over gate_temperature, per key "
        "channel or per head; or fixed, log(1 - 2 ** (-5 - h)) for head h",
    )
    gate_rank: int = Field(
        default=16, gt=0, description="rank of the projection to decays per channel"
    )
    gate_temperature: float = Field(
        default=16.0,
        gt=0,
        allow_inf_nan=False,
        description="divides log_decay: more remembers longer",
    )
    scale: float | None = Field(
        default=None, allow_inf_nan=False, description="multiplies outputs; None for E ** -0.5"
    )
    norm_eps: float = Field(
        default=1e-5, gt=0, allow_inf_nan=False, description="eps of the RMS norm over each head"
    )
    projection_bias: bool = Field(default=False, description="add a bias in the five projections")
    chunk_size: ChunkSize = 64

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        check_multiple("num_heads", self.num_heads, "num_groups", self.groups)
        return self

    @property
    def groups(self) -> int:
        """G."""
        return self.num_heads if self.num_groups is None else self.num_groups


class GatedLinearSiteOptions(SiteOptions):
    """What a plan may say about it in place of a layer's attention function; see `site`."""

    decay: Literal["channel", "head", "fixed"] = Field(
        default="head",
        description="decays per key channel or per head, learned; or fixed, one per head",
    )
    gate_rank: int = Field(
        default=16, gt=0, strict=True, description="width inside the decays per channel"
    )
    chunk_size: ChunkSize = Field(default=64, strict=True)


def _site_decay(options: GatedLinearSiteOptions) -> Decay:
    return "channel" if options.decay == "channel" else "head"


PROMISES = RECURRENCE.model_copy(update={"scale": True, "decay": ("head", "channel")})


def _chunked_cost(problem: RecurrenceProblem) -> float:
    if problem.decay == "channel":
        # a chunk is halved down to single tokens; 64 is the chunk size unless told otherwise
        halvings = min(problem.query_length - 1, 63).bit_length()
        return chunked_cost(problem, start=70e-6 + 80e-6 * halvings, token=1.5e-6, number=4e-10)
    return chunked_cost(problem, start=90e-6, token=1e-6, number=1.3e-10)


_FASTER = SpeedClaim(vs="gated_linear.recurrent", max_ratio=0.8, length=512)

VARIANT = attnkit.Variant(
    name="gated_linear",
    family="recurrence",
    summary="Linear attention whose state decays, per head or per key channel (GLA, RetNet).",
    source="Yang et al. 2023, https://arxiv.org/abs/2312.06635, eq. 3-4",
    relation="different",
    promises=PROMISES,
    config=GatedLinearConfig,
    layer="attnkit_plugins.recurrence.gated_linear.layer:GatedLinearLayer",
    layer_definition="attnkit_plugins.recurrence.gated_linear.definition:gated_linear",
    options=GatedLinearOptions,
    placement=Placement(
        build="attnkit_plugins.recurrence.gated_linear.site:GatedLinearSite",
        options=GatedLinearSiteOptions,
        decay=_site_decay,
    ),
    implementations=recurrences(
        PROMISES,
        "attnkit_plugins.recurrence.gated_linear.chunks:scan",
        "matrix products within chunks, a recurrence between them",
        _chunked_cost,
        (_FASTER,),
    ),
)

attnkit_variants = attnkit.hookimpl(lambda: (VARIANT,))
