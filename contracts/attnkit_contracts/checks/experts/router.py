"""F: feed-forward layers of experts: tokens are rows, experts are interchangeable."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

import attnkit
from attnkit_contracts.catalogue import ANYWHERE, BrokenError, InconclusiveError, Measured, check
from attnkit_contracts.judging import outputs as judge
from attnkit_contracts.subjects.mixtures import EXPERTS

if TYPE_CHECKING:
    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.mixtures import MixtureLayer

mixture_check = partial(check, families=("feedforward",), levels=ANYWHERE)
"""Decorates a check of mixtures of experts, their layers and implementations alike."""


def pads(promises: Promises) -> bool:
    """Return whether padding has a meaning for what promises this."""
    return "padding" in promises.masks or promises.time == "L"


def gradient_errors(
    subject: MixtureLayer, call: Call, where: str = "", probes: int | None = None
) -> list[Measured]:
    """Measure the errors of the gradients of the input, the router and the experts."""
    call = call.leaves()
    y = subject(call)
    grad_out = subject.normal("N2 grad", *y.shape)
    inputs = {**call.tensors, **subject.expert_weights()}
    got = torch.autograd.grad(y, list(inputs.values()), grad_out, materialize_grads=True)
    limits = subject.mixture_bounds(call, {"out": grad_out}, subject.real(call), probes)
    return [
        judge.near(
            limits[judge.gradient_of(name)], gradient, f"{where} the gradient of {name}".strip()
        )
        for name, gradient in zip(inputs, got, strict=True)
        # gates of 1 teach the router nothing: its gradient is rounding alone
        if not (name == "router.weight" and subject.renormalises and subject.top_k == 1)
    ]


@mixture_check(
    "N1.mixture",
    "r = |y - y*| / unit <= gate against sum_k gate_k E_k(x), expert by expert in float64; so all "
    "implementations agree.",
    verdict="R",
)
def mixture(subject: MixtureLayer) -> Measured:
    """Compare with the definition, with few tokens and with many."""
    found = []
    for length in (1, 7, 24):
        call = subject.clear_call("N1", length=length)
        found.append(judge.near(subject.mixture_bounds(call)["out"], subject(call), f"L={length}"))
    return judge.worst(found)


@mixture_check(
    "N2.mixture",
    "r_grad <= gate for the gradients of the input, the router and the experts: of few tokens and "
    "of many that are padded, of one expert for each token and of several.",
    applies=lambda promises: promises.gradients,
    verdict="R",
)
def mixture_backward(subject: MixtureLayer) -> Measured:
    """Compare with the gradients of the definition: of few tokens, and of many that are padded."""
    found = gradient_errors(subject, subject.clear_call("N2", length=12), probes=3)
    fields = type(subject.config).model_fields
    for top_k, length in ((3, 70), (1, 5)):
        options = {"num_experts": 9 if top_k > 1 else 2, "top_k": top_k, "renormalise": False}
        wide = subject.remade(**{name: options[name] for name in options if name in fields})
        call = wide.clear_call("N2 wide", length=length)
        if pads(subject.promises):
            lengths = torch.tensor([length, length - 3], device=subject.device)
            call = call.masked(attnkit.padding(lengths))
        found += gradient_errors(wide, call, f"{top_k} experts of a token", 2)
    return judge.worst(found)


@mixture_check(
    "F1.expert_permutation",
    "Renumbering the experts, router and weights alike, leaves y as it is.",
    verdict="R",
)
def expert_permutation(subject: MixtureLayer) -> Measured:
    """Reverse the order of the experts."""
    call = subject.clear_call("F1")
    before, limit = subject(call), subject.mixture_bounds(call)["out"]
    with torch.no_grad():
        for weight in subject.expert_weights().values():
            weight.copy_(weight.flip(0).clone())
    return judge.agree(limit, before, subject(call), "experts in reverse order")


@mixture_check(
    "F2.empty_experts",
    "An expert without tokens is legal, moves nothing, and gets a gradient of exactly zero.",
    applies=lambda promises: promises.gradients,
)
def empty_experts(subject: MixtureLayer) -> Measured:
    """Call with one token, which leaves some experts without any."""
    call = subject.clear_call("F2", length=1).samples(torch.tensor([0], device=subject.device))
    weights = subject.expert_weights()
    y = subject(call)
    grad_out = subject.normal("F2 grad", *y.shape)
    got = judge.received(y, weights, grad_out)
    judge.must_be_finite(got, "gradients")
    logits = call.tensors["x"][0, 0].double() @ weights["router.weight"].double().T  # (E,)
    top_k = int(getattr(subject.config, "top_k", len(logits)))
    if top_k >= len(logits):
        raise InconclusiveError("every expert is chosen")
    unused = logits.argsort(descending=True)[top_k:]
    for name in EXPERTS[1:]:
        if (got[name][unused] != 0).any():
            raise BrokenError(f"{name} of an expert without tokens gets a gradient")
    return judge.exactly(0, "wrong gradients")


@mixture_check(
    "F3.padding",
    "Padded tokens give exactly 0, real ones what they give without padding.",
    applies=pads,
    verdict="R",
)
def padding(subject: MixtureLayer) -> Measured:
    """Pad on the right, differently per sample; the padding holds NaN."""
    call = subject.clear_call("F3", length=9)
    lengths = torch.tensor([9, 4], device=subject.device)
    padded = torch.arange(9, device=subject.device) >= lengths[:, None]  # (B, L)
    x = torch.where(padded[..., None], float("nan"), call.tensors["x"])
    y = subject(call.given(x=x).masked(attnkit.padding(lengths)))
    if (y[padded] != 0).any() or not y[padded].isfinite().all():
        raise BrokenError("padded tokens must give 0, whatever they hold")
    if not subject.is_defined:
        # no token looks at another, so each gives what it gives among tokens that are all real
        limit, real = subject.bound(call), (~padded,)
        return judge.agree(judge.part(limit, real), subject(call)[real], y[real], "real tokens")
    return judge.near(subject.mixture_bounds(call, keep=~padded)["out"], y, "real tokens")


@mixture_check(
    "F4.router_gradient",
    "The router gets a gradient that is not zero.",
    applies=lambda promises: promises.gradients,
)
def router_gradient(subject: MixtureLayer) -> Measured:
    """Send a gradient through the gates."""
    call = subject.clear_call("F4")
    router = subject.expert_weights()["router.weight"]
    y = subject(call)
    grad_out = subject.normal("F4 grad", *y.shape)
    if not (judge.received(y, {"the router": router}, grad_out)["the router"] != 0).any():
        raise BrokenError("the router gets no gradient: it would never learn")
    return judge.exactly(0, "missing gradients")


@mixture_check(
    "F5.tokens_apart",
    "The output of a token has a gradient of exactly zero to every other token.",
    applies=lambda promises: promises.gradients,
)
def tokens_apart(subject: MixtureLayer) -> Measured:
    """Send a gradient into one token at a time."""
    call = subject.clear_call("F5", length=10).leaves()
    for token in (0, 4, 9):
        y = subject(call)
        one = torch.zeros_like(y)
        one[1, token] = 1.0
        (gradient,) = torch.autograd.grad(y, [call.tensors["x"]], one)
        reached = (gradient != 0).any(-1)  # (B, L)
        wanted = torch.zeros_like(reached)
        wanted[1, token] = True
        if not torch.equal(reached, wanted):
            raise BrokenError(f"token {token} of sample 1 depends on {reached.nonzero().tolist()}")
    return judge.exactly(0, "wrong dependencies")
