"""A recurrence in place of a layer's attention function, between the layer's own projections.

    q to query (C of a state-space layer), k to key (B), v to value (x)

as they reach the function: normed and rotated by the model. Key and value heads that several
query heads share are repeated, so that each query head has a state. The variant's module adds
what the layer does not have (decays); the host keeps the state in its library's own cache.

The variant is verified against its own float64 definition, on the tensors of the model's run; how
far the layer's output moves is the receipt's drift. An error is measured in units of

    unit = |o| (2u + 16 * 2^-24) + tiny,    error = max |o - o*| / unit

where |o| is the recurrence over the absolute values of its inputs, after the feature maps, and u
the rounding unit of the dtype; sums in at least float32 are assumed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from attnkit.choice.decision import AUTO
from attnkit.errors import ShapeError
from attnkit.interface import load
from attnkit.operations.recurrence import layout_of, recurrence
from attnkit.reference import recurrence as reference
from attnkit.sites import Request
from attnkit.state import RecurrentState

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attnkit.interface import Options, Variant
    from attnkit.masks.constructors import Mask
    from attnkit.sites import Site
    from attnkit.swaps.plan import Assignment

BOUND = 3.0
"""Largest error of a correct implementation, in units; see `attnkit.swaps.outputs`."""


class Inputs(NamedTuple):
    """The arguments of `attnkit.recurrence` at a site.

    Attributes:
        query: (B, H, L, E).
        key: (B, H, L, E).
        value: (B, H, L, Ev).
        log_decay: (B, H, L) or (B, H, L, E), or None.
        scale: Multiplies the output.
        options: The variant's options.
        around: (B, H, L, Ev), added to the output; None for nothing.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor | None
    scale: float
    options: Options
    around: Tensor | None = None


class Module(Protocol):
    """What a variant builds for a site, an `torch.nn.Module`: from a layer's tensors to `Inputs`.

    Its parameters join the model's while it stands there.
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, x: Tensor, *, scale: float
    ) -> Inputs:
        """Prepare the recurrence.

        Args:
            query: (B, H, L, E), as it reaches the layer's attention function.
            key: (B, H, L, E), repeated to H heads.
            value: (B, H, L, Ev), repeated to H heads.
            x: (B, L, D), the layer's input.
            scale: What the layer's attention multiplies its logits by.
        """
        ...


class Builder(Protocol):
    """`Placement.build` of a recurrence."""

    def __call__(
        self, site: Site, options: Any, *, device: torch.device, dtype: torch.dtype
    ) -> nn.Module:
        """Build the module for a site, deterministic but for torch's random numbers."""
        ...


class Memory(Protocol):
    """Where a host keeps what a layer remembers between two calls.

    Attributes:
        state: None before the first token.
    """

    state: RecurrentState | None


class Span(Request, Protocol):
    """A call of a layer whose attention is a recurrence: the next L tokens."""

    @property
    def x(self) -> Tensor:
        """(B, L, D), the layer's input."""
        ...

    @property
    def memory(self) -> Memory | None:
        """Where the state is kept; None for a call that keeps nothing."""
        ...

    @property
    def scale(self) -> float:
        """What the layer's attention multiplies its logits by."""
        ...

    def tokens(self, seen: int) -> Mask:
        """Return the mask of the ``seen + L`` tokens so far.

        Raises:
            UnsupportedError: The call asks for what no recurrence does; it is named.
        """
        ...


