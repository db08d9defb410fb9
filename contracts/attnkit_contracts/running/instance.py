"""One check on one subject with one set of parameters: how it is run and written down."""

from __future__ import annotations

import contextlib
import importlib
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnkit.errors import UnsupportedError
from attnkit.registry import registry
from attnkit.registry.discovery import SESSION
from attnkit_contracts.catalogue import (
    BrokenError,
    Check,
    InconclusiveError,
    Measured,
    SkippedEnvError,
)
from attnkit_contracts.reports.diagnosis import Diagnosis, Explanation
from attnkit_contracts.reports.records import EXECUTED, Record, Status
from attnkit_contracts.subjects.opener import subject_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attnkit.interface import Variant
    from attnkit_contracts.subjects.subject import Subject
    from attnkit_contracts.subjects.target import Target


JUDGED: dict[type[BaseException], Status] = {
    BrokenError: "failed",
    InconclusiveError: "inconclusive",
    SkippedEnvError: "skipped_env",
    UnsupportedError: "unsupported",
}
"""What a check raises on purpose, and the status that it means; all else is an error."""


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

    @property
    def is_installed(self) -> bool:
        """Whether another process finds its variant by name."""
        return _entry(self.target.variant)[0] != SESSION

    def run(self, *, explain: bool = True, hint: Diagnosis | None = None) -> Record:
        """Run it; whatever happens is in the record.

        Args:
            explain: Look into a failure: which named mistake, which smallest call.
            hint: The diagnosis of another failure: its mistakes are asked first.
        """
        _load()
        from attnkit_contracts.instruments.process_state import guarded

        draws = self.target.variant.promises.dropout
        started = time.perf_counter()
        subject: Subject | None = None
        try:
            with _one_thread(), guarded(self.target.seed, draws=draws) as changed:
                subject = subject_of(self.target)
                measured = self.check.function(subject, **self.params)
            _must_be_kept(subject, changed)
        except KeyboardInterrupt:
            raise
        # whatever a stranger's code raises is a result; the skip of a test, or an exit, no less
        except BaseException as error:
            status, reason = _judge_error(error)
            measured = Measured(getattr(error, "value", None) or 0.0, 0.0, "")
        else:
            status, reason = _judge(measured)
        elapsed = (time.perf_counter() - started) * 1e3
        found = Explanation()
        if explain and subject is not None and status in ("failed", "error"):
            found = _explained(subject, self.check.id, hint, reason)
        return self._record(status, measured, reason, elapsed, subject, found)

    def _record(
        self,
        status: Status,
        measured: Measured,
        reason: str,
        elapsed: float,
        subject: Subject | None,
        found: Explanation,
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
            diagnosis=found.diagnosis,
            smallest=found.smallest,
            elements=found.elements,
            reproduction="" if status == "passed" else self._reproduction(subject, found),
            advisory=self.check.is_advisory,
        )

    def _reproduction(self, subject: Subject | None, found: Explanation) -> str:
        if found.script:
            return found.script
        lines = ["import attnkit_contracts", ""]
        if _entry(self.target.variant)[0] == SESSION:
            lines = _registering(self.target.variant)
        if subject is not None and subject.last:
            lines.append(f"# last call: {subject.last}")
        asked = f"{self.id!r}, seed={self.target.seed}"
        return "\n".join([*lines, f"attnkit_contracts.rerun({asked}).raise_for_status()"])


def _registering(variant: Variant) -> list[str]:
    """Return lines that register a variant of this session, if they can be written down."""
    from attnkit_contracts.diagnosis.scripts import whereabouts

    found = whereabouts(variant)
    if found is None:
        told = "# first register the variant: attnkit.register(VARIANT)"
        return ["import attnkit_contracts", "", told, ""]
    known = ["import attnkit", "import attnkit_contracts", *found.imports]
    return [*known, "", f"attnkit.register({found.name})"]


def _explained(subject: Subject, rule: str, hint: Diagnosis | None, reason: str) -> Explanation:
    """Look into a failure; what goes wrong on the way is said, and changes no verdict."""
    from attnkit_contracts.diagnosis.explain import explain

    try:
        with _one_thread():
            return explain(subject, rule, hint, reason)
    except KeyboardInterrupt:
        raise
    # a stranger's code may raise anything, and did: that is why we are here
    except BaseException as error:
        told = f"no diagnosis: looking for one raised {type(error).__name__}: {error}"
        return Explanation(Diagnosis(seen=told))


def _load() -> None:
    """Import what some check is the first to need: once per process, and no part of its time."""
    # checkpoint loads torch's compiler when it is called, not when it is imported
    for name in ("torch._dynamo", "torch.utils.checkpoint"):
        importlib.import_module(name)


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


def _must_be_kept(subject: Subject, changed: list[str]) -> None:
    """Raise `BrokenError` unless a process and the tensors of calls are as they were."""
    if changed:
        raise BrokenError(f"after the check, this is not as it was before: {', '.join(changed)}")
    for what in subject.watch.written_to():
        raise BrokenError(f"{what} was written to, by the call or by a later one")


def _judge(measured: Measured) -> tuple[Status, str]:
    # written so that NaN fails
    if measured.value <= measured.threshold:
        return "passed", ""
    where = f" at {measured.where}" if measured.where else ""
    return (
        "failed",
        f"{measured.value:.4g} {measured.unit}, at most {measured.threshold:.4g} allowed{where}",
    )


def _judge_error(error: BaseException) -> tuple[Status, str]:
    for kind, status in JUDGED.items():
        if isinstance(error, kind):
            return status, str(error)
    told = traceback.format_exception_only(error)[-1].strip()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "error", f"{told} (in {frame.name}, {frame.filename.rpartition('/')[2]}:{frame.lineno})"


def _entry(variant: Variant) -> tuple[str, str]:
    """Return owner and version."""
    entries = registry.default().entries(variant.name)
    return (entries[0].owner, entries[0].version) if entries else (SESSION, "")
