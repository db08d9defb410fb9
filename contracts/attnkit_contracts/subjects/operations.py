"""Operations as subjects: what `attnkit.attention` and `attnkit.recurrence` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.masks.padded_tokens import hide_padding
from attnkit_contracts.subjects.subject import Subject

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit.masks.constructors import Mask
    from attnkit.promises import SpeedClaim
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Function
    from attnkit_contracts.subjects.target import Target


class Operation(Subject):
    """An operation of one implementation of one variant.

    Attributes:
        shared: The tensors with a head for several heads of the output.
    """

    shared: tuple[str, ...]

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.needs = target.promises.needs

    def draw(
        self,
        label: str,
        *,
        batch: int = 2,
        length: int = 33,
        heads: int | None = None,
        width: int = 16,
        value_width: int | None = None,
        mask: Mask | None = None,
    ) -> Call:
        """Return a call of L tokens; see `Subject.draw`."""
        raise NotImplementedError  # every family's own

    def draw_shared(self, label: str, *, length: int, heads: int, shared: int) -> Call:
        """Return a call of one sample, with so many heads in the tensors that are `shared`."""
        raise NotImplementedError  # every family's own

    def draw_claimed(self, label: str, claim: SpeedClaim) -> Call:
        """Return a call that a claim of speed is about."""
        width, heads = claim.head_dim, claim.heads
        return self.draw(label, batch=claim.batch, length=claim.length, heads=heads, width=width)

    def without_padding(self, call: Call) -> Call:
        if "padding" not in call.mask.parts:
            return call
        key, value = hide_padding(call.mask, call.tensors["key"], call.tensors["value"])
        return call.given(key=key, value=value)

    def called(self, call: Call, variant: Variant | str, implementation: str) -> Function:
        """Return what a user calls, of any variant of the family and with its default options."""
        raise NotImplementedError  # every family's own
