"""One check on one subject with one set of parameters: how it is run and written down."""

from __future__ import annotations

import contextlib
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnkit import registry
from attnkit.discovery import SESSION
from attnkit.errors import UnsupportedError
from attnkit_contracts.catalogue import BrokenError, Check, InconclusiveError, Measured
from attnkit_contracts.records import EXECUTED, Record, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attnkit.interface import Variant
    from attnkit_contracts.subjects import Subject, Target


@dataclass(frozen=True)
class Instance:
    """One check on one subject with one set of parameters."""

    target: Target
    check: Check
    params: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Unique and stable: variant/implementation/dtype/device/check[params]."""
        said = ",".join(f"{name}={value}" for name, value in self.params.items())
        return f"{self.target}/{self.check.id}" + (f"[{said}]" if said else "")

    def run(self) -> Record:
        """Run it; whatever happens is in the record."""
        started = time.perf_counter()
        subject: Subject | None = None
        try:
            with _one_thread():
                subject = self.target.open()
                measured = self.check.function(subject, **self.params)
        # whatever a stranger's code raises is a result
        except Exception as error:
            status, reason = _judge_error(error)
            measured = Measured(getattr(error, "value", None) or 0.0, 0.0, "")
        else:
            status, reason = _judge(measured)
        elapsed = (time.perf_counter() - started) * 1e3
        return self._record(status, measured, reason, elapsed, subject)

    def _record(
        self,
        status: Status,
        measured: Measured,
        reason: str,
        elapsed: float,
        subject: Subject | None,
    ) -> Record:
        target = self.target
        entry = _entry(target.variant)
        judged = status in EXECUTED and bool(measured.unit)
        return Record(
            id=self.id,
            check=self.check.id,
            params=dict(self.params),
            variant=target.variant.name,
            owner=entry[0],
            version=entry[1],
            implementation=target.implementation,
            dtype=target.dtype,
            device=target.device,
            status=status,
            verdict=self.check.verdict,
            value=measured.value if judged else None,
            threshold=measured.threshold if judged else None,
            unit=measured.unit,
            duration_ms=round(elapsed, 3),
            reason=reason,
            reproduction="" if status == "passed" else self._reproduction(subject),
        )

    def _reproduction(self, subject: Subject | None) -> str:
        lines = ["import attnkit_contracts", ""]
        if _entry(self.target.variant)[0] == SESSION:
            lines[1:1] = ["", "# first register the variant: attnkit.register(VARIANT)"]
        if subject is not None and subject.last:
            lines.append(f"# last call: {subject.last}")
        asked = f"{self.id!r}, seed={self.target.seed}"
        return "\n".join([*lines, f"attnkit_contracts.rerun({asked}).raise_for_status()"])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: the inputs are so small that several only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _judge(measured: Measured) -> tuple[Status, str]:
    # written so that NaN fails
    if measured.value <= measured.threshold:
        return "passed", ""
    where = f" at {measured.where}" if measured.where else ""
    return (
        "failed",
        f"{measured.value:.4g} {measured.unit}, at most {measured.threshold:.4g} allowed{where}",
    )


def _judge_error(error: Exception) -> tuple[Status, str]:
    if isinstance(error, BrokenError):
        return "failed", str(error)
    if isinstance(error, InconclusiveError):
        return "inconclusive", str(error)
    if isinstance(error, UnsupportedError):
        return "unsupported", str(error)
    told = traceback.format_exception_only(error)[-1].strip()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "error", f"{told} (in {frame.name}, {frame.filename.rpartition('/')[2]}:{frame.lineno})"


def _entry(variant: Variant) -> tuple[str, str]:
    """Return owner and version."""
    for entry in registry.default().entries():
        if entry.name == variant.name:
            return entry.owner, entry.version
    return SESSION, ""
