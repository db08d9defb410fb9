"""A recurrence in a graph of ``torch.compile``: one operator of torch, whatever the length.

Traced as it stands, a recurrence would be a graph of its own for every number of chunks, and
masks could not be read. As an operator it runs as it does without a compiler, implementations
that cannot be traced included. Its gradients come from a second run, as under checkpointing.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from attnkit.choice.decision import resolve
from attnkit.masks.codes import decode
from attnkit.masks.constructors import Mask, Sizes, full
from attnkit.masks.recognition import lift_causal
from attnkit.masks.tensors import Unread
from attnkit.operations.recurrence_run import Given, run

_GIVEN = (
    "str settings, Tensor query, Tensor key, Tensor value, Tensor? log_decay, Tensor? beta, "
    "Tensor initial_state, float? scale, SymInt seen, "
    "str mask_words, SymInt[] mask_numbers, Tensor[] mask_tensors"
)
_TENSORS = slice(1, 7)
"""Where the arguments are that may need gradients."""


def _run(settings: str, *given: Any) -> tuple[Tensor, Tensor]:
    """Run `attnkit.recurrence`; what is no tensor and no number is told by ``settings``, JSON."""
    told = json.loads(settings)
    (variant,) = resolve(told["variant"])
    *tensors, scale, seen, words, numbers, held = given
    asked = Given(*tensors)
    batch, _, length, _ = asked.value.shape
    out, state = run(
        variant,
        asked,
        scale=scale,
        mask=_read(decode(words, numbers, held), Sizes(batch, 1, length, seen + length)),
        seen=seen,
        options=variant.options.model_validate_json(told["options"]),
        implementation=told["implementation"],
    )
    return out.contiguous(), state.contiguous()


operator = torch.library.custom_op(
    "attnkit::recurrence", _run, mutates_args=(), schema=f"({_GIVEN}) -> (Tensor, Tensor)"
)


def _read(mask: Mask, sizes: Sizes) -> Mask:
    """Find the structure of tensors that a host's mask holds."""
    read = full()
    for part in mask.conjuncts():
        read &= lift_causal(part.tensor, sizes) if isinstance(part, Unread) else part
    return read


@operator.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor]:
    _, _, value, _, _, initial_state = given[_TENSORS]
    return value.new_empty(value.shape), initial_state.new_empty(initial_state.shape)


@torch.library.custom_op(
    "attnkit::recurrence_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor grad_state, bool[] needed, {_GIVEN}) -> Tensor[]",
)
def backward_operator(
    grad_out: Tensor, grad_state: Tensor, needed: list[bool], *given: Any
) -> list[Tensor]:
    """Return the gradients of the tensors that need one, from a second run."""
    tensors: list[Any] = [
        None if each is None else each.detach().requires_grad_(need)
        for each, need in zip(given[_TENSORS], needed, strict=True)
    ]
    leaves = [each for each in tensors if each is not None and each.requires_grad]
    again: Any = (given[0], *tensors, *given[_TENSORS.stop :])
    # torch switches autograd off inside operators, and has no public way to switch it on
    included = torch._C._dispatch_tls_local_include_set()
    excluded = torch._C._dispatch_tls_local_exclude_set()
    excluded = excluded.remove(torch._C.DispatchKey.AutogradFunctionality)
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        outs = _run(*again)
        found = torch.autograd.grad(
            outs, leaves, (grad_out, grad_state), allow_unused=True, materialize_grads=True
        )
    return [each.contiguous() for each in found]


@backward_operator.register_fake
def _(grad_out: Tensor, grad_state: Tensor, needed: list[bool], *given: Any) -> list[Tensor]:
    pairs = zip(given[_TENSORS], needed, strict=True)
    return [each.new_empty(each.shape) for each, need in pairs if need]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *rest, masks = inputs
    ctx.rest = [*rest[: _TENSORS.start], *rest[_TENSORS.stop :]]
    ctx.save_for_backward(*inputs[_TENSORS], *masks)


def _give_back(ctx: Any, grad_out: Tensor, grad_state: Tensor) -> tuple[Any, ...]:
    tensors, masks = ctx.saved_tensors[:6], list(ctx.saved_tensors[6:])
    needed = list(ctx.needs_input_grad[_TENSORS])
    settings, *rest = ctx.rest
    found = iter(backward_operator(grad_out, grad_state, needed, settings, *tensors, *rest, masks))
    gradients = [next(found) if need else None for need in needed]
    # torch takes a list without numbers for one without tensors, and wants a list back
    none: list[None] | None = None if rest[-1] else []
    return (None, *gradients, None, None, None, none, [None] * len(masks))


operator.register_autograd(_give_back, setup_context=_keep)
