"""Operations as subjects: `attnkit.attention` and `attnkit.recurrence` of one implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.masks.constructors import Mask, Sizes
from attnkit_contracts.definitions import oracle
from attnkit_contracts.inputs.calls import Call, drawn, mask_part, normal
from attnkit_contracts.subjects.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from attnkit.promises import Decay, MaskPart


class SoftmaxOperation(Subject):
    """`attnkit.attention` of one implementation of one variant."""

    @property
    def heads(self) -> int:
        """As many query heads as an ordinary call has."""
        return 1 if self.promises.heads == "one" else 2

    def draw(
        self,
        label: str,
        *,
        batch: int = 2,
        length: int = 33,
        keys: int | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        width: int = 16,
        value_width: int | None = None,
        mask: Mask | None = None,
    ) -> Call:
        """Return a call of L queries and S keys; see `Subject.draw`."""
        draw = self.random(label)
        keys = length if keys is None else keys
        heads = self.heads if heads is None else heads
        kv_heads = heads if kv_heads is None else kv_heads
        value_width = width if value_width is None else value_width
        if mask is None:
            mask = self.mask(Sizes(batch, heads, length, keys))
        tensors = {
            "query": normal(draw, batch, heads, length, width),
            "key": normal(draw, batch, kv_heads, keys, width),
            "value": normal(draw, batch, kv_heads, keys, value_width),
        }
        return Call({name: self.cast(tensor) for name, tensor in tensors.items()}, mask)

    def mask(self, sizes: Sizes, *, causal: bool | None = None, wide: bool = False) -> Mask:
        """Return the plainest mask that the promises allow.

        Args:
            sizes: Of the call.
            causal: Whether later keys are hidden; None for what is promised, causal before not.
            wide: Let the parts that a variant cannot do without hide nothing.
        """
        causal = self.promises.causal if causal is None else causal
        mask = attnkit.causal() if causal else attnkit.full()
        for part in self.promises.needs:
            mask &= _open(part, sizes, self.device) if wide else self.part(part, sizes)
        return mask

    def part(self, part: MaskPart, sizes: Sizes) -> Mask:
        """Return a mask of this kind."""
        return mask_part(part, sizes, self.device)

    def __call__(self, call: Call) -> Tensor:
        self.calls.append(call)
        self.last = f"attnkit.attention({call.describe()})"
        return attnkit.attention(
            **call.arguments(),
            mask=call.mask,
            variant=self.target.variant,
            implementation=self.target.implementation,
        )

    def exact(self, call: Call) -> oracle.Softmax:
        """Return the definition's answer in float64."""
        return oracle.softmax(**call.arguments(), mask=call.mask)

    def read(self, call: Call) -> tuple[Tensor]:
        """Return what the definition reads of a call's mask: (B or 1, H or 1, L, S)."""
        batch, heads, queries, _ = call.tensors["query"].shape
        sizes = Sizes(batch, heads, queries, call.tensors["key"].shape[2])
        return (call.mask.to_bool(sizes, call.tensors["query"].device),)

    def definition(self, call: Call) -> Callable[[Mapping[str, Tensor]], Tensor]:
        def function(tensors: Mapping[str, Tensor]) -> Tensor:
            if self.target.variant.relation == "exact":
                return oracle.softmax(**call.given(**tensors).arguments(), mask=call.mask).out
            # what it computes is its own: then the reference is the definition
            return attnkit.attention(
                **call.given(**tensors).arguments(),
                mask=call.mask,
                variant=self.target.variant,
                implementation="reference",
            )

        return function


def _open(part: MaskPart, sizes: Sizes, device: str) -> Mask:
    """Return a mask of this kind that hides nothing."""
    batch, _, queries, keys = sizes
    match part:
        case "window":
            return attnkit.sliding_window(max(1, keys + queries))
        case "padding":
            return attnkit.padding(torch.tensor([keys] * batch, device=device))
        case "documents":
            return attnkit.documents(torch.zeros(batch, keys, dtype=torch.int64, device=device))
        case "prefix":
            return attnkit.prefix_lm(torch.tensor([keys] * batch, device=device))
        case "dense":
            return attnkit.dense(torch.ones(queries, keys, dtype=torch.bool, device=device))
        case "blocks":
            return attnkit.blocks(torch.ones(1, 1, dtype=torch.bool, device=device), max(1, keys))
        case "union":
            return attnkit.full() | attnkit.causal()


class RecurrenceOperation(Subject):
    """`attnkit.recurrence` of one implementation of one variant, with default options."""

    @property
    def decay(self) -> Decay:
        """The form of decay of an ordinary call: the richest that is promised."""
        return max(self.promises.decay or ("none",), key=("none", "head", "channel").index)

    def draw(
        self,
        label: str,
        *,
        batch: int = 2,
        length: int = 33,
        heads: int = 2,
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
        if self.promises.beta if beta is None else beta:
            shapes["beta"] = (batch, heads, length)
        tensors = {
            name: self.cast(drawn(name, shape, draw, "recurrence"))
            for name, shape in shapes.items()
        }
        if state:
            sizes = self.options().state_shape(width, value_width)
            tensors["initial_state"] = self.wide(normal(draw, batch, heads, *sizes))
        return Call(tensors, attnkit.full() if mask is None else mask)

    def options(self) -> Any:
        """Return the variant's options, with chunks so short that an ordinary call has several."""
        options = self.target.variant.options
        return options(**({"chunk_size": 16} if "chunk_size" in options.model_fields else {}))

    def both(self, call: Call, options: Any = None) -> tuple[Tensor, Tensor]:
        """Return the output, (B, H, L, Ev), and the final state."""
        self.calls.append(call)
        self.last = f"attnkit.recurrence({self.target.variant.name!r}, {call.describe()})"
        return attnkit.recurrence(
            variant=self.target.variant,
            **call.arguments(),
            mask=call.mask,
            options=self.options() if options is None else options,
            implementation=self.target.implementation,
        )

    def __call__(self, call: Call) -> Tensor:
        return self.both(call)[0]

    def definition(self, call: Call) -> Callable[[Mapping[str, Tensor]], Tensor]:
        return lambda tensors: self.exact(call, tensors)[0]

    def exact(
        self, call: Call, tensors: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the definition's output and final state, in float64.

        Args:
            call: Its mask and extras.
            tensors: In place of the call's; of several calls, one behind the other along the batch.
        """
        given = {name: tensor.double() for name, tensor in (tensors or call.tensors).items()}
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
        return options.finish(out), state

    def read(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Return what the definition reads of a call's mask.

        Returns:
            Which tokens are real, and where the state is emptied first; (B, L) each, the second
            None where there are no documents.
        """
        batch, _, length, _ = call.tensors["value"].shape
        where = batch, length, call.tensors["value"].device
        cut = "documents" in call.mask.parts
        return (
            oracle.real_tokens(call.mask, *where),
            oracle.restarts(call.mask, *where) if cut else None,
        )
