"""Recurrences as subjects: `attnkit.recurrence` of one implementation."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.definitions import oracle
from attnkit_contracts.definitions.mistakes import recurrence as mistakes
from attnkit_contracts.inputs import cuts
from attnkit_contracts.inputs.calls import Call, drawn, normal
from attnkit_contracts.subjects.operations import Operation
from attnkit_contracts.subjects.target import RIGHTLY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from attnkit.interface import Variant
    from attnkit.masks.constructors import Mask
    from attnkit.promises import Decay
    from attnkit_contracts.subjects.subject import Bounds, Definition, Function, Grads
    from attnkit_contracts.subjects.target import Reading, Written


class RecurrenceOperation(Operation):
    """`attnkit.recurrence` of one implementation of one variant, with default options."""

    shared = ("query", "key")
    treats_alike = True
    steps = mistakes.RIGHT
    mistakes = mistakes.MISTAKES

    @property
    def decay(self) -> Decay:
        """The form of decay of an ordinary call: the richest that is promised."""
        return max(self.promises.decay or ("none",), key=("none", "head", "channel").index)

    @functools.cached_property
    def always(self) -> frozenset[str]:
        """The promised options that it cannot do without: it refuses a call that has none."""
        self.__dict__["always"] = frozenset()  # of the calls that ask for it
        options = {"beta": self.promises.beta, "initial_state": self.promises.state}
        small = self.draw("always", length=2, beta=self.promises.beta, state=self.promises.state)
        return frozenset(
            name
            for name, promised in options.items()
            if promised and self._refuses(small.without(name)) and not self._refuses(small)
        )

    def _refuses(self, call: Call) -> bool:
        try:
            self.function(call)(call.tensors)
        except UnsupportedError:
            return True
        return False

    def draw(
        self,
        label: str,
        *,
        batch: int = 2,
        length: int = 33,
        heads: int | None = None,
        groups: int | None = None,
        width: int = 16,
        value_width: int | None = None,
        decay: Decay | None = None,
        beta: bool | None = None,
        state: bool = False,
        mask: Mask | None = None,
    ) -> Call:
        """Return a call of L tokens; see `Subject.draw`."""
        draw = self.random(label)
        heads = 2 if heads is None else heads
        groups = heads if groups is None else groups
        value_width = width if value_width is None else value_width
        decay = self.decay if decay is None else decay
        shapes: dict[str, tuple[int, ...]] = {
            "query": (batch, groups, length, width),
            "key": (batch, groups, length, width),
            "value": (batch, heads, length, value_width),
        }
        if decay != "none":
            channels = (width,) if decay == "channel" else ()
            shapes["log_decay"] = (batch, heads, length, *channels)
        if beta is None:
            beta = self.promises.beta
        if beta or "beta" in self.always:
            shapes["beta"] = (batch, heads, length)
        tensors = {
            name: self.cast(self.numbers(name, shape, draw)) for name, shape in shapes.items()
        }
        if state or "initial_state" in self.always:
            shape = self.options().state_shape(width, value_width)
            tensors["initial_state"] = self.wide(normal(draw, batch, heads, *shape))
        sizes = Sizes(batch, heads, length, length)
        return Call(tensors, self.mask(sizes) if mask is None else mask)

    def options(self) -> Any:
        """Return the variant's options, with chunks so short that an ordinary call has several."""
        options = self.target.variant.options
        return options(**({"chunk_size": 16} if "chunk_size" in options.model_fields else {}))

    def numbers(self, name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        found = drawn(name, shape, draw)
        # the delta rule diverges with keys much longer than 1
        return normalize(found, dim=-1) if name == "key" else found

    def draw_shared(self, label: str, *, length: int, heads: int, shared: int) -> Call:
        return self.draw(label, batch=1, length=length, heads=heads, groups=shared)

    def with_options(self, call: Call, label: str) -> Call:
        if not self.promises.state:
            return call
        batch, heads, _, value_width = call.tensors["value"].shape
        sizes = self.options().state_shape(call.tensors["query"].shape[3], value_width)
        state = normal(self.random(label), batch, heads, *sizes)
        return call.given(initial_state=self.wide(state))

    def telling_calls(self) -> Iterator[Call]:
        promises = self.promises
        for decay in promises.decay or ("none",):
            yield self.draw("tell apart", length=20, decay=decay)
        if promises.gqa:
            yield self.draw("tell apart", length=20, heads=4, groups=2)
        if promises.scale:
            yield self.draw("tell apart", length=20).saying(scale=0.7)
        if promises.state:
            yield self.draw("tell apart", length=20, state=True)
        for part in promises.masks:
            if part in ("padding", "documents"):
                sizes = Sizes(2, 2, 20, 20)
                mask = self.mask(sizes, wide=ALL_MASK_PARTS) & self.part(part, sizes)
                yield self.draw("tell apart", length=20, mask=mask)

    def _door(
        self, call: Call, variant: Variant | str, implementation: str, options: Any = None
    ) -> Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]:
        extras, mask = dict(call.extras), call.mask
        return lambda tensors: attnkit.recurrence(
            variant=variant,
            **{**extras, **tensors},
            mask=mask,
            options=options,
            implementation=implementation,
        )

    def called(self, call: Call, variant: Variant | str, implementation: str) -> Function:
        run = self._door(call, variant, implementation)
        return lambda tensors: run(tensors)[0]

    def function(self, call: Call) -> Function:
        run = self._door(call, self.target.variant, self.target.implementation, self.options())
        return lambda tensors: run(tensors)[0]

    def both(self, call: Call, options: Any = None) -> tuple[Tensor, Tensor]:
        """Return the output, (B, H, L, Ev), and the final state."""
        self.calls.append(call)
        self.last = f"attnkit.recurrence({call.describe()}, variant={self.target.variant.name!r})"
        options = self.options() if options is None else options
        run = self._door(call, self.target.variant, self.target.implementation, options)
        out, state = self.watch.run(call, run)
        return out, state

    def __call__(self, call: Call) -> Tensor:
        return self.both(call)[0]

    def outputs(self, call: Call) -> dict[str, Tensor]:
        out, state = self.both(call)
        real = _real(call, out)
        # a padded token's output may be anything
        return {"out": out if real is None else torch.where(real, out, 0.0), "state": state}

    def grads(self, call: Call) -> dict[str, Tensor]:
        found = super().grads(call)
        if found:
            value, real = call.tensors["value"], _real(call, found["out"])
            shape = self.options().state_shape(call.tensors["query"].shape[3], value.shape[3])
            draw = self.random("grads of states")
            found["state"] = self.wide(normal(draw, *value.shape[:2], *shape))
            found["out"] = found["out"] if real is None else torch.where(real, found["out"], 0.0)
        return found

    def pieces(self, call: Call, lengths: tuple[int, ...]) -> Tensor:
        """Return the outputs of consecutive chunks, joined; the state is handed on."""
        outputs, start = [], 0
        memory: Tensor | None = None
        for length in lengths:
            piece = cuts.tokens(call, start, start + length)
            piece = piece if memory is None else piece.given(initial_state=memory)
            out, memory = self.both(piece)
            outputs.append(out)
            start += length
        return torch.cat(outputs, -2)

    def definition(self, call: Call, rules: Any = None) -> Definition:
        def function(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if rules is None:
                found = self._run(call, tensors)
            else:
                found = mistakes.run(call, self.options(), tensors, rules)
            real = _real(call, found["out"])
            out = found["out"] if real is None else torch.where(real, found["out"], 0.0)
            return {"out": out, "state": found["state"]}

        return function

    def bounds(self, call: Call, grads: Grads = None, how: Reading = RIGHTLY) -> Bounds:
        found = super().bounds(call, grads, how)
        real = _real(call, found["out"].exact)
        return found if real is None else {**found, "out": found["out"].only(real)}

    def _run(self, call: Call, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the definition, in float64; of tensors of several calls, one behind the other."""
        given = {name: tensor.double() for name, tensor in tensors.items()}
        options = self.options()
        batch, heads, _, value_width = given["value"].shape
        keep, restart = self.read(call)
        times = batch // len(keep) if len(keep) else 1
        real = keep.repeat(times, 1)[:, None, :, None]
        names = ("query", "key", "value")
        given.update(zip(names, options.features(*(given[name] for name in names)), strict=True))
        # a padded token adds nothing, and nothing decays over it
        given["key"] = torch.where(real, given["key"], 0.0)
        given["value"] = torch.where(real, given["value"], 0.0)
        log_decay, beta = given.get("log_decay"), given.get("beta")
        if log_decay is not None:
            log_decay = torch.where(real if log_decay.dim() == 4 else real[..., 0], log_decay, 0.0)
        shape = options.state_shape(call.tensors["query"].shape[3], value_width)
        empty = given["value"].new_zeros(batch, heads, *shape)
        out, state = oracle.recurrence(
            given["query"],
            given["key"],
            given["value"],
            log_decay=log_decay,
            beta=beta,
            scale=call.extras.get("scale", 1.0),
            initial_state=given.get("initial_state", empty),
            restart=None if restart is None else restart.repeat(times, 1),
        )
        return {"out": options.finish(out), "state": state}

    def read(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Return which tokens are real, and where the state is emptied first, (B, L) each.

        Without documents the second is None.
        """
        batch, _, length, _ = call.tensors["value"].shape
        where = batch, length, call.tensors["value"].device
        cut = "documents" in call.mask.parts
        return (
            oracle.real_tokens(call.mask, *where),
            oracle.restarts(call.mask, *where) if cut else None,
        )

    def written(
        self, name: str, variant: Written, given: list[str], *, output: str = "out"
    ) -> tuple[str, list[str]]:
        target, chosen, said = self.target, self.options(), list[str]()
        if chosen != target.variant.options():
            told = ", ".join(f"{key}={value!r}" for key, value in chosen.model_dump().items())
            said.append(f"options={variant.value}.options({told})")
        said.append(f'implementation="{target.implementation}"')
        pair = f"_, {name}" if output == "state" else f"{name}, _"
        arguments = ["query", "key", "value", *given, f"variant={variant.name}", *said]
        return f"{pair} = attnkit.recurrence", arguments


def _real(call: Call, out: Tensor) -> Tensor | None:
    """Return which rows of an output count, (B, 1, L, 1); None without padding: all of them.

    The output may be of several calls, one behind the other along the batch.
    """
    if "padding" not in call.mask.parts:
        return None
    batch, length = len(call.tensors["value"]), out.shape[2]
    real = oracle.real_tokens(call.mask, batch, length, out.device)
    return real.repeat(len(out) // max(1, batch), 1)[:, None, :, None]
