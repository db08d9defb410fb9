"""Softmax operations that end in a custom operation of torch, registered rightly and wrongly.

The operation returns a copy of what it is given, and so does its gradient: only what is said of
it is wrong. `MUTANTS` says which check must catch it, and on which subject.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_integration import COMPILED
from mutants_softmax import attend, variant_of
from torch import Tensor
from torch.library import CustomOpDef, custom_op

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit.interface import Variant


def copied(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def turned(x: Tensor) -> Tensor:
    """The same numbers, column after column."""
    return x.mT.clone(memory_format=torch.contiguous_format).mT


def scratched(x: Tensor) -> Tensor:
    """Uses its input as scratch."""
    out = copied(x)
    x.detach().zero_()
    return out


def like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def wider(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] + 1)


def doubled(x: Tensor) -> Tensor:
    return like(x).double()


def _define(
    name: str,
    real: Callable[[Tensor], Tensor] = copied,
    *,
    fake: Callable[[Tensor], Tensor] = like,
    backward: Callable[[Tensor], Tensor] | None = copied,
) -> CustomOpDef:
    made = custom_op(f"attnkit_tests::{name}", real, mutates_args=())
    made.register_fake(fake)
    if backward is not None:
        made.register_autograd(lambda _, gradient: backward(gradient))
    return made


def _without_autograd() -> Any:
    """Registered for the CPU alone, by hand: to autograd it is a constant."""
    library.define("by_hand(Tensor x) -> Tensor")
    library.impl("by_hand", copied, "CPU")
    torch.library.register_fake("attnkit_tests::by_hand", like)
    return torch.ops.attnkit_tests.by_hand


library = torch.library.Library("attnkit_tests", "FRAGMENT")

GRADIENT = _define("gradient", backward=None)
TURNED_GRADIENT = _define("turned_gradient", turned, backward=None)
RIGHT_COPY = _define("copy", backward=GRADIENT)


def _ending_in(operation: Callable[[Tensor], Tensor], name: str, **promised: Any) -> Variant:
    def function(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        return operation(attend(query, key, value, **given))

    return variant_of(name, function, transforms=(), **promised)


def _wrong(name: str, *given: Any, **registered: Any) -> Variant:
    return _ending_in(_define(name, *given, **registered), name)


def _compiled(name: str, *given: Any, **registered: Any) -> Variant:
    return _ending_in(_define(name, *given, **registered), name, **COMPILED)


def _right() -> Variant:
    made = _ending_in(RIGHT_COPY, "custom", **COMPILED)
    promises = made.promises.model_copy(update={"state": True, "reorder": True})
    return replace(made, name="right_custom_operation", promises=promises)


RIGHT = _right()

MUTANTS = (
    (_wrong("fake_strides", turned), "I2.opcheck", "wrong"),
    (_wrong("fake_shape", fake=wider), "I2.opcheck", "wrong"),
    (_wrong("fake_dtype", fake=doubled), "I2.opcheck", "wrong"),
    (_wrong("mutates_undeclared", scratched), "I2.opcheck", "wrong"),
    (_wrong("no_formula", backward=None), "I2.opcheck", "wrong"),
    (_wrong("wrong_formula", backward=lambda g: 1.01 * g), "I2.opcheck", "wrong"),
    (_wrong("fake_strides_of_the_gradient", backward=TURNED_GRADIENT), "I2.opcheck", "wrong"),
    (_ending_in(_without_autograd(), "by_hand"), "I2.opcheck", "wrong"),
    (_compiled("fake_strides_compiled", turned), "I3.meta", "wrong"),
    (_compiled("fake_dtype_compiled", fake=doubled), "I3.meta", "wrong"),
)
