"""F: feed-forward layers of experts: tokens are rows, experts are interchangeable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import attnkit
from attnkit.errors import UnsupportedError
from attnkit_contracts.catalogue import BrokenError, InconclusiveError, Measured, check
from attnkit_contracts.inputs.calls import normal
from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import (
    agree,
    bound,
    estimated,
    exactly,
    must_be_finite,
    named_gradients,
    near,
    part,
    worst,
)
from attnkit_contracts.subjects.layers import EXPERTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.judging.outputs import Bound
    from attnkit_contracts.subjects.layers import LayerSubject


def clear_call(subject: LayerSubject, label: str, *, length: int = 24) -> Call:
    """Return tokens whose choice of experts no rounding of the inputs changes.

    Of many tokens, those are taken whose last chosen and first rejected experts are far apart.
    A layer with other weights than the definition's gets any tokens: nobody knows its router.
    """
    weights = subject.expert_weights()
    if weights is None:
        return subject.draw(label, batch=2, length=length)
    pool = subject.draw(label, batch=2, length=8 * length)
    router = weights["router.weight"].double()
    x = pool.tensors["x"]
    top_k = int(getattr(subject.config, "top_k", len(router)))
    if top_k >= len(router):
        return pool.tokens(0, length)
    logits = (x.double() @ router.T).sort(-1, descending=True).values  # (B, 8 L, E)
    margin = logits[..., top_k - 1] - logits[..., top_k]
    best = margin.argsort(-1, descending=True)[:, :length].sort(-1).values  # (B, L)
    return pool.given(x=x.gather(1, best[..., None].expand(-1, -1, x.shape[-1])))


def expert_weights(subject: LayerSubject) -> dict[str, Tensor]:
    """Return the weights by name, or refuse: nobody has a definition of a layer with others."""
    weights = subject.expert_weights()
    if weights is None:
        raise UnsupportedError(
            f"nobody has a definition of the layer of {subject.target.variant.name!r}: a mixture "
            "of experts is compared with sum_k gate_k E_k(x) if its weights are router.weight "
            f"(E, D), gate_up_proj (E, 2F, D) and down_proj (E, D, F), got "
            f"{', '.join(f'{n} {tuple(t.shape)}' for n, t in subject.parameters().items())}"
        )
    return weights


def mixture_bound(subject: LayerSubject, call: Call, keep: Tensor | None = None) -> Bound:
    """Return the definition's answer to a call, and the unit of its errors."""

    def definition(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"out": subject.mixture(given, keep)}

    inputs = {**call.tensors, **expert_weights(subject)}

    @torch.no_grad()
    def estimate(probes: int) -> dict[str, tuple[Tensor, Tensor]]:
        return units.noise(definition, inputs, subject.dtype, probes=probes)

    return estimated(estimate, units.mixture_gate(subject.dtype), units.PROBES)["out"]


def gradient_errors(subject: LayerSubject, call: Call, where: str = "") -> list[Measured]:
    """Measure the errors of the gradients of the input, the router and the experts."""
    call = call.leaves()
    y = subject(call)
    grad_out = subject.cast(normal(subject.random("N2 grad"), *y.shape))
    inputs = {**call.tensors, **expert_weights(subject)}
    got = torch.autograd.grad(y, list(inputs.values()), grad_out, materialize_grads=True)

    def estimate(probes: int) -> dict[str, tuple[Tensor, Tensor]]:
        return units.gradient_noise(subject.mixture, inputs, grad_out, subject.dtype, probes=probes)

    limits = estimated(estimate, units.backward_gate(subject.dtype), units.GRADIENT_PROBES)
    return [
        near(limits[name], gradient, f"{where} the gradient of {name}".strip())
        for name, gradient in zip(inputs, got, strict=True)
        if not (name == "router.weight" and _gates_are_one(subject))
    ]


def _gates_are_one(subject: LayerSubject) -> bool:
    """Return whether the outputs teach the router nothing: its gradient is rounding alone."""
    config = subject.config
    return getattr(config, "renormalise", True) and int(getattr(config, "top_k", 1)) == 1


@check(
    "N1.mixture",
    "r = |y - y*| / unit <= gate against sum_k gate_k E_k(x), expert by expert in float64; so all "
    "implementations agree.",
    families=("feedforward",),
    levels=("operation", "layer"),
    verdict="R",
)
def mixture(subject: LayerSubject) -> Measured:
    """Compare with the definition, with few tokens and with many."""
    found = []
    for length in (1, 7, 24):
        call = clear_call(subject, "N1", length=length)
        found.append(near(mixture_bound(subject, call), subject(call), f"L={length}"))
    return worst(found)


@check(
    "N2.mixture",
    "r_grad <= gate for the gradients of the input, the router and the experts.",
    families=("feedforward",),
    levels=("operation", "layer"),
    applies=lambda promises: promises.gradients,
    verdict="R",
)
def mixture_backward(subject: LayerSubject) -> Measured:
    """Compare with the gradients of the definition."""
    return worst(gradient_errors(subject, clear_call(subject, "N2", length=12)))


