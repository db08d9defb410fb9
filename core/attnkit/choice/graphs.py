"""The choice of an implementation while ``torch.compile`` traces a graph.

A graph must not depend on Python objects, nor be tied to one length. So sizes are reduced to
classes, the choice is made by a function whose answer is a constant of the graph, and the answer
is a plain key into the table of `attnkit.choice.decision`.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, Protocol, TypeVar

import torch

from attnkit.choice.decision import choose_now, resolve
from attnkit.interface import Variant
from attnkit.problem import LENGTH_CLASSES, Problem
from attnkit.registry.registry import default

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
    told: list[tuple[str, Any]] = []
    for field in fields(problem):
        given = getattr(problem, field.name)
        # a set, which no graph can hold
        told.append((field.name, tuple(sorted(given)) if isinstance(given, frozenset) else given))
    plain = dict(told)
    plain["batch"] = 1 if problem.batch == 1 else 2
    plain["query_length"] = queries = _class_of(problem.query_length)
    keys = plain.get("key_length")
    if keys is not None:
        plain["key_length"] = _class_of(keys)
        if keys == problem.query_length:
            plain["key_length"] = queries
        elif keys > problem.query_length:
            plain["key_length"] = max(_class_of(keys), queries + 1)
        else:
            plain["query_length"] = max(queries, _class_of(keys) + 1)
    constants = tuple((each, settled(given)) for each, given in plain.items())
    key: str = _constant_key(name, implementation, fallback, constants)
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
    constants: tuple[tuple[str, Any], ...],
) -> str:
    """Choose while a graph is traced; the answer becomes a constant of the graph."""
    told: dict[str, Any] = {**dict(constants), "compiling": True}
    told |= {name: frozenset(given) for name, given in constants if isinstance(given, tuple)}
    problem = default().family(told["family"]).problem(**told)
    return choose_now(name, problem, implementation, fallback).key
