"""What checks are run on: an operation of one implementation, or the layer of a variant.

A subject draws the inputs it can take, so that a check need not know what a variant promises:
`draw` gives an ordinary call within the promises, and every check asks for what it is about. What
differs from subject to subject is a method here, so that nobody asks which kind one is.
"""

from __future__ import annotations

import functools
from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

import attnkit
from attnkit import precision
from attnkit.interface import load
from attnkit_contracts.catalogue import BrokenError, Measured
from attnkit_contracts.definitions.answers import question
from attnkit_contracts.inputs import cuts
from attnkit_contracts.inputs.calls import (
    GROWING,
    PLACED,
    disturbed,
    drawn,
    generator,
    mask_part,
    normal,
    open_part,
)
from attnkit_contracts.instruments.watch import Watch
from attnkit_contracts.judging import outputs as judge
from attnkit_contracts.subjects.target import RIGHTLY, Reading, dtype_of, offered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from attnkit.masks.constructors import Mask, Sizes
    from attnkit.promises import MaskPart
    from attnkit_contracts.definitions.mistakes.mistake import Mistake
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.judging.outputs import Bound, Index
    from attnkit_contracts.subjects.target import Target, Written

    Function = Callable[[Mapping[str, Tensor]], Tensor]
    Definition = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    Grads = Mapping[str, Tensor] | None
    Bounds = dict[str, Bound]

Answer = TypeVar("Answer")

MOST_CALLS = 64
"""How many calls a subject remembers."""


