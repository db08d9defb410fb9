"""Does anything leak in a swapped model? Asked of the whole model, by pairs of inputs.

The two inputs of a `Probe` differ only where some outputs may not look: in later tokens
(*causality*), in padding (*padding*), in another document of a packed row (*packing*). Those
outputs must be equal to the bit; where they are not, the change is compared with what rounding
noise at the sites does to them, bounded as `attnkit.verification` bounds the change by a swap. A
mixture of experts, for instance, rounds a token differently in other company.

What the model does not keep by itself, a bidirectional one causality, is no fault of the swap:
the model without it is asked too, and the receipt says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from attnkit.errors import UnsupportedError, VerificationError
from attnkit.receipts import LeakReceipt, OutputReceipt
from attnkit.verification import NOISE_RUNS, compare_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from attnkit.receipts import LeakName, SiteReceipt
    from attnkit.sites import Mixer, Site

    Inputs = Mapping[str, object]
    Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Probe:
    """Two inputs that differ only where some outputs may not look.

    Attributes:
        name: What is asked.
        changed: What differs, in words.
        one: Keyword arguments of the model's forward.
        other: The same with the change.
        rows: Which rows of the outputs must stay: bool, of the leading sizes of the outputs that
            it speaks of; None for all rows of all outputs.
    """

    name: LeakName
    changed: str
    one: Inputs
    other: Inputs
    rows: Tensor | None = None

    def kept(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the parts of the outputs that must stay."""
        if self.rows is None:
            return dict(outputs)
        rows = self.rows
        return {
            name: out[rows.to(out.device)]
            for name, out in outputs.items()
            if out.shape[: rows.dim()] == rows.shape
        }


@runtime_checkable
class Prober(Protocol):
    """A host that can make probes of a model."""

    def probes(self, model: nn.Module, sites: Sequence[Site], sample: Inputs) -> Sequence[Probe]:
        """Vary a sample where a causal, padded or packed model may not look."""
        ...


@dataclass(frozen=True)
class Subject:
    """A model that was swapped, and as it was.

    Attributes:
        run: Runs the model with mixers at its sites, or with none as it was.
        sample: What it has run on already.
        before: Its outputs then, as it was.
        after: Its outputs then, with ``mixers``.
        mixers: The variants.
        noisy: Makes mixers that answer as the model would, with rounding noise.
        sites: What was measured at the sites.
    """

    run: Callable[[Inputs, Sequence[Mixer]], Outputs]
    sample: Inputs
    before: Outputs
    after: Outputs
    mixers: Sequence[Mixer]
    noisy: Callable[[torch.Generator], Sequence[Mixer]]
    sites: Sequence[SiteReceipt]

    def as_it_was(self, inputs: Inputs) -> Outputs:
        """Run the model without the variants."""
        return self.before if inputs is self.sample else self.run(inputs, [])

    def swapped(self, inputs: Inputs) -> Outputs:
        """Run the model with the variants."""
        return self.after if inputs is self.sample else self.run(inputs, self.mixers)


def check_leaks(probes: Sequence[Probe], subject: Subject) -> tuple[LeakReceipt, ...]:
    """Ask every probe of a swapped model.

    Raises:
        VerificationError: What the model keeps apart leaks after the swap, or it no longer runs.
    """
    receipts = (_check(probe, subject) for probe in probes)
    return tuple(receipt for receipt in receipts if receipt is not None)


def _check(probe: Probe, subject: Subject) -> LeakReceipt | None:
    """Ask one probe; None if it is no input of this model."""
    try:
        pair = _pair(probe, subject.swapped)
    except UnsupportedError as error:
        return LeakReceipt(
            name=probe.name, changed=probe.changed, outcome="refused", why=str(error)
        )
    except Exception as error:
        if _fails(probe, subject):
            return None
        raise VerificationError(
            f"the swap was undone: with {probe.changed} the model runs before and not after: "
            f"{error!r}"
        ) from error
    if not pair[0]:
        return None
    if all(torch.equal(out, pair[1][name]) for name, out in pair[0].items()):
        return LeakReceipt(name=probe.name, changed=probe.changed, outcome="equal", largest=0.0)
    return _judged(probe, subject, pair)


def _judged(probe: Probe, subject: Subject, pair: tuple[Outputs, Outputs]) -> LeakReceipt:
    """Tell rounding from a leak, and a leak of the swap from one of the model."""
    own = _pair(probe, subject.as_it_was)
    noise = []
    for seed in range(NOISE_RUNS):
        mixers = subject.noisy(torch.Generator().manual_seed(seed))
        noisy = probe.kept(subject.run(probe.one, mixers))
        noise.append({name: noisy[name].double() - own[0][name] for name in own[0]})
    worst = _worst(pair, noise, subject.sites)
    told = LeakReceipt(
        name=probe.name,
        changed=probe.changed,
        outcome="rounding",
        largest=worst.largest,
        moved=worst.moved,
        allowed=worst.allowed,
    )
    if not _leaks(worst):
        return told
    if _leaks(_worst(own, noise, subject.sites)):
        return told.model_copy(update={"outcome": "own"})
    raise VerificationError(
        f"the swap was undone: {probe.name} leaks: with {probe.changed}, output {worst.name!r} "
        f"changed where it may not look by {worst.moved:.3g} noise units (largest change "
        f"{worst.largest:.3g}), at most {worst.allowed:.3g} is rounding; the model itself keeps "
        "this apart"
    )


def _pair(
    probe: Probe, run: Callable[[Inputs], Outputs]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return probe.kept(run(probe.one)), probe.kept(run(probe.other))


def _fails(probe: Probe, subject: Subject) -> bool:
    """Say whether the model as it was fails too."""
    try:
        _pair(probe, subject.as_it_was)
    except Exception:
        return True
    return False


def _worst(
    pair: tuple[Outputs, Outputs], noise: Sequence[Outputs], sites: Sequence[SiteReceipt]
) -> OutputReceipt:
    """Return the output that changed most for what it may."""
    # both runs are of one function, so both are off by what it is off by
    twice = [site.model_copy(update={"error_before": site.error_after}) for site in sites]
    one, other = pair
    noisy: list[Outputs] = []
    for each in noise:
        noisy.append({name: out.double() + each[name] for name, out in one.items()})
    told = compare_outputs(one, other, noisy, twice)
    return max(told, key=lambda out: (out.moved or 0.0) / (out.allowed or 1.0))


def _leaks(out: OutputReceipt) -> bool:
    return out.moved is not None and out.allowed is not None and not out.moved <= out.allowed
