"""F, continued: capacity, auxiliary losses, ties, and many tokens, experts and choices."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.errors import ConfigError, UnsupportedError
from attnkit_contracts.catalogue import BrokenError, InconclusiveError, Measured, layer_check
from attnkit_contracts.checks.experts.router import gradient_errors, mixture_check
from attnkit_contracts.definitions import oracle
from attnkit_contracts.inputs.factors import mixture_rows
from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import exactly, gradient_of, near, probed, worst
from attnkit_contracts.subjects.mixtures import EXPERTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.mixtures import MixtureLayer

CAPACITY = 0.5
"""A capacity factor that cannot serve more than about half of all pairs of token and expert."""

LOSSES = ("load_balance_loss", "z_loss")

COUNTS = (4, 32)
"""How many experts: fewer than a token may choose at random, and more than any tile has."""

TOKENS = 200


@mixture_check(
    "F6.capacity",
    "With a capacity, an expert serves the first ceil(factor n k / E) that chose it of a sample's "
    "n real tokens, and no others; a layer without capacity refuses one by name.",
    verdict="R",
)
def capacity(subject: MixtureLayer) -> Measured:
    """Drop about half of all pairs; in one sample, padding stands before the real tokens."""
    promises = subject.target.variant.promises
    try:
        limited = subject.remade(capacity_factor=CAPACITY)
        call, keep = _padded(limited, limited.clear_call("F6"))
        y = limited(call)
    except (UnsupportedError, ConfigError) as error:
        if promises.capacity:
            raise BrokenError(f"capacity is promised, and refused: {error}") from error
        if "capacity" not in str(error):
            raise BrokenError(f"a capacity is refused without its name: {error}") from error
        return exactly(0, "accepted capacities")
    if not promises.capacity:
        raise BrokenError("capacity is not promised, and capacity_factor is accepted in silence")
    wanted = limited.routing({**call.tensors, **limited.expert_weights()}, keep)
    if not wanted.dropped:
        raise InconclusiveError("nothing exceeds the capacity")
    routing = _recorded(limited, call)
    if routing is not None:
        _same_experts(routing, wanted.experts)
        if int(routing.dropped) != wanted.dropped:
            raise BrokenError(
                f"{int(routing.dropped)} pairs of token and expert are said to be dropped, "
                f"{wanted.dropped} are"
            )
    return near(limited.mixture_bounds(call, keep=keep)["out"], y, f"capacity_factor={CAPACITY}")


def _padded(subject: MixtureLayer, call: Call) -> tuple[Call, Tensor]:
    """Pad the second of two samples on the left, if that is promised; return what is real, too."""
    batch, length = call.tensors["x"].shape[:2]
    keep = torch.ones(batch, length, dtype=torch.bool, device=subject.device)  # (B, L)
    if "padding" not in subject.target.variant.promises.masks:
        return call, keep
    hidden = torch.tensor([0, length // 2 - 1], device=subject.device)
    keep &= torch.arange(length, device=subject.device) >= hidden[:, None]
    return call.masked(attnkit.left_padding(hidden)), keep


def _recorded(subject: MixtureLayer, call: Call) -> Any:
    """Return the layer's record of its routing, None if it gives none."""
    if "return_routing" not in inspect.signature(subject.layer.forward).parameters:
        return None
    return subject.layer(call.tensors["x"], mask=call.mask, return_routing=True)[-1]


def _same_experts(routing: Any, wanted: Tensor) -> None:
    """Raise `BrokenError` unless the tokens' experts are these, in any order."""
    wrong = (routing.experts.sort(-1).values != wanted.sort(-1).values).any(-1)  # (B, L)
    if wrong.any():
        sample, token = wrong.nonzero()[0].tolist()
        raise BrokenError(
            f"the routing of {int(wrong.sum())} tokens is recorded wrongly, the first is token "
            f"{token} of sample {sample}: it goes to {wanted[sample, token].tolist()}, recorded "
            f"is {routing.experts[sample, token].tolist()}; -1 is dropped, or padding"
        )


