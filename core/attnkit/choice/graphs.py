"""The choice of an implementation while ``torch.compile`` traces a graph.

A graph must not depend on Python objects, nor be tied to one length. So sizes are reduced to
classes, the choice is made by a function whose answer is a constant of the graph, and the answer
is a plain key into the table of `attnkit.choice.decision`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from attnkit.choice.decision import choose_now, resolve
from attnkit.problem import LENGTH_CLASSES, Problem

if TYPE_CHECKING:
    from attnkit.interface import Variant

F = TypeVar("F")


class _Decorator(Protocol):
    def __call__(self, function: F, /) -> F: ...


# which has no types of its own
_constant: _Decorator = torch.compiler.assume_constant_result
"""Has a function called while a graph is traced; what it returns is a constant of the graph."""

VARIANTS: dict[str, Variant] = {}
"""What `variant_while_compiling` has found."""


def key_while_compiling(
    name: str, problem: Problem, implementation: str, fallback: tuple[str, ...]
) -> str:
    """Ask `_constant_key` with sizes that do not tie a graph to one length."""
    queries = _class_of(problem.query_length)
    keys = queries
    if problem.key_length != problem.query_length:
        keys = _class_of(problem.key_length)
        if problem.key_length > problem.query_length:
            keys = max(keys, queries + 1)
        else:
            queries = max(queries, keys + 1)
    parts = ",".join(sorted(problem.mask_parts))
    heads, kv_heads = settled(problem.heads), settled(problem.kv_heads)
    widths = (settled(problem.head_dim), settled(problem.value_head_dim))
    key: str = _constant_key(
        name,
        implementation,
        fallback,
        problem.family,
        problem.device,
        problem.dtype,
        1 if problem.batch == 1 else 2,
        (heads, kv_heads),
        (queries, keys),
        widths,
        parts,
        settled(problem.window),
        problem.decay,
        (
            problem.causal,
            problem.bias,
            settled(problem.scale),
            problem.softcap,
            problem.sinks,
            settled(problem.dropout),
            problem.beta,
            problem.state,
            problem.gradients,
        ),
    )
    return key


def settled(given: Any) -> Any:
    """Return what a number of a graph is, or those of a tuple, and tie the graph to that.

    With ``dynamic=True`` numbers are symbols, which ``int()`` and ``bool()`` leave as they are.
    """
    if isinstance(given, tuple):
        return tuple(settled(each) for each in given)
    (same,) = {given}
    return same


def variant_while_compiling(name: str) -> Variant:
    """Find a variant by its name."""
    return VARIANTS[_constant_name(name)]


@_constant
def _constant_name(name: str) -> str:
    (VARIANTS[name],) = resolve(name)
    return name


@_constant
def settings_while_compiling(
    name: str, options: tuple[tuple[str, Any], ...], implementation: str
) -> str:
    """Write as JSON what says how a recurrence runs; a constant of the graph.

    Args:
        name: The variant's.
        options: Each field and what it is set to.
        implementation: Its name.
    """
    (variant,) = resolve(name)
    written = variant.options(**dict(options)).model_dump_json()
    return json.dumps({"variant": name, "options": written, "implementation": implementation})


def _class_of(length: int) -> int:
    for bound in LENGTH_CLASSES:
        if length <= bound:
            return bound
    raise AssertionError(length)


@_constant
def _constant_key(
    name: str,
    implementation: str,
    fallback: tuple[str, ...],
    family: Any,
    device: str,
    dtype: str,
    batch: int,
    heads: tuple[int, int],
    lengths: tuple[int, int],
    widths: tuple[int, int],
    parts: str,
    window: int | None,
    decay: Any,
    switches: tuple[bool, ...],
) -> str:
    """Choose while a graph is traced; the answer becomes a constant of the graph."""
    causal, bias, scale, softcap, sinks, dropout, beta, state, gradients = switches
    problem = Problem(
        family=family,
        device=device,
        dtype=dtype,
        batch=batch,
        heads=heads[0],
        kv_heads=heads[1],
        query_length=lengths[0],
        key_length=lengths[1],
        head_dim=widths[0],
        value_head_dim=widths[1],
        causal=causal,
        mask_parts=frozenset(part for part in parts.split(",") if part),  # type: ignore[misc]  # split() gives str, they are MaskPart
        window=window,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout=dropout,
        decay=decay,
        beta=beta,
        state=state,
        gradients=gradients,
        compiling=True,
    )
    return choose_now(name, problem, implementation, fallback).key
