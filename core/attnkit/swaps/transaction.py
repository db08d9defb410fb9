"""The transaction behind `attnkit.swap`: try, attach, verify; or leave the model as it was.

    before    the model runs as it is
    trial     every site answers with the model's own function and tries the variant beside it
    noise     every site answers with its own function plus rounding noise (exact swaps)
    after     the variants stand at their sites; all must have run
    leaks     so they do, and inputs change where some outputs may not look

Nothing stays attached unless all five pass: what was attached is undone in reverse order,
whatever is raised. `attnkit.swaps.verification.outputs` has the measurements and their bounds.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from attnkit.errors import (
    ArgumentError,
    HostError,
    SwapError,
    SwapRefusedError,
    UnsupportedError,
    VerificationError,
)
from attnkit.hosts.answers import attached, named, outputs_of, probes_of, sample_of, sites_of
from attnkit.hosts.leak_probes import neighbours
from attnkit.hosts.mounts import undo_all
from attnkit.hosts.protocol import Attachment, Host, Mixer, Prober
from attnkit.hosts.unknown_layers import UnknownLayers
from attnkit.precision import FLOAT32_INSIDE
from attnkit.registry.registry import default
from attnkit.swaps import weights as added
from attnkit.swaps.decisions import refusal
from attnkit.swaps.families import Assignment, Standing, swap_family
from attnkit.swaps.plan import Plan, spelled
from attnkit.swaps.receipts import LeakReceipt, OutputReceipt, Receipt, SiteReceipt, receipt_path
from attnkit.swaps.verification.isolation import Note, cuda_devices, fresh, undisturbed
from attnkit.swaps.verification.leaks import Subject, check_leaks
from attnkit.swaps.verification.outputs import compare_outputs, noise_of
from attnkit.swaps.verification.trial import SITE_BOUND, Counting, Trial
from attnkit.text import described
from attnkit.versions import version_of

if TYPE_CHECKING:
    from pathlib import Path

    from attnkit.promises import Relation
    from attnkit.swaps.verification.reach import Further


_NOTHING_COMPARED = (
    "the model returned no tensor of floats that its host knows to find, so that its outputs were "
    "not compared; the sites were"
)


class Swap:
    """A verified swap that can be undone; as a context manager, undone at the end.

    Attributes:
        receipt: What was swapped, what ran and what was measured.
        active: Whether the variants still stand in the model.
        added: The modules with weights of their own that it put there.
    """

    def __init__(
        self,
        receipt: Receipt,
        attachments: Sequence[Attachment],
        brought: Sequence[added.Added] = (),
    ) -> None:
        self.receipt = receipt
        self.active = True
        self.added = tuple(brought)
        self._attachments = tuple(attachments)

    def restore(self) -> None:
        """Put back the original objects, by identity; nothing happens the second time.

        Raises:
            SwapError: A later swap stands on top of this one; restore that first, nothing is
                changed. Or some sites could not be undone, and all others were.
        """
        if not self.active:
            return
        blocked = [why for each in self._attachments if (why := each.blocked())]
        if blocked:
            raise SwapError("restore is refused, nothing was changed:\n  " + "\n  ".join(blocked))
        self.active = False
        undo_all(self._attachments)

    def save(self, where: str | Path) -> Path:
        """Write the receipt beside a checkpoint, for `attnkit.reapply`; return its path.

        Weights that the swap added go into a file beside it, with those of the layers whose place
        they took, see `attnkit.swaps.weights`.

        Args:
            where: The folder or the file of the checkpoint, see `receipts.receipt_path`.
        """
        path = receipt_path(where)
        if self.added:
            added.save(self.added, added.weights_path(path))
        self.receipt.save(path)
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        """Show the receipt."""
        return str(self.receipt) + ("" if self.active else "\n\nrestored")


def carry_out(
    model: nn.Module,
    plan: Plan,
    assignments: Sequence[Assignment],
    hosts: Mapping[str, Host],
    sample: Mapping[str, object] | None,
    accept: Relation,
    remarks: Sequence[str] = (),
    fill: Callable[[Sequence[added.Added]], None] | None = None,
) -> Swap:
    """Swap and verify, or raise and leave the model as it was; see `api.swap_filled`."""
    transaction = _Transaction(model, assignments, hosts, sample)
    before = transaction.before()
    transaction.build()
    brought = added.added_by(model, assignments, transaction.mixers)
    if fill is not None:
        fill(brought)
        paths = {each.path for each in brought}
        assignments = [replace(a, trained=a.site.path in paths) for a in assignments]
        transaction.assignments = assignments
    transaction.rehearse()
    quiet = transaction.trial()
    exact = all(assignment.relation == "exact" for assignment in assignments)
    noise = transaction.noise(before, quiet) if exact else []
    sites = [trial.receipt() for trial in transaction.trials]
    after = transaction.after()
    outputs, own = (
        compare_outputs(before, each, noise, transaction.measured()) for each in (after, quiet)
    )
    _check_outputs(outputs, sites, own)
    leaks = transaction.leaks(before, after)
    remarks = (*remarks, *transaction.unknown.remarks())
    if not outputs:
        remarks = (*remarks, _NOTHING_COMPARED)
    receipt = Receipt(
        model=type(model).__name__,
        plan=spelled(plan),
        accept=accept,
        sample={name: described(value) for name, value in transaction.sample.items()},
        generated=transaction.generated,
        sites=tuple(sites),
        outputs=outputs,
        leaks=leaks,
        versions=_versions(transaction.used),
        owners=_owners(assignments),
        remarks=tuple(remarks),
        added=tuple(each.path for each in brought),
    )
    return Swap(receipt, transaction.attach(transaction.mixers), brought)


class _Transaction:
    """The steps of one swap, in their order; each leaves nothing behind if it raises.

    Attributes:
        used: The hosts of the sites, by name.
        host: Runs the model.
        sample: What it is run on.
        unknown: The layers that attend where no host sees a site, once it has run.
        mixers: What will stand at the sites, once it is built.
        trials: What was measured of each, once it is tried.
        units: How many units of rounding the noise at a site is drawn from.
    """

    def __init__(
        self,
        model: nn.Module,
        assignments: Sequence[Assignment],
        hosts: Mapping[str, Host],
        sample: Mapping[str, object] | None,
    ) -> None:
        self.model = model
        self.assignments = assignments
        self.used = {a.site.host: hosts[a.site.host] for a in assignments}
        self.host = self.used[assignments[0].site.host]
        self.generated = sample is None
        self.sample = self._settled(sample, hosts)
        known = [site for host in hosts.values() for site in sites_of(host, model)]
        self.unknown = UnknownLayers(model, [s.path for s in known if s.kind == "attention"])
        self.mixers: list[Standing] = []
        self.trials: list[Trial] = []
        self.units = 1.0

    def _settled(
        self, sample: Mapping[str, object] | None, hosts: Mapping[str, Host]
    ) -> Mapping[str, object]:
        """Settle which host runs the model, the first that knows its inputs; return the sample.

        A model may be one host's and hold another's layers.
        """
        sites = [assignment.site for assignment in self.assignments]
        rest = (host for name, host in hosts.items() if name not in self.used)
        if sample is not None and not isinstance(sample, Mapping):
            raise ArgumentError(
                "sample must be keyword arguments of the model's forward, as in "
                f"{{'input_ids': ...}}, got {type(sample).__name__}"
            )
        able = [*self.used.values(), *(host for host in rest if sites_of(host, self.model))]
        if sample is not None and len(able) == 1:
            return sample
        refusals = []
        for host in able:
            try:
                made = sample_of(host, self.model, sites)
            except HostError:
                raise
            except SwapError as error:
                refusals.append(str(error))
            else:
                self.host = host
                return made if sample is None else sample
        if sample is None:
            raise SwapError("\n".join(dict.fromkeys(refusals)))
        return sample

    def before(self) -> Mapping[str, Tensor]:
        """Run the model as it is.

        Raises:
            SwapError: It does not run on the sample.
        """
        try:
            with self.unknown:
                return self.run(self.sample, [])
        except HostError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {described(value)}" for name, value in self.sample.items())
            model = type(self.model).__name__
            if self.generated:
                raise SwapError(
                    f"{model} does not run on a generated sample ({shapes}): {error}; give the "
                    "swap sample={...}, keyword arguments of the model's forward"
                ) from error
            raise SwapError(
                f"sample: {model} does not run on it ({shapes}): {type(error).__name__}: {error}; "
                "give keyword arguments of the model's forward that it runs on as it is, or leave "
                "sample out to have one made"
            ) from error

    def run(self, sample: Mapping[str, object], mixers: Sequence[Mixer]) -> Mapping[str, Tensor]:
        """Run the model with mixers at the sites, and take them away again."""
        attachments = self.attach(mixers)
        try:
            with undisturbed(self.model):
                return outputs_of(self.host, self.model, fresh(sample))
        finally:
            undo_all(attachments)

    def attach(self, mixers: Sequence[Mixer]) -> list[Attachment]:
        """Put a mixer at each site, or at none."""
        attachments: list[Attachment] = []
        try:
            # no mixers, no changes
            for assignment, mixer in zip(self.assignments, mixers, strict=False):
                site, label = assignment.site, assignment.variant.name
                host = self.used[site.host]
                attachments.append(attached(host, self.model, site, mixer, label))
        except BaseException:
            undo_all(attachments)
            raise
        return attachments

    def build(self) -> None:
        """Build what will stand at each site; torch's random state is put back.

        Raises:
            SwapRefusedError: Some cannot be built there; all sites are listed.
        """
        refused = []
        # parameters made in inference mode could not be trained outside of it
        with torch.inference_mode(mode=False), torch.random.fork_rng(cuda_devices(self.model)):
            for each in self.assignments:
                try:
                    self.mixers.append(_standing(self.model, self.used[each.site.host], each))
                except UnsupportedError as error:
                    refused.append((each.site.path, (str(error),)))
        if refused:
            raise SwapRefusedError(refusal(refused))

    def rehearse(self) -> None:
        """Put every mixer in its place and take it out, as it will stand and as it is tried.

        Raises:
            HostError: The model is not what it was after that; it is put back.
        """
        noted = Note(self.model)
        hosts, mixers = ", ".join(map(named, self.used.values())), self.mixers
        tried = [mixer.instead(mixer) for mixer in mixers]
        rounds: list[Sequence[Mixer]] = [mixers]
        if any(one is not other for one, other in zip(tried, mixers, strict=True)):
            rounds.append(tried)
        try:
            for each in rounds:
                attachments = self.attach(each)
                blocked = [why for one in attachments if (why := one.blocked()) is not None]
                undo_all(attachments)
                if blocked:
                    raise HostError(
                        f"{hosts}: blocked returned {blocked[0]!r} right after attach; it must "
                        "return None while nothing stands on top"
                    )
        finally:
            changed = noted.put_back()
        if changed:
            raise HostError(
                f"{hosts}: undo left {', '.join(changed)} changed; it must put back, by identity, "
                "what was there before attach. The model was put back without it"
            )

    def trial(self) -> Mapping[str, Tensor]:
        """Try the variants beside the model's own functions; return the outputs of those.

        Raises:
            SwapRefusedError: Some cannot take what arrives; all sites are listed.
            VerificationError: Some compute something else, here or beyond the sample.
        """
        self.trials = trials = list(map(Trial, self.assignments, self.mixers))
        tried = [mixer.instead(trial) for mixer, trial in zip(self.mixers, trials, strict=True)]
        outputs = self.run(self.sample, tried)
        refused = [(t.assignment.site.path, tuple(dict.fromkeys(t.refusals))) for t in trials]
        if any(reasons for _, reasons in refused):
            raise SwapRefusedError(refusal([each for each in refused if each[1]]))
        unused = [t.assignment.site.path for t in trials if not t.units]
        if unused:
            raise VerificationError(
                f"the swap was not made: the model ran without calling {', '.join(unused)}, so "
                "nothing is known about them; give a sample that uses them, or leave them out"
            )
        wrong = [r for r in (t.receipt() for t in trials) if not r.error_after <= r.allowed]
        if wrong:
            raise VerificationError("\n".join(["the swap was not made:", *map(_wrong, wrong)]))
        farther = {
            f"  {t.assignment.site.path}: {', '.join(t.implementations)} {_beyond(further)}"
            for t in trials
            for further in t.beyond
            if not further.error <= 1
        }
        if farther:
            raise VerificationError("\n".join(["the swap was not made:", *sorted(farther)]))
        return outputs

    def noise(
        self, before: Mapping[str, Tensor], quiet: Mapping[str, Tensor]
    ) -> list[Mapping[str, Tensor]]:
        """Return what rounding at the sites does to the outputs.

        Many models of float64 round to float32 inside: softmax, norms. Then noise of float64 is
        lost in it, and shows nothing: it is drawn as large as theirs.

        Args:
            before: Outputs of the model as it is.
            quiet: Outputs with its own functions at the sites.
        """
        noise = noise_of(self.noisy, quiet)
        if all(trial.is_wide for trial in self.trials):
            own = compare_outputs(before, quiet, noise, self.measured())
            coarse = any(trial.error_before > SITE_BOUND for trial in self.trials)
            if coarse or any(out.is_beyond for out in own):
                self.units = FLOAT32_INSIDE
                noise = noise_of(self.noisy, quiet)
        return noise

    def noisy(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Run the model with rounding noise at the sites."""
        return self.run(self.sample, self._noisy_mixers(generator))

    def _noisy_mixers(self, generator: torch.Generator) -> list[Mixer]:
        return [trial.noisy(generator, self.units) for trial in self.trials]

    def measured(self) -> list[SiteReceipt]:
        """Return what was measured at the sites, their errors in units of the noise."""
        sites = (trial.receipt() for trial in self.trials)
        return [
            site.model_copy(
                update={
                    "error_before": (site.error_before or 0.0) / self.units,
                    "error_after": site.error_after / self.units,
                }
            )
            for site in sites
        ]

    def after(self) -> Mapping[str, Tensor]:
        """Run the model with the variants.

        Raises:
            VerificationError: A site was called more or less often than before.
        """
        counters = [Counting(mixer) for mixer in self.mixers]
        counted = [each.mixer.instead(each, replaces=True) for each in counters]
        outputs = self.run(self.sample, counted)
        for trial, counter in zip(self.trials, counters, strict=True):
            if len(trial.units) != counter.calls:
                raise VerificationError(
                    f"the swap was undone: {trial.assignment.site.path} was called "
                    f"{len(trial.units)} times before and {counter.calls} times after"
                )
        return outputs

    def leaks(
        self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> tuple[LeakReceipt, ...]:
        """Ask the whole model whether later tokens, padding, documents or samples leak.

        Raises:
            VerificationError: Something does that did not before.
        """
        sites = [assignment.site for assignment in self.assignments]
        subject = Subject(
            run=self.run,
            sample=self.sample,
            before=before,
            after=after,
            mixers=self.mixers,
            noisy=self._noisy_mixers,
            sites=self.measured(),
        )
        host = self.host
        if not isinstance(host, Prober):
            return check_leaks(neighbours(self.sample), subject)
        return check_leaks(probes_of(host, self.model, sites, self.sample), subject)


def _standing(model: nn.Module, host: Host, assignment: Assignment) -> Standing:
    family = swap_family(assignment.variant)
    assert family is not None
    return family.mixer(model, host, assignment)


def _check_outputs(
    outputs: Sequence[OutputReceipt], sites: Sequence[SiteReceipt], own: Sequence[OutputReceipt]
) -> None:
    """Raise `VerificationError` if outputs moved by more than rounding.

    Args:
        outputs: Of the model with the variants.
        sites: What was measured at the sites.
        own: Outputs of the model with its own functions at the sites, compared like ``outputs``.
    """
    worst = max(sites, key=lambda site: site.error_after)
    for out in outputs:
        if not math.isfinite(out.largest):
            raise VerificationError(
                f"the swap was undone: output {out.name!r} is finite in other places than before"
            )
        if out.is_beyond:
            also = (
                "; it moves with the model's own functions there as well: if another swap stands "
                "in these layers, restore that one first"
            )
            raise VerificationError(
                f"the swap was undone: output {out.name!r} {out.shape} moved by {out.moved:.3g} "
                f"noise units (largest change {out.largest:.3g}), at most {out.allowed:.3g} is "
                f"rounding; largest error of a site: {worst.path}, {worst.error_after:.3g} units"
                f"{also if any(each.is_beyond for each in own) else ''}"
            )


def _wrong(site: SiteReceipt) -> str:
    own = "" if site.error_before is None else f" (the model's own: {site.error_before:.3g})"
    if site.error_before == math.inf:
        return (
            f"  {site.path} ({site.layer}): the model's own output is not finite, so that nothing "
            "can be compared with it; give a sample that the model computes"
        )
    return (
        f"  {site.path} ({site.layer}): {', '.join(site.implementations)} is off by "
        f"{site.error_after:.3g} rounding units{own}, at most {site.allowed:g} is rounding"
    )


def _beyond(further: Further) -> str:
    if further.why:
        return f"fails beyond the sample, at {further.what}: {further.why}"
    times = f"{further.error:.3g} times what rounding is allowed"
    return f"is off by {times} beyond the sample, at {further.what}"


def _versions(hosts: Mapping[str, Host]) -> dict[str, str]:
    names = ("attnkit", "torch", *(host.name for host in hosts.values() if host.tested))
    installed = {name: version_of(name) for name in names}
    return {"python": platform.python_version(), **installed}


def _owners(assignments: Sequence[Assignment]) -> dict[str, str]:
    entries = {entry.name: str(entry) for entry in default().entries()}
    names = dict.fromkeys(assignment.variant.name for assignment in assignments)
    return {name: entries.get(name, "given as an object") for name in names}
