"""A call, seen as a question: which implementations can take it, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attnkit.promises import Decay, Device, Dtype, Family, MaskPart, Promises


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a call asks for, without its numbers; all sizes are positive.

    Under ``torch.compile`` the lengths are representatives of their size class, so that one
    graph serves many lengths: compare lengths only with 1, with each other and with the bounds
    in `LENGTH_CLASSES`.
    """

    family: Family
    device: Device | str
    dtype: Dtype | str
    batch: int
    heads: int
    kv_heads: int
    query_length: int
    key_length: int
    head_dim: int
    value_head_dim: int
    causal: bool = False
    mask_parts: frozenset[MaskPart] = frozenset()
    window: int | None = None
    bias: bool = False
    scale: bool = False
    softcap: bool = False
    sinks: bool = False
    dropout: bool = False
    decay: Decay = "none"
    beta: bool = False
    state: bool = False
    gradients: bool = False
    compiling: bool = False


LENGTH_CLASSES = (1, 16, 128, 1024, 1 << 62)
"""Upper bounds of the classes of lengths that are told apart under ``torch.compile``."""


NOTHING = "nothing"


class Reason(BaseModel):
    """One reason why something cannot take a problem."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    argument: str
    required: str
    offered: str

    def __str__(self) -> str:
        """Say it in one line."""
        if self.offered == NOTHING:
            return f"{self.argument}: asked for, not promised"
        return f"{self.argument}: needs {self.required}, offers {self.offered}"


def unmet(problem: Problem, promises: Promises) -> tuple[Reason, ...]:
    """Return every promise that the problem needs and that is not made."""
    return tuple(_unmet(problem, promises))


def _unmet(problem: Problem, promises: Promises) -> Iterator[Reason]:
    if problem.device not in promises.devices:
        yield Reason(argument="device", required=problem.device, offered=_any(promises.devices))
    if problem.dtype not in promises.dtypes:
        yield Reason(argument="dtype", required=problem.dtype, offered=_any(promises.dtypes))
    for name, needed in _switches(problem).items():
        if needed and not getattr(promises, name):
            yield Reason(argument=name, required=name, offered=NOTHING)
    if promises.heads == "one" and problem.heads > 1:
        yield Reason(argument="num_heads", required=str(problem.heads), offered="1")
    for part in sorted(problem.mask_parts - set(promises.masks)):
        yield Reason(argument="mask", required=part, offered=_any(promises.masks))
    for part in sorted(set(promises.needs) - problem.mask_parts):
        yield Reason(argument="mask", required="no " + part, offered=f"only masks with {part}")
    if problem.family == "recurrence":
        decays = promises.decay or ("none",)
        if problem.decay not in decays:
            yield Reason(
                argument="log_decay",
                required=_DECAY[problem.decay],
                offered=" or ".join(_DECAY[decay] for decay in decays),
            )


_DECAY = {"none": "no decay", "head": "(B, H, L)", "channel": "(B, H, L, E)"}


def _switches(problem: Problem) -> dict[str, bool]:
    """Map the name of a yes/no promise to whether this problem needs it."""
    softmax = problem.family == "softmax"
    return {
        "causal": problem.causal,
        "bidirectional": softmax and not problem.causal and problem.query_length > 1,
        "cross": softmax and problem.query_length != problem.key_length,
        "gqa": problem.heads != problem.kv_heads,
        "value_width": problem.head_dim != problem.value_head_dim,
        "bias": problem.bias,
        "scale": problem.scale,
        "softcap": problem.softcap,
        "sinks": problem.sinks,
        "dropout": problem.dropout,
        "beta": problem.beta,
        "state": problem.state,
        "gradients": problem.gradients,
        "compile": problem.compiling,
    }


def _any(offered: tuple[str, ...]) -> str:
    return ", ".join(offered) or "none"
