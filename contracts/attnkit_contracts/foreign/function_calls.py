"""How a foreign function is called: tensors laid out, masks written, arguments renamed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attnkit.errors import ArgumentError
from attnkit.masks.constructors import Causal, Mask, Sizes, SlidingWindow, full
from attnkit_contracts.foreign.tensors import swapped, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from attnkit_contracts.foreign.conventions import Convention


@dataclass(frozen=True, eq=False)
class ForeignCall:
    """A foreign function as one of attnkit's.

    Its ``source`` is Python that makes the variant again; None where nothing does.
    """

    function: Callable[..., Any]
    convention: Convention
    source: str | None

    def _called(
        self, tensors: Iterable[Tensor], given: Iterable[tuple[str | None, object]]
    ) -> tuple[Tensor, Any]:
        """Call it, and return its output in our layout, and what else it returned."""
        convention = self.convention
        named = {name: value for name, value in given if name and value is not None}
        laid = (swapped(each, convention.layout) for each in tensors)
        out = self.function(*laid, **{**(convention.fixed or {}), **named})
        first, *rest = out if isinstance(out, (tuple, list)) else (out,)
        return swapped(first, convention.output_layout or convention.layout), rest


class SoftmaxCall(ForeignCall):
    """A foreign softmax function as `attnkit.interface.SoftmaxFunction`."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Mask,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
        dropout_p: float,
    ) -> Tensor:
        """Attend."""
        convention = self.convention
        sizes = Sizes(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        added = None if convention.bias_argument else bias
        flags, rest = self._flags(mask, sizes, alone=added is None)
        given = (
            *flags,
            (convention.mask_argument, self._mask(rest, added, sizes, query)),
            (convention.bias_argument, bias),
            (convention.scale_argument, self._scale(scale, query.shape[3])),
            (convention.softcap_argument, softcap),
            (convention.sinks_argument, sinks),
            (convention.dropout_argument, dropout_p or None),
            (convention.gqa_argument, key.shape[1] != query.shape[1] or None),
        )
        return self._called((query, key, value), given)[0]

    def _scale(self, scale: float, width: int) -> float | None:
        """Return a scale to pass; None where the function's own ``None`` has to mean it."""
        return None if self._has_own_scale and scale == width**-0.5 else scale

    @cached_property
    def _has_own_scale(self) -> bool:
        try:
            arguments = inspect.signature(self.function).parameters
        except (TypeError, ValueError):
            # of a function in C nobody can tell
            return False
        named = arguments.get(self.convention.scale_argument or "")
        return named is not None and named.default is None

    def _flags(
        self, mask: Mask, sizes: Sizes, *, alone: bool
    ) -> tuple[list[tuple[str | None, object]], Mask]:
        """Return what flags can say, and what is left for a mask."""
        convention, rest = self.convention, full()
        flags: list[tuple[str | None, object]] = []
        by_flag = alone and self._flag_says(mask, sizes)
        for part in mask.conjuncts():
            if isinstance(part, Causal) and by_flag:
                flags.append((convention.causal_argument, True))
            elif isinstance(part, SlidingWindow) and convention.window_argument:
                flags.append((convention.window_argument, part.window_size))
            else:
                rest = rest & part
        return flags, rest

    def _flag_says(self, mask: Mask, sizes: Sizes) -> bool:
        """Return whether a flag, or the function itself, makes the call causal."""
        convention = self.convention
        if convention.mask == "none":
            return True
        if not convention.causal_argument:
            return False
        told = (Causal, SlidingWindow) if convention.window_argument else (Causal,)
        alone = all(isinstance(part, told) for part in mask.conjuncts())
        square = sizes.queries == sizes.keys
        return alone and (square or convention.causal_corner == "lower_right")

    def _mask(self, mask: Mask, bias: Tensor | None, sizes: Sizes, query: Tensor) -> Tensor | None:
        """Write the mask, with a bias that is added to it; None where there is nothing to say."""
        kind = self.convention.mask
        if kind == "none" or (not mask.conjuncts() and bias is None):
            return None
        if self.convention.mask_argument is None:
            raise ArgumentError("a mask cannot be passed: name its argument with mask_argument")
        told = written(mask.to_bool(sizes, query.device), kind, query.dtype)
        return told if bias is None else told + bias


class RecurrenceCall(ForeignCall):
    """A foreign recurrence as `attnkit.interface.RecurrenceFunction`."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        log_decay: Tensor | None,
        beta: Tensor | None,
        scale: float,
        initial_state: Tensor,
        options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Run the recurrence."""
        convention = self.convention
        own = query.shape[3] ** -0.5 if convention.own_scale == "width" else 1.0
        left = 1.0 if convention.scale_argument else scale / own
        gates = ((convention.decay_argument, log_decay), (convention.beta_argument, beta))
        given = (
            *((name, gate if gate is None else swapped(gate, convention.layout))
              for name, gate in gates),
            (convention.scale_argument, scale),
            (convention.state_argument, initial_state),
        )  # fmt: skip
        out, (state,) = self._called((query, key, value), given)
        # the output is linear in the query, which would be rounded before all sums
        return out if left == 1.0 else out * left, state
