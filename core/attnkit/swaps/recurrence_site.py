"""A recurrence in place of a layer's attention function, between the layer's own projections.

    q to query (C of a state-space layer), k to key (B), v to value (x)

as they reach the function: normed and rotated by the model. Key and value heads that several
query heads share are repeated, so that each query head has a state. The variant's module adds
what the layer does not have (decays); the host keeps the state in its library's own cache.

The variant is verified against its own float64 definition, on the tensors of the model's run; how
far the layer's output moves is the receipt's drift. An error is measured in units of

    unit = |o| (2u + 16 s) + tiny,    error = max |o - o*| / unit

where |o| is the recurrence over the absolute values of its inputs, after the feature maps, u the
rounding unit of the dtype and s that of its sums, see `attnkit.precision`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from attnkit.at_rest import input_like
from attnkit.choice.front import choose
from attnkit.errors import ShapeError, UnsupportedError
from attnkit.hosts.mounts import submodule
from attnkit.hosts.protocol import Host, Memory, Mixer, Span
from attnkit.interface import Variant, load
from attnkit.masks.constructors import Mask, full
from attnkit.operations.recurrence import recurrence
from attnkit.operations.recurrence_run import Given, layout_of, problem_of_recurrence
from attnkit.precision import accumulation, roundoff, smallest, worst
from attnkit.problem import RecurrenceProblem
from attnkit.reference import recurrence as reference
from attnkit.state import RecurrentState
from attnkit.swaps.families import Assignment, Attempt, Measure, Standing, SwapFamily
from attnkit.swaps.obstacles import LENGTH, beyond_a_recurrence
from attnkit.swaps.verification.reach import (
    BATCH,
    SHORT,
    Case,
    Further,
    drawn,
    of_gradients,
    of_rounding,
    reached,
    untouched,
)
from attnkit.swaps.verification.trial import SITE_BOUND

if TYPE_CHECKING:
    from attnkit.hosts.parts import Inputs, RecurrenceBuilder

CHUNKS = (130, 133, 134, 200)
"""Where calls beyond the sample end: after more tokens than a chunk has, after few, after one."""

TRAINED = {
    f"{SHORT} tokens": ((0, SHORT),),
    f"chunks of 80 and {SHORT - 80} tokens": ((0, 80), (80, SHORT)),
}
"""Calls with gradients, which flow through the state from one to the one before."""


@dataclass(frozen=True)
class Carrying(Standing):
    """A mixer that runs a recurrence; an `attnkit.hosts.protocol.StateMixer`.

    Attributes:
        module: What the variant built; the host registers it under the layer.
    """

    takes: ClassVar[type] = Span

    variant: Variant
    module: nn.Module
    implementation: str = "auto"
    fallback: tuple[str, ...] = ()
    replaces: bool = True

    def __call__(self, request: Span) -> Tensor:
        """Answer a layer's call, (B, H, L, Ev), and keep the state."""
        step = self.step(request)
        out, memory = step.run(self.variant, self.implementation, self.fallback)
        step.keep(memory)
        return out

    @property
    def brings(self) -> tuple[nn.Module, bool]:
        return self.module, False

    def instead(self, mixer: Mixer, *, replaces: bool = False) -> InPlace:
        return InPlace(mixer, replaces=replaces)

    def attempt(self, request: Span, *, exact: bool) -> Tried:
        step = self.step(request)
        problem = step.problem()
        chosen = choose(self.variant, problem, self.implementation, self.fallback).key
        out, memory = step.run(self.variant, self.implementation, self.fallback)
        return Tried(chosen, out, self, request, step, memory)

    def beyond(self, attempt: Tried) -> tuple[Further, ...]:
        given = attempt.step.inputs
        asked = replace(attempt.step.problem(), batch=1, query_length=1)
        question = (asked, given.scale, given.options.model_dump_json())
        how = self.implementation, tuple(self.fallback)
        return reached(self.variant, (*question, *how), lambda: self._farther(given))

    def _farther(self, given: Inputs) -> Iterator[Case]:
        """Yield the calls that one call of a model may be followed by."""
        whole, pieces = (0, CHUNKS[-1]), pairwise((0, *CHUNKS))
        yield Case(f"{CHUNKS[-1]} tokens", lambda: self._error(given, [whole]))
        told = f"chunks of {CHUNKS[0]} and 3 tokens, one token, and the rest"
        yield Case(told, lambda: self._error(given, list(pieces)))
        for told, cuts in TRAINED.items():
            yield Case(f"gradients of {told}", partial(self._of_gradients, given, cuts))

    def _error(self, given: Inputs, cuts: list[tuple[int, int]]) -> float:
        step = Step(_drawn(given, CHUNKS[-1]), full(), None, None)
        inputs = step.inputs
        tensors = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
        with untouched(tensors, self.variant.name):
            joined, memory = self._in_pieces(inputs, cuts)
        wide = step._replace(inputs=_mapped(inputs, Tensor.double))
        truth, last = wide.run(self.variant, "reference")
        every = torch.ones((), dtype=torch.bool, device=joined.device)
        of_outputs = worst(joined, truth, wide.unit(joined.dtype), every) / SITE_BOUND
        return max(of_outputs, of_rounding(memory, last, joined.dtype))

    def _in_pieces(self, inputs: Inputs, cuts: Iterable[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return the outputs of pieces, each on the state of the one before, and the last state."""
        before: RecurrentState | None = None
        outs = []
        for start, stop in cuts:
            piece = Step(_cut(inputs, start, stop), full(), before, None)
            out, memory = piece.run(self.variant, self.implementation, self.fallback)
            before = RecurrentState(memory, stop, memory.new_zeros(memory.shape[0], 0, 0))
            outs.append(out)
        assert before is not None
        return torch.cat(outs, 2), before.memory

    def _of_gradients(self, given: Inputs, cuts: tuple[tuple[int, int], ...]) -> float:
        inputs = _drawn(given, SHORT)
        names = ("query", "key", "value", "log_decay")
        tensors = {name: t for name in names if (t := getattr(inputs, name)) is not None}

        def run(tensors: Mapping[str, Any]) -> Tensor:
            return self._in_pieces(inputs._replace(around=None, **tensors), cuts)[0]

        def defined(tensors: Mapping[str, Any]) -> Tensor:
            whole = Step(inputs._replace(around=None, **tensors), full(), None, None)
            return whole.run(self.variant, "reference")[0]

        return of_gradients(run, defined, tensors)

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


@dataclass(frozen=True)
class InPlace:
    """A mixer that a host takes for a recurrence's; an `attnkit.hosts.protocol.StateMixer`."""

    mixer: Mixer
    replaces: bool
    module: None = None

    def __call__(self, request: Span) -> Tensor:
        """Pass on."""
        return self.mixer(request)


@dataclass(eq=False)
class Tried(Attempt):
    """A recurrence's answer to one call."""

    carrying: Carrying
    request: Span
    step: Step
    memory: Tensor

    def measures(self) -> Iterator[Measure]:
        out, step = self.out, self.step
        wide = step.widened(self.carrying.module, self.request)
        truth, _ = wide.run(self.carrying.variant, "reference")
        unit = wide.unit(out.dtype)
        keep = layout_of(step.mask, out.shape[0], step.seen, out.shape[2]).keep
        rows = torch.ones_like(out[..., :1], dtype=torch.bool)
        yield Measure(slice(None), truth, unit, rows if keep is None else keep[:, None, :, None])

    def keep(self) -> None:
        self.step.keep(self.memory)


class Step(NamedTuple):
    """One prepared call of a recurrence."""

    inputs: Inputs
    mask: Mask
    before: RecurrentState | None
    memory: Memory | None

    @property
    def seen(self) -> int:
        """How many tokens came before."""
        return 0 if self.before is None else self.before.tokens

    def problem(self) -> RecurrenceProblem:
        """Return the problem that it is."""
        asked = self.inputs
        state = asked.value if self.before is None else self.before.memory
        given = Given(asked.query, asked.key, asked.value, asked.log_decay, None, state)
        return problem_of_recurrence(given, asked.scale, self.mask)

    def run(
        self, variant: Variant, implementation: str, fallback: tuple[str, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return (B, H, L, Ev) in the dtype of the layer's value, and the next state's memory."""
        given = self.inputs
        out, memory = recurrence(
            given.query,
            given.key,
            given.value,
            variant=variant,
            log_decay=given.log_decay,
            scale=given.scale,
            mask=self.mask,
            seen=self.seen,
            initial_state=None if self.before is None else self.before.memory,
            options=given.options,
            implementation=implementation,
            fallback=fallback,
        )
        return (out if given.around is None else out + given.around), memory

    def keep(self, memory: Tensor) -> None:
        """Give the state after this call to the host."""
        if self.memory is not None:
            tokens = self.seen + self.inputs.value.shape[2]
            batch = memory.shape[0]
            self.memory.state = RecurrentState(memory, tokens, memory.new_zeros(batch, 0, 0))

    def widened(self, module: nn.Module, request: Span) -> Step:
        """Return the call with all that comes after the layer's own projections in float64."""
        before = self.before
        if before is not None:
            before = RecurrentState(before.memory.double(), before.tokens, before.inputs)
        inputs = _inputs(copy.deepcopy(module).double(), request, dtype=torch.float64)
        return self._replace(inputs=inputs, before=before)

    def unit(self, dtype: torch.dtype) -> Tensor:
        """Return, of a call in float64, what rounding may do to each output in a dtype.

        Of packed documents it counts the earlier ones too.
        """
        given, before = self.inputs, self.before
        batch, heads, length, width = given.value.shape
        keep = layout_of(self.mask, batch, self.seen, length).keep
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
        rate = 2 * roundoff(dtype) + 16 * accumulation(dtype)
        return (given.options.finish(out) + around) * rate + smallest(dtype)


def _mapped(given: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Change every tensor."""
    query, key, value = change(given.query), change(given.key), change(given.value)
    decay = None if given.log_decay is None else change(given.log_decay)
    around = None if given.around is None else change(given.around)
    return given._replace(query=query, key=key, value=value, log_decay=decay, around=around)


def _cut(given: Inputs, start: int, stop: int) -> Inputs:
    return _mapped(given, lambda t: t[:, :, start:stop])


def _drawn(given: Inputs, length: int) -> Inputs:
    """Return as many tokens of a call's heads, widths and decays, with numbers of their own."""

    def own(t: Tensor, seed: int) -> Tensor:
        return drawn((BATCH, t.shape[1], length, *t.shape[3:]), t, seed)

    decay = given.log_decay
    return given._replace(
        query=own(given.query, 0) * given.query.shape[3] ** -0.5,
        key=own(given.key, 1) * given.key.shape[3] ** -0.5,
        value=own(given.value, 2),
        log_decay=None if decay is None else -0.1 * own(decay, 3).abs(),
        around=None,
    )


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


def _supposed(assignment: Assignment, training: bool) -> RecurrenceProblem:
    site, placement = assignment.site, assignment.variant.placement
    assert placement is not None
    heads, width = site.needs.heads or 2, site.needs.head_dim or 64
    return RecurrenceProblem(
        device=site.device,
        dtype=site.dtype,
        heads=heads,
        groups=heads,
        query_length=LENGTH,
        head_dim=width,
        value_head_dim=width,
        decay=placement.decay(assignment.options),
    )


def _mixer(model: nn.Module, host: Host, assignment: Assignment) -> Carrying:
    """Build the variant's module on the device and in the dtype of the layer."""
    variant, options = assignment.variant, assignment.options
    assert variant.placement is not None
    build: RecurrenceBuilder = load(variant.placement.build)
    layer = submodule(model, assignment.site.path)
    like = input_like(layer)
    module = build(assignment.site, options, device=like.device, dtype=like.dtype)
    if any(True for _ in module.parameters()) and any(p.is_meta for p in layer.parameters()):
        raise UnsupportedError(
            f"device: the layer's weights are offloaded, so that it is not known where those that "
            f"{variant.name!r} adds belong; swap first, and offload after that"
        )
    return Carrying(variant, module, options.implementation, options.fallback)


FAMILY = SwapFamily(obstacles=beyond_a_recurrence, supposed=_supposed, mixer=_mixer)
