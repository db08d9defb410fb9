"""How large an error may be: units that know the conditioning, so that no tolerance is chosen.

`analytic` is for exact softmax attention, in the unit of `attnkit.precision`. Its gate is 2;
measured, correct code stays under 0.82 in every dtype.

`attnkit.precision.noise` is for any function that can be evaluated in float64; of gradients,
`whole_noise`. Noise of the inputs shows no cancellation that inputs cannot undo: the gradient of a
softmax, P (dP - sum P dP), is near 0 where one key has all the weight, however they move, and is
computed off by u |dP|. So where such may be, every operation of the definition, forward and
backward, is off by u itself: `Rounding`.

float64 is judged by the same formulas with u = 2**-53 throughout: a float64 result has errors of
the oracle's own size.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from attnkit.precision import LOW, floor, forward_gate, noise, of_attention, relative, roundoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    from attnkit_contracts.definitions.oracle import Softmax

ANALYTIC_GATE = 2.0
GRADIENT_PROBES = 6
DRAWN, STEP = 1 << 19, 12289
"""How many errors are drawn, and how far apart those of one operation and the next begin."""

MOVES = {
    "abs", "amax", "amin", "cat", "clamp", "clamp_max", "clamp_min", "clone",
    "constant_pad_nd", "copy_", "detach_", "embedding", "fill_", "flip", "gather", "index",
    "index_select", "masked_fill", "masked_fill_", "masked_scatter", "masked_select", "max",
    "maximum", "min", "minimum", "msort", "neg", "relu", "repeat", "roll", "scatter",
    "scatter_", "sgn", "sign", "sort", "stack", "take", "threshold", "topk", "tril",
    "tril_", "triu", "triu_", "where", "zero_", "zeros_like", "_to_copy", "_unsafe_index",
}  # fmt: skip
"""Operations that compute nothing: each number that they give is one that they were given.