@check(
    "F1.expert_permutation",
    "Renumbering the experts, router and weights alike, leaves y as it is.",
    families=("feedforward",),
    levels=("operation", "layer"),
    verdict="R",
)
def expert_permutation(subject: LayerSubject) -> Measured:
    """Reverse the order of the experts."""
    call = clear_call(subject, "F1")
    before, limit = subject(call), mixture_bound(subject, call)
    with torch.no_grad():
        for weight in expert_weights(subject).values():
            weight.copy_(weight.flip(0).clone())
    return agree(limit, before, subject(call), "experts in reverse order")


@check(
    "F2.empty_experts",
    "An expert without tokens is legal, moves nothing, and gets a gradient of exactly zero.",
    families=("feedforward",),
    levels=("operation", "layer"),
    applies=lambda promises: promises.gradients,
)
def empty_experts(subject: LayerSubject) -> Measured:
    """Call with one token, which leaves some experts without any."""
    call = clear_call(subject, "F2", length=1).samples(torch.tensor([0], device=subject.device))
    weights = expert_weights(subject)
    y = subject(call)
    grad_out = subject.cast(normal(subject.random("F2 grad"), *y.shape))
    found = torch.autograd.grad(y, list(weights.values()), grad_out, allow_unused=True)
    received = named_gradients(weights, found)
    must_be_finite(received, "gradients")
    logits = call.tensors["x"][0, 0].double() @ weights["router.weight"].double().T  # (E,)
    top_k = int(getattr(subject.config, "top_k", len(logits)))
    if top_k >= len(logits):
        raise InconclusiveError("every expert is chosen")
    unused = logits.argsort(descending=True)[top_k:]
    for name in EXPERTS[1:]:
        if (received[name][unused] != 0).any():
            raise BrokenError(f"{name} of an expert without tokens gets a gradient")
    return exactly(0, "wrong gradients")


@check(
    "F3.padding",
    "Padded tokens give exactly 0, real ones what they give without padding.",
    families=("feedforward",),
    levels=("operation", "layer"),
    applies=lambda promises: "padding" in promises.masks or promises.time == "L",
    verdict="R",
)
def padding(subject: LayerSubject) -> Measured:
    """Pad on the right, differently per sample; the padding holds NaN."""
    call = clear_call(subject, "F3", length=9)
    lengths = torch.tensor([9, 4], device=subject.device)
    padded = torch.arange(9, device=subject.device) >= lengths[:, None]  # (B, L)
    x = torch.where(padded[..., None], float("nan"), call.tensors["x"])
    y = subject(call.given(x=x).masked(attnkit.padding(lengths)))
    if (y[padded] != 0).any() or not y[padded].isfinite().all():
        raise BrokenError("padded tokens must give 0, whatever they hold")
    if subject.expert_weights() is None:
        # no token looks at another, so each gives what it gives among tokens that are all real
        limit, real = bound(subject, call), (~padded,)
        return agree(part(limit, real), subject(call)[real], y[real], "real tokens")
    return near(mixture_bound(subject, call, ~padded), y, "real tokens")


@check(
    "F4.router_gradient",
    "The router gets a gradient that is not zero.",
    families=("feedforward",),
    levels=("operation", "layer"),
    applies=lambda promises: promises.gradients,
)
def router_gradient(subject: LayerSubject) -> Measured:
    """Send a gradient through the gates."""
    call = clear_call(subject, "F4")
    router = expert_weights(subject)["router.weight"]
    y = subject(call)
    grad_out = subject.cast(normal(subject.random("F4 grad"), *y.shape))
    found = torch.autograd.grad(y, [router], grad_out, allow_unused=True)
    if not (named_gradients({"the router": router}, found)["the router"] != 0).any():
        raise BrokenError("the router gets no gradient: it would never learn")
    return exactly(0, "missing gradients")


@check(
    "F5.tokens_apart",
    "The output of a token has a gradient of exactly zero to every other token.",
    families=("feedforward",),
    levels=("operation", "layer"),
    applies=lambda promises: promises.gradients,
)
def tokens_apart(subject: LayerSubject) -> Measured:
    """Send a gradient into one token at a time."""
    call = clear_call(subject, "F5", length=10).leaves()
    y = subject(call)
    for token in (0, 4, 9):
        one = torch.zeros_like(y)
        one[1, token] = 1.0
        (gradient,) = torch.autograd.grad(y, [call.tensors["x"]], one, retain_graph=True)
        reached = (gradient != 0).any(-1)  # (B, L)
        wanted = torch.zeros_like(reached)
        wanted[1, token] = True
        if not torch.equal(reached, wanted):
            raise BrokenError(f"token {token} of sample 1 depends on {reached.nonzero().tolist()}")
    return exactly(0, "wrong dependencies")