@dataclass(frozen=True)
class Carrying:
    """A mixer that runs a recurrence.

    Attributes:
        module: What the variant built; the host registers it under the layer.
        replaces: Whether the host's cache keeps the state instead of keys and values.
    """

    variant: Variant
    module: nn.Module
    implementation: str = AUTO
    fallback: tuple[str, ...] = ()
    replaces: bool = True

    @classmethod
    def of(cls, assignment: Assignment, like: Tensor) -> Carrying:
        """Build what an assignment asks for, on the device and in the dtype of a tensor."""
        variant, options = assignment.variant, assignment.options
        assert variant.placement is not None
        build: Builder = load(variant.placement.build)
        module = build(assignment.site, options, device=like.device, dtype=like.dtype)
        return cls(variant, module, options.implementation, options.fallback)

    def __call__(self, request: Span) -> Tensor:
        """Answer a layer's call, (B, H, L, Ev), and keep the state."""
        step = self.step(request)
        out, memory = step.run(self.variant, self.implementation, self.fallback)
        step.keep(memory)
        return out

    def step(self, request: Span) -> Step:
        """Prepare a call."""
        memory = request.memory
        before = None if memory is None else memory.state
        seen = 0 if before is None else before.tokens
        length = request.query.shape[2]
        if request.key.shape[2] < length or (memory is None and request.key.shape[2] != length):
            raise ShapeError(
                f"a recurrence takes each token once: {length} queries came with "
                f"{request.key.shape[2]} keys and no cache that it knows"
            )
        return Step(_inputs(self.module, request), request.tokens(seen), before, memory)


class Step(NamedTuple):
    """One prepared call of a recurrence."""

    inputs: Inputs
    mask: Mask
    before: RecurrentState | None
    memory: Memory | None

    def run(
        self, variant: Variant, implementation: str, fallback: tuple[str, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return (B, H, L, Ev) in the dtype of the layer's value, and the next state's memory."""
        given = self.inputs
        out, memory = recurrence(
            variant,
            given.query,
            given.key,
            given.value,
            log_decay=given.log_decay,
            scale=given.scale,
            mask=self.mask,
            seen=0 if self.before is None else self.before.tokens,
            initial_state=None if self.before is None else self.before.memory,
            options=given.options,
            implementation=implementation,
            fallback=fallback,
        )
        return (out if given.around is None else out + given.around), memory

    def keep(self, memory: Tensor) -> None:
        """Give the state after this call to the host."""
        if self.memory is not None:
            seen = 0 if self.before is None else self.before.tokens
            tokens = seen + self.inputs.value.shape[2]
            batch = memory.shape[0]
            self.memory.state = RecurrentState(memory, tokens, memory.new_zeros(batch, 0, 0))

    def widened(self, module: nn.Module, request: Span) -> Step:
        """Return the call with all that comes after the layer's own projections in float64."""
        before = self.before
        if before is not None:
            before = RecurrentState(before.memory.double(), before.tokens, before.inputs)
        inputs = _inputs(copy.deepcopy(module).double(), request, dtype=torch.float64)
        return self._replace(inputs=inputs, before=before)

    def absolute(self) -> Tensor:
        """Return |o| of a call in float64: what its rounding errors are measured by.

        Of packed documents it counts the earlier ones too.
        """
        given, before = self.inputs, self.before
        batch, heads, length, width = given.value.shape
        seen = 0 if before is None else before.tokens
        keep = layout_of(self.mask, batch, seen, length).keep
        tensors: tuple[Tensor, ...]
        tensors = given.options.features(given.query, given.key, given.value)
        if keep is not None:
            tensors = tuple(torch.where(keep[:, None, :, None], t, 0.0) for t in tensors)
        query, key, value = (t.abs() for t in tensors)
        shape = given.options.state_shape(given.query.shape[3], width)
        start = query.new_zeros(batch, heads, *shape) if before is None else before.memory.abs()
        out, _ = reference(
            query,
            key,
            value,
            log_decay=given.log_decay,
            beta=None,
            scale=abs(given.scale),
            initial_state=start,
            options=given.options,
        )
        around = 0.0 if given.around is None else given.around.abs()
        return given.options.finish(out) + around


def _inputs(module: nn.Module, request: Span, dtype: torch.dtype | None = None) -> Inputs:
    """Ask the variant's module, with the new tokens' keys and values repeated to H heads."""
    length, heads = request.query.shape[2], request.query.shape[1]
    new = (request.key[:, :, -length:], request.value[:, :, -length:])
    key, value = (t.repeat_interleave(heads // t.shape[1], 1) for t in new)  # (B, H, L, ...)
    tensors: tuple[Tensor, ...] = (request.query, key, value, request.x)
    if dtype is not None:
        tensors = tuple(tensor.to(dtype) for tensor in tensors)
    inputs: Inputs = module(*tensors, scale=request.scale)
    return inputs
