"""Does anything leak in a swapped model? Asked of the whole model, by pairs of inputs.

The two inputs of a `Probe` differ only where some outputs may not look: in later tokens
(*causality*), in padding (*padding*), in another document of a packed row (*packing*), in another
sample (*batch*). Those outputs must be equal to the bit; where they are not, the change is
compared with what rounding noise at the sites does to them, bounded as
`attnkit.swaps.verification.outputs` bounds the change by a swap. A mixture of experts, for
instance, rounds a token differently in other company.

A change that nothing sees shows nothing: a second pair says where it must be seen, in the outputs
that may look, or in the same outputs once the mask is lifted. Where it is not, the probe is idle
and has passed nothing.

What the model does not keep by itself, a bidirectional one causality, is no fault of the swap:
the model without it is asked too, and the receipt says so. `attnkit.hosts.leak_probes` helps to
make probes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnkit.errors import HostError, UnsupportedError, VerificationError
from attnkit.swaps.receipts import LeakReceipt, OutputReceipt, SiteReceipt
from attnkit.swaps.verification.outputs import compare_outputs, noise_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from attnkit.hosts.protocol import Inputs, Mixer, Outputs, Pair, Probe


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
    known: dict[int, Outputs] = {}

    def swapped(inputs: Inputs) -> Outputs:
        # the two pairs of a probe often share their inputs
        if id(inputs) not in known:
            known[id(inputs)] = subject.swapped(inputs)
        return known[id(inputs)]

    told = LeakReceipt(name=probe.name, changed=probe.changed, outcome="equal", largest=0.0)
    try:
        pair = _ran(probe, probe.stays, swapped, subject)
    except UnsupportedError as error:
        return told.model_copy(update={"outcome": "refused", "largest": None, "why": str(error)})
    if not pair or not pair[0]:
        return None
    stayed = _largest(pair)
    if stayed:
        told = _judged(probe, subject, pair)
    if told.outcome == "own":
        return told
    try:
        seen = _ran(probe, probe.moves, swapped, subject)
    except UnsupportedError as error:
        # without their mask, inputs need not be any that the variant takes
        return told.model_copy(update={"outcome": "idle", "why": str(error)})
    # where it may be seen, a change is larger than where it may not
    shows = seen is not None and _largest(seen) > stayed
    return told if shows else told.model_copy(update={"outcome": "idle"})


def _ran(
    probe: Probe, pair: Pair, run: Callable[[Inputs], Outputs], subject: Subject
) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """Run a pair of inputs; None if the model as it was does not run on them either."""
    try:
        return pair.run(run)
    except (HostError, UnsupportedError):
        raise
    except Exception as error:
        if _fails(pair, subject):
            return None
        raise VerificationError(
            f"the swap was undone: with {probe.changed} the model runs before and not after: "
            f"{error!r}"
        ) from error


def _judged(
    probe: Probe, subject: Subject, pair: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> LeakReceipt:
    """Tell rounding from a leak, and a leak of the swap from one of the model."""
    own = probe.stays.run(subject.as_it_was)

    def noisy(generator: torch.Generator) -> Outputs:
        return probe.stays.kept(subject.run(probe.stays.one, subject.noisy(generator)))

    noise = noise_of(noisy, own[0])
    outputs = _moved(pair, noise, subject.sites)
    leaking = {out.name: out for out in outputs if out.is_beyond}
    kept = {out.name for out in _moved(own, noise, subject.sites) if not out.is_beyond}
    worst = _worst([leaking[name] for name in leaking if name in kept] or outputs)
    if worst.name in leaking and worst.name in kept:
        raise VerificationError(
            f"the swap was undone: {probe.name} leaks: with {probe.changed}, output "
            f"{worst.name!r} changed where it may not look by {worst.moved:.3g} noise units "
            f"(largest change {worst.largest:.3g}), at most {worst.allowed:.3g} is rounding; the "
            "model itself keeps this apart"
        )
    return LeakReceipt(
        name=probe.name,
        changed=probe.changed,
        outcome="own" if leaking else "rounding",
        largest=worst.largest,
        moved=worst.moved,
        allowed=worst.allowed,
    )


def _fails(pair: Pair, subject: Subject) -> bool:
    """Say whether the model as it was fails too."""
    try:
        pair.run(subject.as_it_was)
    except Exception:
        return True
    return False


def _largest(pair: tuple[Outputs, Outputs]) -> float:
    """Return the largest change; inf where one side alone is not finite."""
    told = compare_outputs(*pair, [], [])
    return max((out.largest for out in told), default=0.0)


def _moved(
    pair: tuple[Outputs, Outputs], noise: Sequence[Outputs], sites: Sequence[SiteReceipt]
) -> tuple[OutputReceipt, ...]:
    """Return how far each output changed, and how far it may."""
    # both runs are of one function, so both are off by what it is off by
    twice = [site.model_copy(update={"error_before": site.error_after}) for site in sites]
    return compare_outputs(*pair, noise, twice)


def _worst(outputs: Sequence[OutputReceipt]) -> OutputReceipt:
    """Return the output that changed most for what it may."""
    return max(outputs, key=lambda out: (out.moved or 0.0) / (out.allowed or 1.0))
