"""What a line of a table of wrong gradients says: of what, how, where and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Tensors = dict[str, Any]

HOW = {"lost": 0.0, "doubled": 2.0, "negated": -1.0, "off": 1.01}
"""What the gradient is multiplied by."""

WHERE: dict[str, Callable[[Tensor], Tensor]] = {
    "last_sample": lambda g: g[1:][-1:],
    "third_sample": lambda g: g[2:3],
    "last_head": lambda g: g[:, 1:][:, -1:],
    "third_head": lambda g: g[:, 2:3],
    "first_token": lambda g: g[:, :, :1],
    "beyond_16": lambda g: g[:, :, 16:],
    "beyond_64": lambda g: g[:, :, 64:],
    "beyond_128": lambda g: g[:, :, 128:],
    "last_column": lambda g: g[..., -1:],
    "column_65": lambda g: g[..., 64:],
    "column_129": lambda g: g[..., 128:],
    "first_rows": lambda g: g[:3],
    "last_row": lambda g: g[-1:],
    "token_100": lambda g: g[:, 100:],
}
"""Which part of it is; everything by default."""

WHEN: dict[str, Callable[[Tensors], bool]] = {
    "when_bidirectional": lambda t: not t["mask"].is_causal,
    "when_capped": lambda t: t["softcap"] is not None,
    "when_biased": lambda t: t["bias"] is not None,
    "when_scaled": lambda t: abs(t["scale"] - t["query"].shape[-1] ** -0.5) > 1e-6,
    "when_grouped": lambda t: len({t[name].shape[1] for name in ("query", "value")}) > 1,
    "when_sunk": lambda t: t["sinks"] is not None,
    "when_one_query": lambda t: t["query"].shape[2] == 1 < t["key"].shape[2],
    "when_one_head": lambda t: t["query"].shape[1] == 1,
    "when_one_sample": lambda t: len(t["query"]) == 1,
    "when_long": lambda t: t["value"].shape[2] > 128,
    "when_wide": lambda t: t["query"].shape[3] > 64,
    "when_query_is_fixed": lambda t: not t["query"].requires_grad,
    "when_key_is_fixed": lambda t: not t["key"].requires_grad,
    "when_value_is_fixed": lambda t: not t["value"].requires_grad,
    "when_packed": lambda t: _memory(t["query"]) == _memory(t["key"]),
    "when_heads_in_tokens": lambda t: t["query"].transpose(1, 2).is_contiguous(),
    "when_expanded": lambda t: 0 in t["key"].stride(),
    "when_no_decay": lambda t: t["log_decay"] is None,
    "when_decay_of_head": lambda t: t["log_decay"] is not None and t["log_decay"].dim() == 3,
    "when_decay_of_channel": lambda t: t["log_decay"] is not None and t["log_decay"].dim() == 4,
    "when_from_a_state": lambda t: bool(t["initial_state"].any()),
    "when_scaled_state": lambda t: t["scale"] != 1.0,
    "when_many_tokens": lambda t: len(t["x"]) > 64,
    "when_many_experts": lambda t: len(t["down"]) > 8,
    "when_one_expert": lambda t: t["experts"].shape[1] == 1,
    "when_padded": lambda t: bool((t["experts"] < 0).any()),
    "when_weights_are_fixed": lambda t: not t["down"].requires_grad,
    "when_tokens_are_fixed": lambda t: not t["x"].requires_grad,
    "when_down_is_fixed": lambda t: t["gate_up"].requires_grad and not t["down"].requires_grad,
}
"""With which inputs; with any by default. A part of a mask, by its name, is one as well."""


class Changed(torch.autograd.Function):
    """Returns what it is given; what is passed back through it is changed."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.change(grad), None


class Line:
    """A line of a table."""

    def __init__(self, line: str) -> None:
        self.what, how, *rest = line.split()
        self.name = "_".join(line.split()).replace(".", "_")
        self.factor = HOW[how]
        self.part = next((WHERE[word] for word in rest if word in WHERE), lambda grad: grad)
        self.when = [word for word in rest if word not in WHERE]

    def holds(self, given: Tensors) -> bool:
        return all(
            WHEN[word](given) if word in WHEN else word in given["mask"].parts for word in self.when
        )

    def changed(self, tensor: Tensor) -> Tensor:
        return Changed.apply(tensor, self.change)

    def change(self, grad: Tensor) -> Tensor:
        grad = grad.clone()
        self.part(grad).mul_(self.factor)
        return grad

    def inside(self, given: Tensors) -> Tensors:
        """Return what is given, with the wrong gradient of one of it."""
        tensor = given.get(self.what)
        wrong = tensor is not None and self.holds(given)
        return {**given, self.what: self.changed(tensor)} if wrong else given


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def lines(table: str) -> Iterator[Line]:
    """Read a table."""
    return (Line(line) for line in table.splitlines() if line.strip())
