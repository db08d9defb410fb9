"""Farther than the sample: a site's variant on calls that the model will make, and had not made.

A sample is one prefill and perhaps one step of it; a kernel that is right there may be wrong beyond
its first tile, for a few tokens on a cache, or in its gradients. So what was chosen at a site is
asked, through the door that the site goes through, for further calls of the same heads, widths,
dtype, masks and options, with numbers of their own, and judged by the definition:

    outputs     every element, in the units and by the bound of `attnkit.swaps.verification.trial`
    gradients   |g - g*| <= r (8 |g*| + |g*| of the largest), root mean squares over a tensor,
                r = 2u + 16 s, u and s as in `precision`; states likewise

A call that is refused by name is missing in the receipt and is no error. Once is enough for what
passes: the same question is not asked again of the same implementations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from attnkit.choice.decision import implementations_of
from attnkit.errors import ImplementationError, UnsupportedError
from attnkit.interface import Variant
from attnkit.precision import accumulation, roundoff, smallest
from attnkit.registry.registry import default

BATCH = 3
"""Samples of a call: more than two, of which one may be padded otherwise than the others."""

LONG = 300
"""Tokens of the longest call: beyond tiles of 16 to 256."""

SHORT = 150
"""Tokens of a call with gradients: beyond tiles of 16 to 128."""

SLACK = 8.0
"""How many rates of rounding a gradient or a state may be off by."""


class Further(NamedTuple):
    """One call beyond the sample.

    Attributes:
        what: In words.
        error: In units of what is allowed; at most 1 is rounding, inf where it fails.
        why: It is refused, or fails; empty if it does neither.
    """

    what: str
    error: float = 0.0
    why: str = ""


class Case(NamedTuple):
    """A call to be made.

    Attributes:
        what: In words.
        judge: Makes it, and returns its error in units of what is allowed.
    """

    what: str
    judge: Callable[[], float]


def reached(
    variant: Variant, question: tuple[object, ...], cases: Callable[[], Iterable[Case]]
) -> tuple[Further, ...]:
    """Return what came of some cases, which are asked once per question."""
    remembered, able = default().remembered, implementations_of(variant)
    # by identity: the entry keeps what is asked alive, so the numbers stay its own
    key = (id(variant), *map(id, able), *question)
    found: tuple[object, tuple[Further, ...]] | None = remembered.reached.get(key)
    if found is None:
        with torch.inference_mode(mode=False), torch.no_grad():
            found = (variant, able), tuple(map(_asked, cases()))
        # what fails may fail for the moment, memory being short
        if all(each.error <= 1 for each in found[1]):
            remembered.keep(remembered.reached, key, found)
    return found[1]


def _asked(case: Case) -> Further:
    try:
        return Further(case.what, case.judge())
    except UnsupportedError as error:
        return Further(case.what, why=str(error))
    # whatever a plugin raises is a fault of it, and is told
    except Exception as error:
        return Further(case.what, math.inf, f"{type(error).__name__}: {error}")


def of_gradients(
    run: Callable[[Mapping[str, Tensor]], Tensor],
    defined: Callable[[Mapping[str, Tensor]], Tensor],
    tensors: Mapping[str, Tensor],
) -> float:
    """Return the largest error of a gradient, in units of what is allowed.

    Args:
        run: What is judged.
        defined: The definition, in float64.
        tensors: The floating inputs of both, by name.
    """
    got = _gradients(run, tensors)
    wanted = _gradients(defined, {name: each.double() for name, each in tensors.items()})
    dtype = next(iter(tensors.values())).dtype
    return max(of_rounding(got[name], wanted[name], dtype, *wanted.values()) for name in wanted)


def of_rounding(got: Tensor, wanted: Tensor, dtype: torch.dtype, *beside: Tensor) -> float:
    """Return the error of a whole tensor, in units of what is allowed.

    Args:
        got: What is judged.
        wanted: It in float64.
        dtype: Of the call.
        beside: What else came out, in float64: a tensor that is 0 but for cancellation is off by
            their rounding.
    """
    largest = max(_size(each) for each in (wanted, *beside))
    allowed = 2 * roundoff(dtype) + 16 * accumulation(dtype)
    error = _size(got.double() - wanted)
    if error == 0.0:
        return 0.0
    # NaN is beyond
    share = error / (allowed * (SLACK * _size(wanted) + largest) + smallest(dtype))
    return math.inf if math.isnan(share) else share


def _size(tensor: Tensor) -> float:
    """Return the root mean square."""
    return float(tensor.square().mean().sqrt())


@contextmanager
def untouched(tensors: Mapping[str, Tensor], whose: str) -> Iterator[None]:
    """Raise `ImplementationError` if what is done within writes to one of these tensors."""
    before = {name: each.clone() for name, each in tensors.items()}
    yield
    for name, each in tensors.items():
        if not torch.equal(each, before[name]):
            raise ImplementationError(f"{whose} writes to its input {name}")


def _gradients(
    function: Callable[[Mapping[str, Tensor]], Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    with torch.enable_grad():
        leaves = {name: each.detach().clone().requires_grad_() for name, each in tensors.items()}
        out = function(leaves)
        weigh = drawn(out.shape, out, seed=1)
        inputs = list(leaves.values())
        found = torch.autograd.grad(out, inputs, weigh, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def drawn(shape: Sequence[int], like: Tensor, seed: int = 0) -> Tensor:
    """Return normal numbers, the same for every dtype and device up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float32).to(like)
