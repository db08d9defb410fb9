"""What the two doors share, `adapt` and `adapt_layer`: keywords, targets, names, sources."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError

from attnkit.errors import ArgumentError
from attnkit.promises import Promises
from attnkit.registry import registry
from attnkit_contracts.foreign.claims import names_of
from attnkit_contracts.foreign.conventions import Declaration

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit.interface import Variant

    Target = str | Callable[..., Any]

P = ParamSpec("P")
D = TypeVar("D", bound=Declaration)


def takes_fields_of(
    record: Callable[P, D],
) -> Callable[[Callable[[Target, D], Variant]], Callable[Concatenate[Target, P], Variant]]:
    """Let a door take the fields of a record as keywords: it is handed the record they make."""
    keywords = inspect.signature(record).parameters.values()

    def opened(door: Callable[[Target, D], Variant]) -> Callable[Concatenate[Target, P], Variant]:
        target, _ = inspect.signature(door).parameters.values()

        @wraps(door)
        def adapted(*given: Any, **told: Any) -> Variant:
            named = signature.bind(*given, **told).arguments
            return door(named.pop(target.name), made(record, **named))

        signature = inspect.signature(door).replace(parameters=[target, *keywords])
        # both are what help() shows; the type of functions does not declare the signature
        adapted.__signature__ = signature  # type: ignore[attr-defined]
        adapted.__doc__ = f"{inspect.getdoc(door)}\n\nKeywords:\n{_told_fields(record)}"
        return adapted

    return opened


def _told_fields(record: Any) -> str:
    fields = record.model_fields.items()
    return "\n".join(f"    {field.alias or name}: {field.description}" for name, field in fields)


def made(record: Callable[..., D], **told: Any) -> D:
    """Make a record.

    Raises:
        ArgumentError: A value is not allowed, or the declaration contradicts itself.
    """
    try:
        return record(**told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    if isinstance(context.get("error"), ArgumentError):
        raise context["error"]
    name = ".".join(map(str, first["loc"]))
    allowed = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
    must = {
        "literal_error": f"must be one of {allowed}",
        "int_type": "must be a positive int",
        "greater_than": "must be a positive int",
        "string_type": "must be a str",
    }.get(first["type"], f"is wrong ({first['msg']})")
    raise ArgumentError(f"{name} {must}, got {first['input']!r}")


def load_target(target: Target) -> Callable[..., Any]:
    """Import what ``"package.module:attribute"`` names; return a callable as it is.

    Raises:
        ArgumentError: It is not there, or cannot be called.
    """
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise ArgumentError(f"function must be 'package.module:attribute', got {target!r}")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"cannot import {target!r}: {error}") from error
    if not callable(found):
        raise ArgumentError(f"{target!r} is not callable")
    loaded: Callable[..., Any] = found
    return loaded


def plain_name(target: Callable[..., Any]) -> str:
    """Return what a callable is called."""
    return str(getattr(target, "__name__", type(target).__name__))


def summary(target: Callable[..., Any]) -> str:
    """Return the summary of a variant of this target."""
    return f"{getattr(target, '__module__', '')}.{plain_name(target)}, as declared."


def free_name(name: str | None, target: Callable[..., Any]) -> str:
    """Return the name of a variant of this target.

    Raises:
        ArgumentError: It is no identifier, or taken.
    """
    found = re.sub(r"\W", "_", plain_name(target)) if name is None else name
    if found in registry.default().names():
        raise ArgumentError(f"the name {found!r} is taken by a variant; give another with name=")
    if not found.isidentifier():
        raise ArgumentError(f"name must be an identifier, got {found!r}")
    return found


def source(door: str, target: Target, convention: Declaration) -> str | None:
    """Return a call of a door with everything declared that is not its default.

    None where nothing imports the target, or where a value cannot be written down.
    """
    if not isinstance(target, str):
        module, path = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
        if not module or module == "__main__" or "<" in path or not path:
            return None
        target = f"{module}:{path}"
    told = [repr(target)]
    for name, field in type(convention).model_fields.items():
        value = getattr(convention, name)
        if value == field.default:
            continue
        written = names_of(value) if isinstance(value, Promises) else value
        if written is None or not _is_plain(written):
            return None
        told.append(f"{field.alias or name}={written!r}")
    return f"{door}({', '.join(told)})"


def _is_plain(value: object) -> bool:
    """Return whether Python reads back what it writes."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
