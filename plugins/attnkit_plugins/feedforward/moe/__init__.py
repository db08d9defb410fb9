"""Mixture of experts: a router sends each token to k of E SwiGLU feed-forward networks.

    p = softmax(x R^T),    y = sum_{e in top_k(p)} g_e E_e(x)
    E_e(x) = W_down (silu(W_gate x) * W_up x)

g is p over the chosen experts, renormalised to sum to 1 unless told otherwise. Equal
probabilities rank by expert index. Further letters: T tokens (B * L), k experts per token,
F width of an expert; E counts the experts here.

An implementation computes the sum for a routing that is already decided, as
``f(x, experts, gates, *, weights) -> y``:

    x        (T, D); finite at padding.
    experts  (T, k), int64, distinct within a token; -1 for a slot that counts for nothing.
    gates    (T, k), float32, or float64 where x is; 0 where experts is -1.
    weights  `attnkit_plugins.feedforward.moe.weights.ExpertWeights`, in the dtype of x.
    y        (T, D) in the dtype of x, summed over k in at least float32. A token without
             experts is 0. Everything gets a gradient, an expert without tokens a zero one.

The layer is in `layer`, the routing and its losses in `routing`.

Source: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, eq. 1; with softmax before top-k and
renormalised gates as Jiang et al. 2024, https://arxiv.org/abs/2401.04088, section 2.1 (a softmax
over the k largest logits is the same).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Self

from pydantic import Field, model_validator

import attnkit
from attnkit.placements import Placement, SiteOptions
from attnkit.problem import FeedforwardProblem
from attnkit.promises import ALL_DTYPES, ALL_TRANSFORMS, Promises
from attnkit.sites import Site


class MoEConfig(attnkit.LayerConfig):
    """Configuration of the mixture-of-experts layer."""

    hidden_dim: int = Field(gt=0, description="F, width between an expert's two matrices")
    num_experts: int = Field(gt=0, description="E, how many experts there are")
    top_k: int = Field(default=2, gt=0, description="k, how many of them each token is sent to")
    renormalise: bool = Field(
        default=True,
        description="gates of a token sum to 1; with top_k=1 only the losses then teach the router",
    )
    capacity_factor: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="an expert takes ceil(capacity_factor * n * k / E) of a sample's n tokens, "
        "the first ones; None drops nothing",
    )

    @model_validator(mode="after")
    def _check_top_k(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k must be at most num_experts, got {self.top_k} and {self.num_experts}"
            )
        return self


class MoESiteOptions(SiteOptions):
    """What a plan may say about it at a feed-forward layer, or at experts that are there."""

    num_experts: int | None = Field(
        default=None,
        gt=0,
        strict=True,
        description="E, copies of a dense layer's network; not for experts that are there",
    )
    top_k: int | None = Field(
        default=None,
        gt=0,
        strict=True,
        description="k, how many of them each token is sent to; 2 unless told otherwise",
    )


def _site_refuses(site: Site, options: MoESiteOptions) -> Iterator[str]:
    needs = site.needs
    if needs.num_experts is not None:
        given = ("num_experts", options.num_experts), ("top_k", options.top_k)
        for name, value in given:
            if value is not None:
                yield f"{name}: the model's own router decides, leave it out at experts"
    elif options.num_experts is None:
        yield (
            "num_experts: how many copies of the dense layer to make must be given, "
            "{'variant': 'moe', 'num_experts': 8, 'top_k': 2}"
        )
    elif (options.top_k or 2) > options.num_experts:
        yield f"top_k: at most num_experts = {options.num_experts}, got {options.top_k or 2}"
    if not needs.gated:
        yield (
            f"gate: experts of 'moe' are W_down (silu(W_gate x) * W_up x) without biases, "
            f"{site.layer} is not known to be"
        )
    if needs.activation not in ("SiLU", "SiLUActivation"):
        yield f"activation: {site.layer} has {needs.activation}, experts of 'moe' have SiLU"
    if options.fallback and needs.num_experts is None:
        yield "fallback: the layer that takes this place runs one implementation, leave it out"


def _work(problem: FeedforwardProblem) -> float:
    # k = 2 and F = D are assumed, a problem does not say; they shift no choice that was measured
    passes = 3 if problem.gradients else 1
    return 12e-11 * passes * 2 * problem.query_length * problem.width**2


def _reference_cost(problem: FeedforwardProblem) -> float:
    return _loop_cost(problem) + 1e-3 * problem.query_length + 10 * _work(problem)


def _loop_cost(problem: FeedforwardProblem) -> float:
    # 25 us for every expert hit; in training, the experts' gradients are stacked by a copy
    hit = min(problem.experts, 2 * problem.query_length)
    stacked = 1.3e-9 * problem.experts * 3 * problem.width**2 if problem.gradients else 0.0
    return 25e-6 * hit + stacked + _work(problem)


def _grouped_cost(problem: FeedforwardProblem) -> float:
    # 17 ns for every number of the sorted outputs, which are written, gathered and summed
    passes = 3 if problem.gradients else 1
    epilogue = 17e-9 * passes * 2 * problem.query_length * problem.width
    return 150e-6 * passes + epilogue + _work(problem)


def _grouped_refuses(problem: FeedforwardProblem) -> str | None:
    if problem.compiling and (problem.dtype != "bfloat16" or problem.width % 8):
        return "compile: needs bfloat16 and an embed_dim in multiples of 8"
    return None


def _dense_cost(problem: FeedforwardProblem) -> float:
    # k = 2 of E experts are needed
    return 50e-6 * problem.experts + max(1.0, problem.experts / 2) * _work(problem)


_PROMISES = Promises(
    gradients=True,
    dtypes=ALL_DTYPES,
    devices=("cpu",),
    deterministic=True,
    compile=True,
    transforms=ALL_TRANSFORMS,
    memory="L",
    time="L",
)
_EAGER = _PROMISES.model_copy(update={"compile": False})


def _form(
    name: str,
    module: str,
    summary: str,
    promises: Promises,
    cost: Callable[[FeedforwardProblem], float],
    refuses: Callable[[FeedforwardProblem], str | None] = lambda _: None,
) -> attnkit.Implementation:
    function = f"attnkit_plugins.feedforward.moe.{module}:feedforward"
    return attnkit.Implementation(
        name=name, function=function, summary=summary, promises=promises, cost=cost, refuses=refuses
    )


VARIANT = attnkit.Variant(
    name="moe",
    family="feedforward",
    summary="Mixture of experts: each token runs through k of E feed-forward networks.",
    source="Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, eq. 1",
    relation="different",
    promises=_PROMISES.model_copy(
        update={
            "causal": True,
            "bidirectional": True,
            "masks": ("window", "padding", "documents", "prefix", "dense", "blocks"),
            "capacity": True,
            "state": True,
            "reorder": True,
            "truncate": True,
            "stops_nan": True,
        }
    ),
    config=MoEConfig,
    layer="attnkit_plugins.feedforward.moe.layer:MoELayer",
    layer_definition="attnkit_plugins.feedforward.moe.definition:moe",
    placement=Placement(
        build="attnkit_plugins.feedforward.moe.site:upcycle",
        options=MoESiteOptions,
        relation="exact",
        refuses=_site_refuses,
        weights="attnkit_plugins.feedforward.moe.weights:ExpertWeights",
    ),
    implementations=(
        _form(
            "reference",
            "reference",
            "float64, token by token",
            _EAGER.model_copy(update={"transforms": ("grad", "jvp")}),
            _reference_cost,
        ),
        _form(
            "loop",
            "loop",
            "expert by expert over the tokens that chose it",
            _EAGER.model_copy(update={"transforms": ()}),
            _loop_cost,
        ),
        _form(
            "grouped",
            "groups",
            "two grouped matrix products over slots sorted by expert",
            _PROMISES.model_copy(update={"transforms": ()}),
            _grouped_cost,
            _grouped_refuses,
        ),
        _form(
            "dense",
            "dense",
            "every expert over all tokens, for graphs of static shapes",
            _PROMISES,
            _dense_cost,
        ),
    ),
)

attnkit_variants = attnkit.hookimpl(lambda: (VARIANT,))