@layer_check(
    "F7.losses",
    "The auxiliary losses are E * sum_e f_e P_e and mean logsumexp(logits)^2 over the real tokens "
    "alone (1 and log(E)^2 for a router of zeros), and so are their gradients to the router, where "
    "no tie leaves open which experts are loaded.",
    families=("feedforward",),
    # a router computes in float32, whatever the layer does
    dtypes=("float32", "bfloat16", "float16"),
    verdict="R",
)
def losses(subject: MixtureLayer) -> Measured:
    """Compare with the closed forms, for a router of zeros too; the padding holds NaN."""
    clear, keep = _padded(subject, subject.clear_call("F7"))
    x = torch.where(keep[..., None], clear.tensors["x"], float("nan"))
    if _recorded(subject, clear) is None:
        raise UnsupportedError(f"the layer of {subject.target.variant.name!r} records no routing")
    router = subject.expert_weights()["router.weight"]
    found = list(_losses(subject, clear, clear.given(x=x), keep, "router as drawn"))
    with torch.no_grad():
        router.zero_()
    found += _losses(subject, clear, clear.given(x=x), keep, "router of zeros")
    return worst(found)


def _losses(
    subject: MixtureLayer, clear: Call, padded: Call, keep: Tensor, where: str
) -> Iterator[Measured]:
    router = subject.expert_weights()["router.weight"]
    inputs = {"x": clear.tensors["x"], "router.weight": router}
    # the router runs in at least float32, whatever the tokens are in
    wide = torch.promote_types(subject.dtype, torch.float32)

    def both(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: getattr(subject.routing(given, keep), name) for name in LOSSES}

    limits = probed(both, inputs, wide)
    for name in LOSSES:
        loss = getattr(_recorded(subject, padded), name).reshape(1)
        yield near(limits[name], loss, f"{name}, {where}")
        # which experts are loaded where all are alike is the layer's own choice
        open_to_choice = name == "load_balance_loss" and not router.any()
        if subject.promises.gradients and not open_to_choice:
            if not loss.requires_grad:
                raise BrokenError(f"{name} has no gradient: the router would never learn from it")
            one = torch.ones_like(loss)
            (got,) = torch.autograd.grad(loss, [router], one, materialize_grads=True)
            learnt = probed(both, inputs, subject.dtype, grads={name: one})
            limit = learnt[gradient_of("router.weight")]
            yield near(limit, got, f"the router's gradient of {name}, {where}")


def _options(_: Promises) -> Iterator[Mapping[str, Any]]:
    for experts in COUNTS:
        for top_k in (1, 3):
            for renormalise in (True, False):
                yield {"num_experts": experts, "top_k": top_k, "renormalise": renormalise}
        # the gates of all experts sum to 1 either way
        yield {"num_experts": experts, "top_k": experts, "renormalise": False}


