"""The record of a swap: what was swapped, what ran, how far it moved, and with which versions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from attnkit.errors import ConfigError
from attnkit.frozen import Frozen
from attnkit.hosts.protocol import LeakName
from attnkit.promises import Relation
from attnkit.text import table

FILE = "attnkit.json"
"""Name of the receipt in the folder of a checkpoint."""


class SiteReceipt(Frozen):
    """What was measured at one site, on the tensors that reach it in the run on the sample.

    Errors are the largest over all elements, against a float64 run, in rounding units of
    attention (`attnkit.precision`). The float64 run is that of the model's own function
    for an exact swap, of the variant's reference otherwise.
    """

    path: str
    layer: str = Field(description="class of the module")
    variant: str
    relation: Relation
    implementations: tuple[str, ...] = Field(description="variant.implementation, all that ran")
    calls: int = Field(description="how often the site was called in the run")
    error_before: float | None = Field(description="of the model's own; None unless exact")
    error_after: float = Field(description="of the variant")
    allowed: float = Field(description="bound on error_after")
    rows_left_out: int = Field(description="query rows that see no key, which no one compares")
    drift: float | None = Field(
        default=None,
        description="root mean square of the change of the site's output over that of its own",
    )
    beyond: tuple[str, ...] = Field(
        default=(), description="calls beyond the sample by which the variant was verified too"
    )


class OutputReceipt(Frozen):
    """How far one output of the model moved; padding left out."""

    name: str
    shape: tuple[int, ...]
    largest: float = Field(description="largest absolute difference, before to after")
    relative: float = Field(description="root mean square of the difference over that of before")
    moved: float | None = Field(description="largest difference in noise units; exact swaps only")
    allowed: float | None = Field(description="bound on moved; exact swaps only")

    @property
    def is_beyond(self) -> bool:
        """Whether it moved by more than rounding."""
        # written so that NaN is beyond
        moved, allowed = self.moved, self.allowed
        return moved is not None and allowed is not None and not moved <= allowed


class LeakReceipt(Frozen):
    """Whether outputs that may not see a change of the input stayed.

    See `attnkit.swaps.verification.leaks`.
    """

    name: LeakName
    changed: str = Field(description="what was changed in the input")
    outcome: Literal["equal", "rounding", "own", "idle", "refused"] = Field(
        description="equal to the bit; within rounding; the model itself does not keep it "
        "apart; nothing sees the change, so nothing was asked; the swapped model refuses such "
        "inputs"
    )
    largest: float | None = Field(default=None, description="largest absolute change")
    moved: float | None = Field(default=None, description="largest change in noise units")
    allowed: float | None = Field(default=None, description="bound on moved")
    why: str | None = Field(default=None, description="the refusal")


class Receipt(Frozen):
    """The record of a verified swap; prints as tables, saves as JSON."""

    model: str = Field(description="class of the model")
    plan: dict[str, dict[str, object]] = Field(description="by path pattern")
    accept: Relation
    sample: dict[str, str] = Field(description="the inputs it was verified on: shape and dtype")
    generated: bool = Field(description="the sample was made by attnkit, not given")
    sites: tuple[SiteReceipt, ...]
    outputs: tuple[OutputReceipt, ...]
    leaks: tuple[LeakReceipt, ...] = Field(
        default=(), description="what was asked of the whole model, where the host knows how"
    )
    versions: dict[str, str] = Field(
        description="of python, attnkit (and so of its contracts), torch and the hosts"
    )
    owners: dict[str, str] = Field(description="who offers each variant: distribution, version")
    remarks: tuple[str, ...] = Field(
        default=(), description="what to know: a host that was not tested, what training refuses"
    )
    added: tuple[str, ...] = Field(
        default=(), description="sites where the swap put modules with weights of their own"
    )
    changes: tuple[str, ...] = Field(
        default=(), description="versions that differ from the receipt this was re-applied from"
    )

    def __str__(self) -> str:
        """Show sites and outputs as tables."""
        swapped = (
            f"{self.model}: {len(self.sites)} sites swapped (accept={self.accept!r}), verified on "
            + ("generated " if self.generated else "given ")
            + ", ".join(f"{name} {shape}" for name, shape in self.sample.items())
        )
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n\n".join(
            (
                swapped,
                table(_OF_SITES, _site_rows(self.sites)),
                *_beyond(self.sites),
                table(_OF_OUTPUTS, _output_rows(self.outputs)),
                *([table(_OF_LEAKS, _leak_rows(self.leaks))] if self.leaks else []),
                *(f"{each.name}: {each.outcome}: {each.why}" for each in self.leaks if each.why),
                versions,
                *self.remarks,
            )
        )

    def save(self, path: str | Path) -> None:
        """Write the receipt as JSON."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a receipt that `save` wrote."""
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))


def receipt_path(where: str | Path) -> Path:
    """Return where the receipt of a checkpoint lies.

    Args:
        where: The checkpoint's folder; or its file, beside which the receipt lies; or a file
            ``.json``, which is the receipt.

    Raises:
        ConfigError: There is no such folder or file.
    """
    path = Path(where)
    if path.is_dir():
        return path / FILE
    if path.suffix == ".json":
        return path
    if not path.exists():
        raise ConfigError(
            f"{path}: no such checkpoint, a folder or a file; save the model there first"
        )
    return path.with_name(f"{path.name}.{FILE}")


_OF_SITES = ("site", "layer", "runs", "relation", "calls", "own error", "error", "allowed", "drift")
_OF_OUTPUTS = ("output", "shape", "largest change", "relative", "moved", "allowed")
_OF_LEAKS = ("leak", "tried with", "outcome", "largest change", "moved", "allowed")
"""Heads of the tables."""


def _site_rows(sites: tuple[SiteReceipt, ...]) -> Iterable[tuple[str, ...]]:
    for site in sites:
        runs = ", ".join(site.implementations)
        errors = (_number(site.error_before), _number(site.error_after), _number(site.allowed))
        row = (site.path, site.layer, runs, site.relation, str(site.calls), *errors)
        yield (*row, _number(site.drift))


def _beyond(sites: tuple[SiteReceipt, ...]) -> Iterable[str]:
    """Say by which calls beyond the sample the sites were verified."""
    told: dict[tuple[str, ...], list[str]] = {}
    for site in sites:
        told.setdefault(site.beyond, []).append(site.path)
    for calls, paths in told.items():
        whose = "" if len(told) == 1 else f" at {', '.join(paths)}"
        yield f"verified beyond the sample{whose}: {'; '.join(calls) or 'nothing, forward only'}"


def _output_rows(outputs: tuple[OutputReceipt, ...]) -> Iterable[tuple[str, ...]]:
    for out in outputs:
        moved = (_number(out.largest), _number(out.relative), _number(out.moved))
        yield (out.name, str(out.shape), *moved, _number(out.allowed))


def _leak_rows(leaks: tuple[LeakReceipt, ...]) -> Iterable[tuple[str, ...]]:
    for leak in leaks:
        numbers = (_number(leak.largest), _number(leak.moved), _number(leak.allowed))
        yield (leak.name, leak.changed, leak.outcome, *numbers)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