class Subject:
    """What every check can ask of what it is run on.

    Attributes:
        target: Which subject this is.
        promises: What it claims.
        device: Where it runs.
        dtype: Of the inputs.
        last: The last call, as text; for the reproduction of a failure.
        calls: The latest calls, for the diagnosis of a failure.
        watch: What calls were given and gave, and may not be written to.
        layer: The module that is called; None for an operation.
        given: Options beyond the usual ones that a layer was made with.
        remakes: Those made of it with other options, in the order in which they were made.
        needs: The mask parts that its plainest call brings.
        tokenwise: Whether each token gives its output by itself; those of all samples are then
            computed in one row, so that how a product is summed depends on all of them.
        unhidden: The tensors of a call whose tokens no padding hides: each has a row of its own.
        sees_emptied: Whether a mistake may have been made of padding that was emptied before.
        treats_alike: Whether its definition takes further samples behind those of a call.
        may_cancel: Whether large numbers may cancel in its definition, however its inputs move.
        steps: The steps of its definition, of which a mistake replaces one; None if it has none.
        mistakes: The named mistakes of its definition; none where there is no definition.
    """

    layer: Any = None
    given: Mapping[str, Any] = MappingProxyType({})
    needs: tuple[MaskPart, ...] = ()
    tokenwise: bool = False
    unhidden: tuple[str, ...] = ()
    sees_emptied: bool = False
    treats_alike: bool = False
    may_cancel: bool = False
    steps: Any = None
    mistakes: tuple[Mistake[Any], ...] = ()

    def __init__(self, target: Target) -> None:
        self.target = target
        self.promises, self.device = target.promises, target.device
        self.dtype = dtype_of(target.dtype)
        self.last = ""
        self.calls: deque[Call] = deque(maxlen=MOST_CALLS)
        self.remakes: list[Subject] = []
        self.watch = Watch()

    @property
    def is_defined(self) -> bool:
        """Whether its definition is the truth; a layer's own float64 is not."""
        return True

    # what it is given

    def random(self, label: str) -> torch.Generator:
        """Return a source of random numbers, another one for every label."""
        return generator(self.target.seed, label)

    def cast(self, tensor: Tensor) -> Tensor:
        """Return the tensor in the dtype and on the device of this subject."""
        return tensor.to(self.device, self.dtype)

    def normal(self, label: str, *shape: int) -> Tensor:
        """Return standard normal numbers, such as a gradient may be."""
        return self.cast(normal(self.random(label), *shape))

    def wide(self, tensor: Tensor) -> Tensor:
        """Return the tensor in the dtype of sums and states: float32, float64 for float64."""
        return tensor.to(self.device, torch.promote_types(self.dtype, torch.float32))

    def draw(self, label: str, *, batch: int = 2, length: int = 33) -> Call:
        """Return an ordinary call of ``length`` tokens that the promises allow.

        Args:
            label: Two labels give two sets of numbers.
            batch: B.
            length: L, and S too.
        """
        raise NotImplementedError  # every subject's own

    def clear_call(self, label: str, *, length: int = 24, batch: int = 2) -> Call:
        """Return a call in which no rounding of the inputs changes a choice."""
        return self.draw(label, batch=batch, length=length)

    def grads(self, call: Call) -> dict[str, Tensor]:
        """Return normal gradients of all that a call gives; none where none are promised."""
        if not self.promises.gradients:
            return {}
        return {"out": self.normal("grads", *judge.output_shape(call))}

    def numbers(self, name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        """Return values such as a tensor of this name has, in float64."""
        return drawn(name, shape, draw)

    def disturbed(self, call: Call, where: Tensor, label: str) -> Call:
        """Return the call with other values at some tokens; see `inputs.calls.disturbed`."""
        return disturbed(call, where, functools.partial(self.numbers, draw=self.random(label)))

    def causal(self, call: Call) -> Call:
        """Return the call with a mask as long as its tokens that hides all later ones.

        None of them is padding: each can be disturbed.
        """
        return call.masked(self.mask(cuts.sizes_of(call), wide=("padding",)))

    def mask(
        self, sizes: Sizes, *, causal: bool | None = None, wide: tuple[MaskPart, ...] = ()
    ) -> Mask:
        """Return the plainest mask that a call may have.

        Args:
            sizes: Of the call.
            causal: Whether an operation is told to hide later keys; None for what is promised,
                causal before not. Layers know.
            wide: The parts it cannot do without that are to hide nothing.
        """
        mask = attnkit.full()
        for kind in self.needs:
            mask &= open_part(kind, sizes, self.device) if kind in wide else self.part(kind, sizes)
        return mask

    def part(self, kind: MaskPart, sizes: Sizes) -> Mask:
        """Return a mask of this kind; a union is made of what is promised."""
        masks = self.promises.masks
        if kind != "union" or "union" not in masks or {"window", "dense"} <= set(masks):
            return mask_part(kind, sizes, self.device)
        # beside causal, a prefix hides nothing
        alone = (mask_part(m, sizes, self.device) for m in masks if m != "union" and m != "prefix")
        one = next(alone, attnkit.full())
        return one | one

    def plain_masks(self, sizes: Sizes) -> dict[str, Mask]:
        """Return the masks that look at distances alone, by a name."""
        return {"": self.mask(sizes, wide=PLACED)}

    def draw_whole(self, label: str, *, batch: int = 2, length: int = 33) -> Call:
        """Return an ordinary call that can be made in pieces: no mask needs the tokens to come."""
        return self.whole(self.draw(label, batch=batch, length=length))

    def whole(self, call: Call) -> Call:
        """Return the call with a mask that its pieces can have, too."""
        return call.masked(self.mask(cuts.sizes_of(call), wide=GROWING))

    def with_options(self, call: Call, label: str) -> Call:
        """Return a call with all options that are promised; a layer's are its own."""
        return call

    def without_padding(self, call: Call) -> Call:
        """Return a call whose padding holds 0, where the definition says what padding is."""
        return call

    def telling_calls(self) -> Iterator[Call]:
        """Yield calls that show one thing each, as far as it is promised."""
        yield from ()

    def shorter(self, call: Call) -> Iterator[Call]:
        """Yield calls of fewer tokens, the boldest cut first."""
        length = cuts.sizes_of(call).keys
        yield from (cuts.tokens(call, 0, n) for n in cuts.below(length))
        if length > 1:
            yield cuts.tokens(call, 1, length)

    # what it gives

    def function(self, call: Call) -> Function:
        """Return what it calls, of a call's tensors, without what it writes down for reports."""
        raise NotImplementedError  # every subject's own

    def __call__(self, call: Call) -> Tensor:
        """Return the output, (B, H, L, Ev) of an operation, (B, L, D) of a layer."""
        raise NotImplementedError  # every subject's own

    def outputs(self, call: Call) -> dict[str, Tensor]:
        """Return all that a call gives, by name; what may be anything is 0."""
        return {"out": self(call)}

    def answers(self, call: Call, grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs and, with gradients of those, the gradient of every tensor."""
        leaves = call.leaves() if grads else call
        with torch.set_grad_enabled(bool(grads)):
            found = self.outputs(leaves)
        if not grads:
            return found
        gradients = torch.autograd.grad(
            [found[name] for name in grads],
            list(leaves.tensors.values()),
            list(grads.values()),
            allow_unused=True,
        )
        named = judge.named_gradients(leaves.tensors, gradients)
        return found | {judge.gradient_of(name): gradient for name, gradient in named.items()}

    def pieces(self, call: Call, lengths: tuple[int, ...]) -> Tensor:
        """Return the outputs of consecutive chunks, joined."""
        raise NotImplementedError  # every subject's own

    # what it should give

    def definition(self, call: Call, rules: Any = None) -> Definition:
        """Return the float64 function from this call's tensors to its outputs, by name.

        Args:
            call: Its mask and extras.
            rules: The steps of a mistaken definition; None for the right one.
        """
        raise NotImplementedError  # every subject's own

    def exact(self, call: Call) -> dict[str, Tensor]:
        """Return the definition's outputs, in float64."""
        return self.definition(call)(call.tensors)

    def weights(self) -> dict[str, Tensor]:
        """Return what the definition is given beside a call."""
        return {}

    def read(self, call: Call) -> tuple[Tensor | None, ...] | None:
        """Return what the definition reads of a call's mask; None where it depends on more."""
        return None

    def bounds(self, call: Call, grads: Grads = None, how: Reading = RIGHTLY) -> Bounds:
        """Return the definition's answers, shaped as those of `answers`, and their units.

        Args:
            call: What it is given.
            grads: Gradients of outputs, by name; none for the outputs alone.
            how: By which definition, and how finely.
        """
        return judge.probed(
            self.definition(call, how.rules),
            {**call.tensors, **self.weights()},
            how.dtype or self.dtype,
            grads=grads,
            probes=how.probes,
            together=self.treats_alike,
            # the gradient of a bias of keys, say, is 0 but for rounding
            rounds=self.may_cancel or bool(grads and self.layer is not None),
        )

    def bound(self, call: Call, probes: int = precision.PROBES) -> Bound:
        """Return the definition's output of a call, and its unit."""
        what, how = f"output, with {probes} probes", Reading(probes=probes)
        return self._kept(what, call, ask=lambda: self.bounds(call, how=how)["out"])

    def output_bounds(self, call: Call) -> Bounds:
        """Return all of the definition's outputs of a call, and their units."""
        return self._kept("outputs", call, ask=lambda: self.bounds(call, how=Reading(probes=2)))

    def gradient_bounds(
        self, call: Call, grads: Mapping[str, Tensor], probes: int | None = None
    ) -> dict[str, Bound]:
        """Return the definition's gradient of every tensor and every weight, and its unit.

        Args:
            call: What it is given.
            grads: Gradients of outputs, by name.
            probes: How many disturbed evaluations; None for as many as is usual.
        """

        def ask() -> dict[str, Bound]:
            found = self.bounds(call, grads, Reading(probes=probes))
            names = (*call.tensors, *self.weights())
            return {name: found[judge.gradient_of(name)] for name in names}

        what = f"gradients from {', '.join(grads)}, with {probes} probes"
        return self._kept(what, call, *grads.values(), ask=ask)

    def _kept(self, what: str, call: Call, *further: Tensor, ask: Callable[[], Answer]) -> Answer:
        """Return an answer, which is asked once for equal calls where that can be told."""
        read = self.read(call)
        if read is None:
            return ask()
        about = f"{what} of {self.target.variant.name} in {self.dtype}"
        return self.target.answers.to(question(about, call, read, *further), ask)

    def error(self, limit: Bound, out: Tensor, where: str) -> Measured:
        """Measure the error of an output; what its own float64 gives may be off as well."""
        if self.is_defined:
            return judge.near(limit, out, where)
        return judge.agree(limit, out, limit.exact.to(out.dtype), where)

    def agree_gradients(
        self,
        call: Call,
        grad_out: Tensor,
        one: Mapping[str, Tensor],
        other: Mapping[str, Tensor],
        where: str,
    ) -> Measured:
        """Measure how far the gradients of two calls are apart; the same bits need no unit.

        Args:
            call: Whose gradients they are.
            grad_out: Of both.
            one: By name; all that ``other`` has.
            other: By name, perhaps of some tensors only.
            where: Which case it is.
        """
        if all(torch.equal(one[name], gradient) for name, gradient in other.items()):
            return judge.exactly(0, "different elements")
        limits = self.gradient_bounds(call, {"out": grad_out})
        return judge.worst(
            judge.agree(limits[name], one[name], gradient, f"the gradient of {name}, {where}")
            for name, gradient in other.items()
        )

    def unmoved(
        self,
        call: Call,
        index: tuple[Index, ...],
        pair: tuple[Tensor, Tensor],
        what: str,
        *,
        limit: Bound | None = None,
    ) -> None:
        """Raise `BrokenError` unless part of an output is the same in both of a pair, to the bit.

        What is `tokenwise` may differ by rounding.

        Args:
            call: Of the first of the pair.
            index: Which part.
            pair: The output of the call, and that of a call with other values elsewhere.
            what: Is said if they differ.
            limit: The call's bound, where it is at hand.
        """
        whole, moved = (out[index] for out in pair)
        if not self.tokenwise:
            judge.same_bits(whole, moved, what)
            return
        limit = self.bound(call) if limit is None else limit
        found = judge.agree(judge.part(limit, index), whole, moved)
        if not found.value <= found.threshold:
            raise BrokenError(f"{what}: moved by {found.value:.4g} {found.unit} at {found.where}")

    # what is written about it

    def written(
        self, name: str, variant: Written, given: list[str], *, output: str = "out"
    ) -> tuple[str, list[str]]:
        """Return Python of a call: what is before its bracket, and its arguments.

        Args:
            name: What an output of it is to be called.
            variant: How the variant is written.
            given: Arguments beside the tensors of every call.
            output: Which output.
        """
        raise NotImplementedError  # every subject's own

    def packages(self) -> frozenset[str]:
        """Return the top-level names of the packages whose code it runs, attnkit's too."""
        variant = self.target.variant
        homes = {"attnkit"}
        for reference in (variant.layer, *(one.function for one in offered(variant))):
            try:
                found = load(reference)
            except ImportError:
                # not the subject's own, which has run: another one, for another machine say
                continue
            while isinstance(found, functools.partial):
                found = found.func
            homes |= {_package(cls) for cls in getattr(found, "__mro__", (found,))}
        if self.layer is not None:
            homes |= {_package(type(each)) for each in self.layer.modules()}
        return frozenset(homes - {"torch", "builtins", "typing", ""})


def _package(made: object) -> str:
    return str(getattr(made, "__module__", "")).partition(".")[0]
