"""A call, seen as a question: which implementations can take it, and why not the others.

`Problem` is what all calls have in common; each family adds a record of its own. A record says
which yes/no promises it needs (`Problem.wants`) and every reason why promises do not meet it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

from attnkit.frozen import Frozen
from attnkit.promises import Decay, Device, Dtype, MaskPart, Promises, Transform

SMALL = 16
"""Tokens of the small call by which an implementation is tried."""

LENGTH_CLASSES = (1, 16, 128, 1024, 1 << 62)
"""Upper bounds of the classes of lengths that are told apart under ``torch.compile``."""


NOTHING = "nothing"


class Reason(Frozen):
    """One reason why something cannot take a problem."""

    argument: str
    required: str
    offered: str

    def __str__(self) -> str:
        """Say it in one line."""
        if self.offered == NOTHING:
            return f"{self.argument}: asked for, not promised"
        return f"{self.argument}: needs {self.required}, offers {self.offered}"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a call asks for, without its numbers; all sizes are positive.

    Under ``torch.compile`` the lengths are representatives of their size class, so that one
    graph serves many lengths: compare lengths only with 1, with each other and with the bounds
    in `LENGTH_CLASSES`.

    Attributes:
        batch: B.
        query_length: L; of a mixture of experts, the tokens of all samples.
        transforms: Of ``torch.func``, those that the call is made under.
    """

    family: str
    device: Device | str
    dtype: Dtype | str
    query_length: int
    batch: int = 1
    gradients: bool = False
    compiling: bool = False
    transforms: frozenset[Transform] = frozenset()

    @classmethod
    def of(cls, told: Mapping[str, object]) -> Self:
        """Make one of a description that may say more than this family asks."""
        return cls(**{each.name: told[each.name] for each in fields(cls) if each.name in told})  # type: ignore[arg-type]  # whoever tells has checked

    def wants(self) -> dict[str, bool]:
        """Map the name of a yes/no promise to whether this problem needs it."""
        return {"gradients": self.gradients, "compile": self.compiling}

    def reasons(self, promises: Promises) -> Iterator[Reason]:
        """Yield every promise that this problem needs and that is not made."""
        if self.device not in promises.devices:
            yield Reason(argument="device", required=self.device, offered=_any(promises.devices))
        if self.dtype not in promises.dtypes:
            yield Reason(argument="dtype", required=self.dtype, offered=_any(promises.dtypes))
        for each in sorted(self.transforms - set(promises.transforms)):
            yield Reason(argument="transforms", required=each, offered=_any(promises.transforms))
        for name, needed in self.wants().items():
            if needed and not getattr(promises, name):
                yield Reason(argument=name, required=name, offered=NOTHING)

    def smaller(self) -> Self:
        """Return the problem of a small call like this one, with no option given."""
        length = min(self.query_length, SMALL)
        plain = replace(self, gradients=False, compiling=False, transforms=frozenset())
        return replace(plain, batch=1, query_length=length)


@dataclass(frozen=True, kw_only=True)
class MaskedProblem(Problem):
    """What calls with query, key and value under a mask have in common.

    Attributes:
        heads: H.
        head_dim: E.
        value_head_dim: Ev.
        mask_parts: What the mask is made of, beside causality.
        scale: Whether it is another than the family's default.
    """

    heads: int
    head_dim: int
    value_head_dim: int
    mask_parts: frozenset[MaskPart] = frozenset()
    scale: bool = False

    def reasons(self, promises: Promises) -> Iterator[Reason]:
        yield from super().reasons(promises)
        if promises.heads == "one" and self.heads > 1:
            yield Reason(argument="num_heads", required=str(self.heads), offered="1")
        for part in sorted(self.mask_parts - set(promises.masks)):
            yield Reason(argument="mask", required=part, offered=_any(promises.masks))
        for part in sorted(set(promises.needs) - self.mask_parts):
            yield Reason(argument="mask", required="no " + part, offered=f"only masks with {part}")


@dataclass(frozen=True, kw_only=True)
class SoftmaxProblem(MaskedProblem):
    """A call of `attnkit.attention`.

    Attributes:
        kv_heads: Hkv.
        key_length: S.
        causal: Whether later keys are hidden.
        window: In keys; None for no window.
    """

    family: str = "softmax"
    kv_heads: int
    key_length: int
    causal: bool = False
    window: int | None = None
    bias: bool = False
    softcap: bool = False
    sinks: bool = False
    dropout: bool = False

    def wants(self) -> dict[str, bool]:
        return {
            "causal": self.causal,
            "bidirectional": not self.causal and self.query_length > 1,
            "cross": self.query_length != self.key_length,
            "gqa": self.heads != self.kv_heads,
            "value_width": self.head_dim != self.value_head_dim,
            "bias": self.bias,
            "scale": self.scale,
            "softcap": self.softcap,
            "sinks": self.sinks,
            "dropout": self.dropout,
            **super().wants(),
        }

    def smaller(self) -> Self:
        keys = min(self.key_length, SMALL)
        queries = keys if self.query_length == self.key_length else max(1, keys // 2)
        return replace(
            super().smaller(),
            query_length=queries,
            key_length=keys if queries <= self.query_length else queries,
            mask_parts=self.mask_parts & {"window", "blocks"},
            window=SMALL if "window" in self.mask_parts else None,
            bias=False,
            scale=False,
            softcap=False,
            sinks=False,
            dropout=False,
        )


@dataclass(frozen=True, kw_only=True)
class RecurrenceProblem(MaskedProblem):
    """A call of `attnkit.recurrence`, which is causal and carries a state.

    Attributes:
        groups: G, heads of query and key.
        decay: The form of ``log_decay``.
        beta: Whether the delta rule is asked for.
    """

    family: str = "recurrence"
    groups: int
    decay: Decay = "none"
    beta: bool = False

    def wants(self) -> dict[str, bool]:
        return {
            "causal": True,
            "gqa": self.heads != self.groups,
            "value_width": self.head_dim != self.value_head_dim,
            "scale": self.scale,
            "beta": self.beta,
            "state": True,
            **super().wants(),
        }

    def reasons(self, promises: Promises) -> Iterator[Reason]:
        yield from super().reasons(promises)
        decays = promises.decay or ("none",)
        if self.decay not in decays:
            yield Reason(
                argument="log_decay",
                required=_DECAY[self.decay],
                offered=" or ".join(_DECAY[decay] for decay in decays),
            )

    def smaller(self) -> Self:
        return replace(super().smaller(), mask_parts=frozenset(), scale=False)


@dataclass(frozen=True, kw_only=True)
class FeedforwardProblem(Problem):
    """Tokens for the experts of a mixture, whose router has decided.

    Attributes:
        experts: E.
        width: D.
    """

    family: str = "feedforward"
    experts: int
    width: int


def unmet(problem: Problem, promises: Promises) -> tuple[Reason, ...]:
    """Return every promise that the problem needs and that is not made."""
    return tuple(problem.reasons(promises))


_DECAY = {"none": "no decay", "head": "(B, H, L)", "channel": "(B, H, L, E)"}


def _any(offered: tuple[str, ...]) -> str:
    return ", ".join(offered) or "none"
