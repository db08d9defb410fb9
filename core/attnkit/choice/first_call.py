"""A small real call of an implementation: does it run here at all?

Promises say what should run; drivers, compilers and package versions have the last word. Each
implementation is tried once per device and dtype, before the first call it would win.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from attnkit.interface import load
from attnkit.masks.constructors import blocks, causal, full, sliding_window
from attnkit.problem import unmet

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.interface import Implementation, Variant
    from attnkit.masks.constructors import Mask
    from attnkit.problem import Problem

LENGTH = 16

_outcomes: dict[tuple[object, str, str], str | None] = {}


def probe(variant: Variant, implementation: Implementation, problem: Problem) -> str | None:
    """Return why a small call like this one fails, or None where it runs."""
    key = (implementation.function, problem.device, problem.dtype)
    if key not in _outcomes:
        try:
            function = load(implementation.function)
            small = _smaller(problem)
            # one that does not take small calls is first tried by a real one
            if not unmet(small, implementation.promises) and not implementation.refuses(small):
                _run(function, variant, small)
        # whatever goes wrong in a plugin is a reason not to choose it, and is told
        except Exception as error:
            _outcomes[key] = f"a small call fails here: {type(error).__name__}: {error}"
        else:
            _outcomes[key] = None
    return _outcomes[key]


def _smaller(problem: Problem) -> Problem:
    keys = min(problem.key_length, LENGTH)
    queries = keys if problem.query_length == problem.key_length else max(1, keys // 2)
    return replace(
        problem,
        batch=1,
        query_length=queries,
        key_length=keys if queries <= problem.query_length else queries,
        mask_parts=problem.mask_parts & {"window", "blocks"},
        window=LENGTH if "window" in problem.mask_parts else None,
        bias=False,
        softcap=False,
        sinks=False,
        dropout=False,
        compiling=False,
        gradients=False,
    )


def _run(function: Callable[..., Any], variant: Variant, problem: Problem) -> None:
    device, dtype = torch.device(problem.device), getattr(torch, problem.dtype)

    def ones(heads: int, length: int, width: int) -> Tensor:
        return torch.ones(1, heads, length, width, device=device, dtype=dtype)

    length, keys, width = problem.query_length, problem.key_length, problem.head_dim
    groups, value_width = problem.kv_heads, problem.value_head_dim
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if problem.family == "softmax":
            tensors = ones(problem.heads, length, width), ones(groups, keys, width)
            rules = {"bias": None, "softcap": None, "sinks": None, "dropout_p": 0.0}
            value = ones(groups, keys, value_width)
            function(*tensors, value, mask=_mask(problem), scale=1.0, **rules)
        elif problem.family == "recurrence":
            _run_recurrence(function, variant, problem, ones)
        # a mixture of experts keeps its weights in a record of its own: importing it must do


def _run_recurrence(
    function: Callable[..., Any],
    variant: Variant,
    problem: Problem,
    ones: Callable[[int, int, int], Tensor],
) -> None:
    length, width = problem.query_length, problem.head_dim
    query, value = (
        ones(problem.kv_heads, length, width),
        ones(problem.heads, length, problem.value_head_dim),
    )
    decay = {"none": None, "head": -ones(problem.heads, length, 1)[..., 0]}
    decay["channel"] = -ones(problem.heads, length, width)
    options = variant.options()
    inputs = options.features(query, query, value)
    wide = torch.promote_types(value.dtype, torch.float32)
    shape = (1, problem.heads, *options.state_shape(width, problem.value_head_dim))
    function(
        *inputs,
        log_decay=decay[problem.decay],
        beta=ones(problem.heads, length, 1)[..., 0] if problem.beta else None,
        scale=1.0,
        initial_state=torch.zeros(shape, device=value.device, dtype=wide),
        options=options,
    )


def _mask(problem: Problem) -> Mask:
    mask = causal() if problem.causal else full()
    if "window" in problem.mask_parts:
        mask = mask & sliding_window(LENGTH)
    if "blocks" in problem.mask_parts:
        device = torch.device(problem.device)
        mask = mask & blocks(torch.ones(1, 1, dtype=torch.bool, device=device), LENGTH)
    return mask
