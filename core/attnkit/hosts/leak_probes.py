"""What hosts make probes of: other content at some places of a sample, and the rows it concerns.

`attnkit.swaps.verification.leaks` has what a probe is, and asks it. `neighbours` is the probe of
any model that takes more than one sample; the others need to know where tokens and masks are in a
host's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from attnkit.hosts.outputs import numbers
from attnkit.hosts.protocol import Inputs, Pair, Probe, Rows


def neighbours(sample: Inputs, *, axis: int = 0, flat: Tensor | None = None) -> tuple[Probe, ...]:
    """Ask whether a sample changes what comes out for the others in its batch.

    The first sample changes, then the last: a leak may go one way only. None of it if there is
    only one sample.

    Args:
        sample: Keyword arguments of a model's forward.
        axis: Where the batch is in its tensors.
        flat: Bool (B, L), the rows of outputs (B, L, D) that the host keeps, as (N, D).
    """
    names = [name for name, each in sample.items() if _has_content(name, each, axis)]
    count = _tensor(sample[names[0]]).shape[axis] if names else 0
    names = [name for name in names if _tensor(sample[name]).shape[axis] == count]
    if count < 2:
        return ()
    probes = []
    for which, told in ((0, "another first sample"), (count - 1, "another last sample")):
        same = torch.arange(count) != which
        # in the leading sizes of each tensor, up to its batch axis
        places = {n: same.expand(_tensor(sample[n]).shape[: axis + 1]) for n in names}
        other = exchanged(sample, {name: ~each for name, each in places.items()})
        shapes = [*places.values(), same]
        if flat is not None:
            shapes.append(same[:, None].expand(flat.shape)[flat.cpu()])
        stays = Pair(sample, other, by_shape(*shapes))
        moves = Pair(sample, other, by_shape(*(~each for each in shapes)))
        probes.append(Probe("batch", told, stays, moves))
    return tuple(probes)


def exchanged(
    sample: Inputs, places: Mapping[str, Tensor], content: Callable[[Tensor], Tensor] | None = None
) -> Inputs:
    """Return a sample with other content at some places.

    Args:
        sample: Keyword arguments of a model's forward.
        places: By name of a tensor: bool, of its leading sizes, where it is exchanged.
        content: Returns what stands there instead; None for numbers, or tokens of the same range.
    """
    made = dict(sample)
    # a model may be told by one tensor that query, key and value are one
    known: dict[int, Tensor] = {}
    for name, where in places.items():
        given = _tensor(sample[name])
        if id(given) not in known:
            ends = (1,) * (given.dim() - where.dim())
            mask = where.to(given.device).reshape(*where.shape, *ends)
            known[id(given)] = torch.where(mask, (content or others)(given), given)
        made[name] = known[id(given)]
    return made


def others(given: Tensor) -> Tensor:
    """Return other numbers, or other tokens of the same range, in the shape of a tensor."""
    if given.is_floating_point():
        return numbers(*given.shape, like=given, seed=1)
    lowest = given.amin()
    return (given - lowest + 1) % (given.amax() - lowest + 1) + lowest


def by_shape(*rows: Tensor) -> Rows:
    """Compare every output whose leading sizes are those of a mask, at the mask's rows."""

    def find(name: str, out: Tensor) -> Tensor | None:
        return next((each for each in rows if out.shape[: each.dim()] == each.shape), None)

    return find


def everything(name: str, out: Tensor) -> Tensor | None:
    """Compare all rows of all outputs."""
    return torch.ones(out.shape[:1], dtype=torch.bool)


def sees(mask: Tensor, *, hides: bool) -> Tensor:
    """Return where a mask lets a query look, True for may attend.

    Args:
        mask: Bool; or floating, added to the logits.
        hides: Whether a bool mask's True means hidden.
    """
    if mask.dtype == torch.bool:
        return ~mask if hides else mask
    return mask > torch.finfo(mask.dtype).min / 2


def is_causal(seen: Tensor) -> bool:
    """Say whether no query of (..., L, L) sees a later key, and some see an earlier one."""
    length = seen.shape[-1]
    if seen.dim() < 2 or seen.shape[-2] != length or length < 2:
        return False
    later = torch.ones(length, length, dtype=torch.bool, device=seen.device).triu(1)
    return not bool((seen & later).any()) and bool((seen & later.mT).any())


def second_half(length: int) -> tuple[int, Tensor]:
    """Return where the second half of some tokens begins, and (L,), True in it."""
    cut = length - length // 2
    return cut, torch.arange(length) >= cut


def _has_content(name: str, given: object, axis: int) -> bool:
    """Say whether an input holds tokens or numbers, sample by sample; not a mask or positions."""
    return (
        isinstance(given, torch.Tensor)
        and given.dim() > axis
        and given.numel() > 0
        and given.dtype != torch.bool
        and not given.is_complex()
        and not any(word in name for word in ("mask", "position"))
    )


def _tensor(given: object) -> Tensor:
    assert isinstance(given, torch.Tensor)
    return given