Were the largest number off, it would be none of those that it is the largest of.
"""


class Rounding(TorchDispatchMode):
    """Multiplies whatever an operation computes in float64 by 1 + u xi, xi ~ U(-1, 1).

    Even what is exact, a probability of 1 say: another way to compute the same rounds elsewhere.

    Source: Parker 1997, Monte Carlo Arithmetic, UCLA CSD-970002.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.factors = _errors(dtype)
        self.start = 0

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation; see `torch.utils._python_dispatch`."""
        made = func(*args, **(kwargs or {}))
        if func.is_view or func._overloadpacket.__name__ in MOVES:
            return made
        if func._schema.is_mutable:
            return tree_map_only(torch.Tensor, lambda each: each.copy_(self._off(each)), made)
        return tree_map_only(torch.Tensor, self._off, made)

    def _off(self, exact: Tensor) -> Tensor:
        if exact.dtype != torch.float64:
            return exact
        # drawn only once, but other ones for every operation
        count = exact.numel()
        self.start = (self.start + STEP) % (DRAWN - min(count, DRAWN) + 1)
        factors = self.factors[self.start : self.start + count]
        if count > DRAWN:
            factors = self.factors.repeat(-(-count // DRAWN))[:count]
        return exact * factors.to(exact.device).reshape(exact.shape)


@functools.cache
def _errors(dtype: torch.dtype) -> Tensor:
    xi = torch.rand(
        DRAWN, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu"
    )
    return 1 + roundoff(dtype) * (2 * xi - 1)


def layer_gate(dtype: torch.dtype) -> float:
    """Return the largest probe-unit error of a correct layer, a mixture of experts say.

    It rounds between its products, which noise of the inputs does not show: measured over 24
    seeds, correct code reaches 3.6 in bfloat16 and 2.9 in float16.
    """
    return 6.0 if dtype in LOW else forward_gate(dtype)


def backward_gate(dtype: torch.dtype) -> float:
    """Return the largest probe-unit error of a correct backward."""
    return 16.0 if dtype in LOW else 2048.0


def analytic(exact: Softmax, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the unit of each output, (B, H, L, Ev): (P|V|)(2u + 2**-24 (8 + 4 sigma)) + floor."""
    values = value.detach().double().abs()
    values = values.repeat_interleave(exact.out.shape[1] // values.shape[1], 1)
    spread = torch.einsum("bhls,bhsv->bhlv", exact.weights, values)
    return of_attention(spread, exact.size, values, dtype)


def analytic_gradients(
    exact: Softmax,
    tensors: Mapping[str, Tensor],
    grad_out: Tensor,
    scale: float,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return the unit of each gradient, shaped as the inputs.

    adS = P (|g| |V|^T + |g| P|V|) bounds the terms that the gradient of the logits is made of;
    times `relative` it bounds their error, and the chain rule carries it to the inputs.
    """
    query, key, value = (
        tensors[name].detach().double().abs() for name in ("query", "key", "value")
    )
    groups, shared = key.shape[1], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    g = grad_out.double().abs()
    error = relative(exact.size, dtype)[..., None]  # (B, H, L, 1)
    spread = torch.einsum("bhls,bhsv->bhlv", exact.weights, value)
    taken_back = (g * spread).sum(-1, keepdim=True)  # (B, H, L, 1)
    terms = error * exact.weights * (torch.einsum("bhlv,bhsv->bhls", g, value) + taken_back)
    in_key = abs(scale) * torch.einsum("bhls,bhle->bhse", terms, query)
    in_value = torch.einsum("bhls,bhlv->bhsv", error * exact.weights, g)
    unit = {
        "query": abs(scale) * torch.einsum("bhls,bhse->bhle", terms, key),
        "key": in_key.reshape(len(key), groups, shared, *key.shape[2:]).sum(2),
        "value": in_value.reshape(len(value), groups, shared, *value.shape[2:]).sum(2),
    }
    if "bias" in tensors:
        unit["bias"] = terms.sum_to_size(tensors["bias"].shape)
    if "sinks" in tensors:
        unit["sinks"] = (error[..., 0] * exact.sink * taken_back[..., 0]).sum((0, 2))
    # subnormal results of half precision are rounded to a grid, not relatively
    return {name: each + floor(g, dtype) for name, each in unit.items()}


def error(got: Tensor, exact: Tensor, unit: Tensor) -> tuple[float, tuple[int, ...]]:
    """Return the largest error in units, and where it is; infinite where anything is not finite."""
    if not got.numel():
        return 0.0, ()
    off = (got.detach().double() - exact.detach().double()).abs()
    ratio = torch.where(off == 0, 0.0, off / unit)
    ratio = torch.where(ratio.isfinite(), ratio, float("inf"))
    at = int(ratio.argmax())
    value, place = float(ratio.flatten()[at]), []
    for size in reversed(ratio.shape):
        at, index = divmod(at, size)
        place.append(index)
    return value, tuple(reversed(place))


def whole_noise(
    function: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    inputs: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    probes: int = GRADIENT_PROBES,
    together: bool = False,
    rounds: bool = False,
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, tuple[Tensor, Tensor]]]:
    """Return each output and each gradient in float64, and its probe unit.

    That of a gradient is floored by u times its RMS per head: without the floor, gradients that
    are structurally zero would be divided by nothing.

    Args:
        function: The definition, in float64: named tensors in, named outputs out.
        inputs: Its tensors.
        grads: The gradients of the outputs, by name; empty for outputs alone.
        dtype: Whose roundoff u is.
        probes: As of `noise`.
        together: As of `noise`.
        rounds: Whether each operation of the definition is off as well; see `Rounding`.
    """

    def vjp(given: dict[str, Tensor]) -> dict[str, Tensor]:
        if not grads:
            return function(given)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
        with torch.enable_grad():
            outs = function(leaves)
        gradients = torch.autograd.grad(
            [outs[name] for name in grads],
            list(leaves.values()),
            [_repeated(grad.double(), outs[name]) for name, grad in grads.items()],
            materialize_grads=True,
        )
        found = {name: out.detach() for name, out in outs.items()}
        return found | {f"d {name}": each for name, each in zip(leaves, gradients, strict=True)}

    within = Rounding(dtype) if rounds else None
    found = noise(vjp, inputs, dtype, probes=probes, together=together, within=within)
    gradients = {
        name: (exact, unit + roundoff(dtype) * _rms_per_head(exact))
        for name in (inputs if grads else ())
        for exact, unit in [found.pop(f"d {name}")]
    }
    return found, gradients


def _repeated(grad: Tensor, out: Tensor) -> Tensor:
    """Return the gradient once for every set of samples that an output holds."""
    return grad.repeat(len(out) // max(1, len(grad)), *[1] * (out.dim() - 1))


def _rms_per_head(tensor: Tensor) -> Tensor:
    axes = tuple(range(2, tensor.dim())) or tuple(range(tensor.dim()))
    return tensor.square().mean(axes, keepdim=True).sqrt()
