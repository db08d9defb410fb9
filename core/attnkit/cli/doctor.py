"""What is installed, what runs here, what is broken; the data behind ``attnkit doctor``."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from pydantic import Field

from attnkit.choice.decision import implementations_of
from attnkit.choice.first_call import first_call
from attnkit.errors import RegistryError
from attnkit.frozen import Frozen
from attnkit.interface import Implementation, Variant
from attnkit.problem import unmet
from attnkit.registry.registry import default
from attnkit.versions import version_of

PACKAGES = ("attnkit", "torch", "triton", "pydantic", "pluggy", "pytest", "transformers")


_SIZES = {
    "query_length": 64,
    "key_length": 64,
    "heads": 1,
    "kv_heads": 1,
    "groups": 1,
    "experts": 1,
    "head_dim": 16,
    "value_head_dim": 16,
    "width": 16,
}
"""Of the small calls, whatever the family."""


class Trial(Frozen):
    """A small call of one implementation on one device in one dtype."""

    variant: str
    implementation: str
    device: str
    dtype: str
    called: bool = Field(description="False where it does not load, or loading is all to be tried")
    trouble: str | None = Field(description="why it failed; None if it did not")
    function: str = Field(description="'package.module:attribute', or what a callable is called")
    traceback: str = Field(default="", description="of the failure, where something was raised")

    @property
    def outcome(self) -> str:
        """What came of it, in words; why it failed is told once, of all dtypes."""
        return "fails, see below" if self.trouble else "runs" if self.called else "loads"


class BrokenReport(Frozen):
    """A plugin that does not load."""

    plugin: str
    traceback: str


class Diagnosis(Frozen):
    """All that ``attnkit doctor`` says."""

    versions: dict[str, str]
    devices: tuple[str, ...]
    trials: tuple[Trial, ...]
    broken: tuple[BrokenReport, ...]

    def failures(self) -> dict[tuple[str, str], list[Trial]]:
        """Return the trials that failed, by implementation and by why."""
        found: dict[tuple[str, str], list[Trial]] = {}
        for each in self.trials:
            if each.trouble:
                which = f"{each.variant}.{each.implementation}", each.trouble
                found.setdefault(which, []).append(each)
        return found

    @property
    def is_well(self) -> bool:
        """True if no plugin is broken and every promised implementation runs."""
        return not self.broken and not any(trial.trouble for trial in self.trials)


def diagnose() -> Diagnosis:
    """Look at every plugin, and call every implementation once per device and dtype."""
    devices = _devices()
    return Diagnosis(
        versions={
            "python": platform.python_version(),
            **{package: version_of(package, "not installed") for package in PACKAGES},
        },
        devices=devices,
        trials=tuple(_trials(devices)),
        broken=tuple(
            BrokenReport(plugin=str(each), traceback=each.traceback) for each in default().broken()
        ),
    )


def _devices() -> tuple[str, ...]:
    import torch

    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _trials(devices: tuple[str, ...]) -> Iterator[Trial]:
    registry = default()
    for name in registry.names():
        try:
            variant = registry.get(name)
        except RegistryError:
            continue  # told as broken
        for implementation in implementations_of(variant):
            for device in devices:
                if device in implementation.promises.devices:
                    yield from _try(variant, implementation, device)


def _try(variant: Variant, implementation: Implementation, device: str) -> Iterator[Trial]:
    promises, family = implementation.promises, default().family(variant.family)
    for dtype in promises.dtypes:
        problem = family.problem.of(
            {
                **_SIZES,
                "family": family.name,
                "device": device,
                "dtype": dtype,
                "causal": promises.causal,
                "mask_parts": frozenset(promises.needs),
                "window": 16 if "window" in promises.needs else None,
                "decay": promises.decay[0] if promises.decay else "none",
            }
        )
        reasons = [str(reason) for reason in unmet(problem, promises)]
        failed = None if reasons else first_call(variant, implementation, problem)
        yield Trial(
            variant=variant.name,
            implementation=implementation.name,
            device=device,
            dtype=dtype,
            called=family.first_call is not None and (failed is None or failed.loads),
            trouble="; ".join(reasons) or (failed and failed.why),
            function=_written(implementation.function),
            traceback=failed.traceback if failed else "",
        )


def _written(function: object) -> str:
    if isinstance(function, str):
        return function
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '?')}:{name}"
