"""How a foreign function is called: tensors laid out, masks written, arguments renamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from attnkit.masks.constructors import Causal, Mask, Sizes, SlidingWindow, full

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Convention:
    """What was declared; see `attnkit_contracts.foreign.functions.adapt`.

    Attributes:
        layout: Of query, key and value.
        output_layout: Of the output.
        mask: What is given for a mask.
        corner: What a causal flag means for L != S.
        names: The function's names for what there is to pass.
        fixed: Further arguments.
        own_scale: What a recurrence scales by unasked.
    """

    layout: str
    output_layout: str
    mask: str
    corner: str
    names: Mapping[str, str]
    fixed: Mapping[str, Any]
    own_scale: str


@dataclass(frozen=True, eq=False)
class SoftmaxCall:
    """A foreign softmax function as `attnkit.interface.SoftmaxFunction`.

    Attributes:
        function: What is called.
        convention: How.
        source: Python that makes the variant again; None where nothing does.
    """

    function: Callable[..., Any]
    convention: Convention
    source: str | None

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
        sizes = Sizes(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        named = dict(self.convention.fixed)
        rest = self._with_flags(mask, bias, sizes, named)
        self._with_mask(rest, bias, sizes, query, named)
        options = {"softcap": softcap, "sinks": sinks, "dropout": dropout_p or None, "scale": scale}
        for what, given in options.items():
            if what in self.convention.names and given is not None:
                named[self.convention.names[what]] = given
        if key.shape[1] != query.shape[1] and "gqa" in self.convention.names:
            named[self.convention.names["gqa"]] = True
        laid = (_laid(each, self.convention.layout) for each in (query, key, value))
        out = self.function(*laid, **named)
        first: Tensor = out[0] if isinstance(out, tuple) else out
        return _laid(first, self.convention.output_layout)

    def _with_flags(
        self, mask: Mask, bias: Tensor | None, sizes: Sizes, named: dict[str, Any]
    ) -> Mask:
        """Set what flags can say, and return what is left for a mask."""
        names, rest = self.convention.names, full()
        beside = bias is not None and "bias" not in names
        by_flag = not beside and self._flag_says(mask, sizes)
        for part in mask.conjuncts():
            if isinstance(part, Causal) and by_flag:
                if "causal" in names:
                    named[names["causal"]] = True
            elif isinstance(part, SlidingWindow) and "window" in names:
                named[names["window"]] = part.window_size
            else:
                rest = rest & part
        return rest

    def _flag_says(self, mask: Mask, sizes: Sizes) -> bool:
        """Return whether a flag, or the function itself, makes the call causal."""
        if self.convention.mask == "none":
            return True
        if "causal" not in self.convention.names:
            return False
        told = (Causal, SlidingWindow) if "window" in self.convention.names else (Causal,)
        alone = all(isinstance(part, told) for part in mask.conjuncts())
        return alone and (self.convention.corner == "lower_right" or sizes.queries == sizes.keys)

    def _with_mask(
        self, mask: Mask, bias: Tensor | None, sizes: Sizes, query: Tensor, named: dict[str, Any]
    ) -> None:
        """Write the mask, and the bias, in the function's convention."""
        names, kind = self.convention.names, self.convention.mask
        if bias is not None and "bias" in names:
            named[names["bias"]], bias = bias, None
        if kind == "none" or (not mask.conjuncts() and bias is None):
            return
        if kind in ("additive", "additive_min"):
            added = mask.to_additive(sizes, query.device, query.dtype)
            if kind == "additive_min":
                added = added.clamp(min=torch.finfo(query.dtype).min)
            named[names["mask"]] = added if bias is None else added + bias
        else:
            seen = mask.to_bool(sizes, query.device)
            named[names["mask"]] = ~seen if kind == "hidden" else seen


@dataclass(frozen=True, eq=False)
class RecurrenceCall:
    """A foreign recurrence as `attnkit.interface.RecurrenceFunction`; see `SoftmaxCall`."""

    function: Callable[..., Any]
    convention: Convention
    source: str | None

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
        names, named = self.convention.names, dict(self.convention.fixed)
        left = 1.0
        if "scale" in names:
            named[names["scale"]] = scale
        else:
            own = query.shape[3] ** -0.5 if self.convention.own_scale == "width" else 1.0
            left = scale / own
        layout = self.convention.layout
        gates = {"log_decay": log_decay, "beta": beta}
        for what, given in gates.items():
            if given is not None:
                named[names[what]] = _laid(given, layout)
        named[names["state"]] = initial_state
        laid = (_laid(each, layout) for each in (query, key, value))
        out, state = self.function(*laid, **named)
        # the output is linear in the query, which would be rounded before all sums
        out = out if left == 1.0 else out * left
        return _laid(out, self.convention.output_layout), state


def _laid(tensor: Tensor, layout: str) -> Tensor:
    """Go between (B, H, L, ...) and a layout, either way."""
    return tensor.transpose(1, 2) if layout == "BLHE" else tensor
