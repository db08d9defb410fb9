"""Gated linear attention: linear attention whose state decays, per head or per key channel.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t

g <= 0 is a natural logarithm, (B, H, L) for one decay per head or (B, H, L, E) for one per key
channel. Where g is the same for all tokens this is the retention of RetNet (without its rotation
of query and key). There is no feature map and no denominator; the layer normalises each head.

Source: Yang et al. 2023, https://arxiv.org/abs/2312.06635, eq. 3-4 (alpha = exp(g)), section 4.4
for the layer; fixed decays: Sun et al. 2023, https://arxiv.org/abs/2307.08621, eq. 6 and 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

import attnkit
from attnkit.placements import Placement, SiteOptions
from attnkit.promises import ALL_DTYPES, Promises, SpeedClaim

if TYPE_CHECKING:
    from attnkit.problem import RecurrenceProblem
    from attnkit.promises import Decay


class GatedLinearOptions(attnkit.Options):
    """Options of gated linear attention."""

    chunk_size: int = Field(default=64, gt=0, description="tokens per chunk of the chunked form")


class GatedLinearConfig(attnkit.LayerConfig):
    """Configuration of the gated linear attention layer."""

    num_heads: int = Field(gt=0, description="H, value heads")
    num_groups: int | None = Field(
        default=None,
        gt=0,
        description="G, heads of query and key, a divisor of num_heads; None for num_heads",
    )
    head_dim: int | None = Field(
        default=None,
        gt=0,
        description="E, width of a query or key head; None for embed_dim / num_heads",
    )
    value_head_dim: int | None = Field(
        default=None, gt=0, description="Ev, width of a value head; None for head_dim"
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
    chunk_size: int = Field(default=64, gt=0, description="tokens per chunk of the chunked form")

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.num_heads % self.groups:
            raise ValueError(
                "num_heads must be a multiple of num_groups, "
                f"got {self.num_heads} and {self.num_groups}"
            )
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise ValueError(
                "embed_dim must be a multiple of num_heads where head_dim is left out, "
                f"got {self.embed_dim} and {self.num_heads}"
            )
        return self

    @property
    def groups(self) -> int:
        """G."""
        return self.num_heads if self.num_groups is None else self.num_groups

    @property
    def key_width(self) -> int:
        """E."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def value_width(self) -> int:
        """Ev."""
        return self.key_width if self.value_head_dim is None else self.value_head_dim


class GatedLinearSiteOptions(SiteOptions):
    """What a plan may say about it in place of a layer's attention function; see `site`."""

    decay: Literal["channel", "head", "fixed"] = Field(
        default="head",
        description="decays per key channel or per head, learned; or fixed, one per head",
    )
    gate_rank: int = Field(
        default=16, gt=0, strict=True, description="width inside the decays per channel"
    )
    chunk_size: int = Field(
        default=64, gt=0, strict=True, description="tokens per chunk of the chunked form"
    )


def _site_decay(options: GatedLinearSiteOptions) -> Decay:
    return "channel" if options.decay == "channel" else "head"


PROMISES = Promises(
    causal=True,
    masks=("padding", "documents"),
    gqa=True,
    value_width=True,
    scale=True,
    decay=("head", "channel"),
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
    if problem.decay == "channel":
        # a chunk is halved down to single tokens; 64 is the chunk size unless told otherwise
        halvings = min(problem.query_length - 1, 63).bit_length()
        start, token, number = 70e-6 + 80e-6 * halvings, 1.5e-6, 4e-10
    else:
        start, token, number = 90e-6, 1e-6, 1.3e-10
    per_token = token * _passes(problem) + number * _size(problem)
    return start * _passes(problem) + problem.query_length * per_token


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
    options=GatedLinearOptions,
    placement=Placement(
        build="attnkit_plugins.recurrence.gated_linear.site:GatedLinearSite",
        options=GatedLinearSiteOptions,
        decay=_site_decay,
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
            function="attnkit_plugins.recurrence.gated_linear.chunks:scan",
            summary="matrix products within chunks, a recurrence between them",
            promises=PROMISES.model_copy(update={"speed": (_FASTER,)}),
            cost=_chunked_cost,
        ),
    ),
)


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Offer gated linear attention."""
    return (VARIANT,)