@mixture_check(
    "F8.options",
    "r <= gate and r_grad <= gate for 1, 3 and all of 4 and 32 experts per token, gates "
    "renormalised or not, tokens spread over the experts or all sent to the same ones.",
    fields=("num_experts", "top_k", "renormalise"),
    cases=_options,
    tier="standard",
    verdict="R",
)
def options(subject: MixtureLayer, num_experts: int, top_k: int, *, renormalise: bool) -> Measured:
    """Compare outputs and gradients of many tokens with the definition."""
    built = subject.remade(num_experts=num_experts, top_k=top_k, renormalise=renormalise)
    spread = built.clear_call("F8", length=TOKENS // 2)
    found = list(_errors(built, spread, "tokens spread"))
    # the first number of a token is 1 and all that the router reads: the last experts win
    x = spread.tensors["x"].clone()
    x[..., 0] = 1.0
    with torch.no_grad():
        router = built.expert_weights()["router.weight"].zero_()
        router[:, 0] = 4 * torch.arange(num_experts) / num_experts
    return worst([*found, *_errors(built, spread.given(x=x), "tokens at the same experts")])


@mixture_check(
    "F10.values",
    "r <= gate for every value of every option and size: 4, 5, 33 and 130 experts, 1, 2, 3, 8 and "
    "all of them for a token, one token, as many tokens as experts or as a token is wide, 300, "
    "widths that are no multiple of 8 and beyond 128, gates of 0 and 1, and large tokens.",
    fields=("num_experts", "top_k", "renormalise", "embed_dim", "hidden_dim"),
    # of tokens so large, products of two overflow in float16
    dtypes=("float64", "float32", "bfloat16"),
    verdict="R",
)
def values(subject: MixtureLayer) -> Measured:
    """Compare calls in which every value occurs with the definition; see `inputs.factors`."""
    found = []
    for row in mixture_rows():
        built, call = _made(subject, row)
        limit = built.mixture_bounds(call, probes=3)["out"]
        told = ", ".join(f"{name}={value}" for name, value in row.items())
        found.append(near(limit, built(call), told))
        if not found[-1].value <= found[-1].threshold:
            break
    return worst(found)


def _made(subject: MixtureLayer, row: Mapping[str, Any]) -> tuple[MixtureLayer, Call]:
    """Return the layer and the call that a combination names."""
    (width, hidden), experts = row["widths"], row["experts"]
    built = subject.remade(
        embed_dim=width,
        hidden_dim=hidden,
        num_experts=experts,
        top_k=experts if row["top_k"] == "all" else row["top_k"],
        renormalise=row["renormalise"],
    )
    with torch.no_grad():
        router = built.expert_weights()["router.weight"]
        # of very many experts, the last are the first choice of most: few have tokens
        router[100:].mul_(4)
        if row["logits"] == "large":
            router.mul_(200)
    sizes = {"experts": experts, "width": width}
    call = built.clear_call(f"F10 {dict(row)}", length=sizes.get(row["tokens"], row["tokens"]))
    call = call.samples(torch.tensor([0], device=subject.device))
    return built, call.map(lambda _, x: row["size"] * x)


def _errors(subject: MixtureLayer, call: Call, where: str) -> Iterator[Measured]:
    yield near(subject.mixture_bounds(call)["out"], subject(call), where)
    if subject.promises.gradients:
        yield from gradient_errors(subject, call, where)


@layer_check(
    "F9.ties",
    "A router of zeros sends every token to k experts, whichever, at the same shares, and to the "
    "same ones on every run.",
    families=("feedforward",),
    verdict="R",
)
def ties(subject: MixtureLayer) -> Measured:
    """Call several times with a router of zeros; the output tells which experts it is of."""
    call = subject.draw("F9")
    weights = subject.expert_weights()
    with torch.no_grad():
        weights["router.weight"].zero_()
    count, width = weights["router.weight"].shape
    if count > width:
        raise UnsupportedError(f"an output of {width} numbers does not tell which of {count} it is")
    given = {"x": call.tensors["x"], **weights}
    routed, y = subject.routing(given), subject(call).detach()
    ones = torch.ones_like(routed.gates[..., :1])
    single = [routed._replace(gates=ones, experts=(ones * e).long()) for e in range(count)]
    alone = torch.stack([_mixed(given, each) for each in single], -1)  # (B, L, D, E)
    shares = torch.linalg.lstsq(alone, y.double()[..., None]).solution[..., 0]  # (B, L, E)
    taken = routed._replace(experts=shares.topk(subject.top_k).indices)
    limit = probed(
        lambda given: {"out": _mixed(given, taken)},
        given,
        subject.dtype,
        gate=units.layer_gate(subject.dtype),
    )["out"]
    measured = [near(limit, y, "run 0")]
    for run in (1, 2):
        measured.append(near(limit, subject(call), f"run {run}"))
        routing = _recorded(subject, call)
        if routing is not None:
            _same_experts(routing, taken.experts)
    return worst(measured)


def _mixed(given: Mapping[str, Tensor], routed: oracle.Routed) -> Tensor:
    gate_up, down = (given[name] for name in EXPERTS[1:])
    return oracle.mixture(given["x"], routed, gate_up, down)
