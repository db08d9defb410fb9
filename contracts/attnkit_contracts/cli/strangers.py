"""Code that is no plugin, on the command line: what is declared of it, read from words."""

from __future__ import annotations

import ast
import inspect
import sys
from typing import TYPE_CHECKING, Any

import typer

from attnkit.errors import ArgumentError
from attnkit_contracts.foreign.conventions import Convention, LayerConvention
from attnkit_contracts.foreign.functions import adapt
from attnkit_contracts.foreign.layers import adapt_layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from attnkit.interface import Variant
    from attnkit_contracts.cli.options import Code, FunctionCode, LayerCode
    from attnkit_contracts.foreign.conventions import Declaration

WORDS = {"decay_argument": "log_decay", "x_arguments": "x"}
"""The words of ``--argument`` that are not those of the field."""


def variant(target: str, code: Code, function: FunctionCode, layer: LayerCode) -> Variant:
    """Make a variant of what is named module:name.

    A file of the current folder can be named: it is searched first, as Python itself would.
    """
    sys.path[:0] = [""] if "" not in sys.path else []
    is_layer = code.family == "mixer"
    record: type[Declaration] = LayerConvention if is_layer else Convention
    door = adapt_layer if is_layer else adapt
    said = dict(_said(record, code, function, layer))
    for keyword in said:
        if keyword not in inspect.signature(door).parameters:
            raise typer.BadParameter(f"{keyword} is not about family {code.family}; leave it out")
    return door(target, **said)


def told_of(code: Code, function: FunctionCode) -> dict[str, Any]:
    """Return what is told of a function, as fields of a `Convention`; nothing of what is not."""
    sys.path[:0] = [""] if "" not in sys.path else []
    told = {
        "family": code.family,
        "promises": ",".join(code.promise or ()),
        "layout": code.layout,
        "mask": code.mask,
        "fixed": values(code.fixed or ()),
        **vars(function),
    }
    return named_arguments(Convention, code.argument or ()) | {n: v for n, v in told.items() if v}


def _said(
    record: type[Declaration], code: Code, function: FunctionCode, layer: LayerCode
) -> Iterator[tuple[str, Any]]:
    """Yield the fields that are told, and their values."""
    yield "promises", ",".join(code.promise or ())
    if record is Convention:
        yield "family", code.family
    yield from named_arguments(record, code.argument or ()).items()
    alike = {"layout": code.layout, "mask": code.mask, "fixed": values(code.fixed or ())}
    own = {**vars(layer), "construct": values(layer.construct or ())}
    for field, value in {**alike, **vars(function), **own}.items():
        if value:
            yield field, value


def named_arguments(record: type[Declaration], given: Iterable[str]) -> dict[str, Any]:
    """Return fields of a convention from ``scale=softmax_scale`` and ``x=query,key,value``.

    ``scale=none`` is None: of what takes none.

    Raises:
        ArgumentError: Not such a pair, or there is no such argument.
    """
    fields = {
        WORDS.get(field, field.removesuffix("_argument")): field
        for field in record.model_fields
        if field.endswith(("_argument", "_arguments"))
    }
    found: dict[str, Any] = {}
    for pair in given:
        what, _, name = pair.partition("=")
        if what not in fields or not name:
            raise ArgumentError(
                f"an argument is told as NAME=ITS_NAME with NAME of {', '.join(fields)}, "
                f"got {pair!r}"
            )
        found[fields[what]] = tuple(name.split(",")) if what == "x" else name
        if name == "none":
            found[fields[what]] = None
    return found


def values(given: Iterable[str]) -> dict[str, Any]:
    """Return arguments from ``embed_dim=32``, with values as Python writes them, or as text.

    Raises:
        ArgumentError: Not such a pair.
    """
    found: dict[str, Any] = {}
    for pair in given:
        name, _, value = pair.partition("=")
        if not name.isidentifier() or not value:
            raise ArgumentError(f"a value is told as NAME=VALUE, got {pair!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found
