"""Rewrite the parts of the reference pages that follow from the code.

    python docs/_build/generate.py

A page holds a part between ``<!-- generated: NAME -->`` and ``<!-- end -->``; `PARTS` says which
function makes it. ``tests/docs/test_docs.py`` compares the committed pages with these functions.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnkit
import attnkit_contracts
from attnkit import errors, hookspecs
from attnkit.families import BUILT_IN
from attnkit.interface import (
    FeedforwardFunction,
    Implementation,
    LayerDefinition,
    RecurrenceFunction,
    Variant,
)
from attnkit.promises import ALL_DTYPES, ALL_MASK_PARTS, Promises, SpeedClaim
from attnkit.registry import registry
from attnkit_contracts import pytest_plugin
from attnkit_contracts.catalogue import GROUPS, TIERS
from attnkit_contracts.inputs import factors
from house import drawn
from public_surface import PUBLIC, names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from attnkit_contracts import Check

FOLDER = Path(__file__).parents[1]
PART = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
OWNER = "attnkit"
LINE = 96


def public_names() -> Iterator[str]:
    """List every public name of attnkit."""
    rows = ((f"`{name}`", _kind(value), _headline(value)) for name, value in _public().items())
    yield from _table(("name", "kind", "what"), rows)


def calls() -> Iterator[str]:
    """Show the functions a user calls, with their docstrings."""
    for name, value in _public().items():
        if inspect.isfunction(value) and name not in ("hookimpl",):
            yield from _section(f"attnkit.{name}", value)


def declarations() -> Iterator[str]:
    """Show the fields of the declarations, from their docstrings."""
    for cls in (Variant, Implementation):
        yield f"### `attnkit.{cls.__name__}`"
        yield ""
        yield f"{_headline(cls)}"
        yield ""
        rows = ((f"`{name}`", text) for name, text in _attributes(cls))
        yield from _table(("field", "meaning"), rows)
    for base in (attnkit.LayerConfig, attnkit.Options):
        yield f"### `attnkit.{base.__name__}`"
        yield ""
        yield _headline(base)
        yield ""
        fields, methods = list(_fields(base)), list(_methods(base))
        if fields:
            yield from _table(("field", "default", "meaning"), fields)
        if methods:
            yield from _table(("method", "meaning"), methods)


def promises() -> Iterator[str]:
    """List every promise."""
    yield from _table(("promise", "default", "meaning"), _fields(Promises))


def protocols() -> Iterator[str]:
    """Show what implementations and layers are called with."""
    from attnkit.interface import Layer, SoftmaxFunction

    for protocol in (SoftmaxFunction, RecurrenceFunction, FeedforwardFunction, Layer, LayerDefinition):
        yield f"### `attnkit.interface.{protocol.__name__}`"
        yield ""
        if protocol is not Layer:
            yield from _text(inspect.getdoc(protocol) or "")
        yield from _text(_signature("__call__", protocol.__call__))
        yield from _text(inspect.getdoc(protocol.__call__) or "")


def states() -> Iterator[str]:
    """List what every state can do."""
    from attnkit.state import State

    named = {
        name: value.fget if isinstance(value, property) else value
        for name, value in vars(State).items()
        if not name.startswith("_")
    }
    rows = ((f"`{name}`", _headline(value)) for name, value in named.items() if callable(value))
    yield from _table(("member", "what"), rows)


def variants() -> Iterator[str]:
    """List the built-in variants."""
    rows = (
        (
            f"[`{each.name}`](#{each.name})",
            each.family,
            each.relation,
            ", ".join(f"`{one.name}`" for one in each.implementations),
        )
        for each in _built_ins()
    )
    yield from _table(("variant", "family", "relation", "implementations"), rows)


def variant_pages() -> Iterator[str]:
    """Show one section per built-in variant: promises by implementation, options."""
    for each in _built_ins():
        yield f"## {each.name}"
        yield ""
        yield each.summary
        yield ""
        yield f"Source: {each.source}."
        yield ""
        yield from _table(
            ("implementation", "how it computes"),
            ((f"`{one.name}`", one.summary) for one in each.implementations),
        )
        yield from _table(*_promised(each))
        yield from _table(("option of the layer", "default", "meaning"), _fields(each.config))
        options = list(_fields(each.options))
        if options:
            yield from _table(("option of `recurrence`", "default", "meaning"), options)


def checks() -> Iterator[str]:
    """List the checks of the suite, by group."""
    own = [each for each in attnkit_contracts.all_checks() if _is_own(each)]
    for letter, title in GROUPS.items():
        yield f"### {letter}: {title}"
        yield ""
        rows = (_check_row(each) for each in own if each.group == letter)
        yield from _table(("id", "what must hold", "on", "about", "judged"), rows)


def coverage() -> Iterator[str]:
    """Show, by family, which values are tried and which of them come together."""
    # a variant that promises all of them
    all_of = Promises.model_validate(dict.fromkeys(COVERED, True) | COVERED_LISTS)
    cases: dict[str, tuple[Any, Callable[[int], list[factors.Row]], Any]] = {
        "softmax": (
            factors.softmax_factors(all_of),
            lambda strength: factors.softmax_rows(all_of, strength, exact=True),
            factors.fits_softmax,
        ),
        "recurrence": (
            factors.recurrence_factors(all_of),
            lambda strength: factors.recurrence_rows(all_of, strength),
            factors.fits_recurrence,
        ),
        "mixture of experts": (
            factors.MIXTURE,
            lambda strength: factors.mixture_rows() if strength == 1 else [],
            factors.fits_mixture,
        ),
    }
    for family, (values, rows, fits) in cases.items():
        yield f"## {family[0].upper()}{family[1:]}"
        yield ""
        said = ((f"`{name}`", ", ".join(map(_value, some))) for name, some in values.items())
        yield from _table(("option or size", "values"), said)
        rule = " ".join((inspect.getdoc(fits) or "").removeprefix("Return whether ").split())
        yield f"Only tried where {rule}"
        yield ""
        yield from _together(values, rows(1), rows(2))


COVERED = ("causal", "bidirectional", "cross", "gqa", "value_width", "bias", "scale", "softcap",
           "sinks", "beta", "state")  # fmt: skip
COVERED_LISTS: dict[str, Any] = {"masks": ALL_MASK_PARTS, "decay": ("none", "head", "channel")}


def _together(
    values: Mapping[str, Sequence[Any]], fast: list[factors.Row], pairs: list[factors.Row]
) -> Iterator[str]:
    yield f"The fast tier makes {len(fast)} calls, in which every value occurs:"
    yield ""
    yield from _table(tuple(values), (tuple(map(_value, row.values())) for row in fast))
    if not pairs:
        yield "So does the standard tier: pairs are not tried."
        yield ""
        return
    yield (
        f"The standard tier makes {len(pairs)} calls. How many pairs of two values occur together "
        "in them, of all that there are; above the diagonal, how many of three values with any "
        "third one:"
    )
    yield ""
    names = list(values)
    yield from _table(("", *names), ((f"`{n}`", *_met(n, values, pairs)) for n in names))


def _met(name: str, values: Mapping[str, Sequence[Any]], rows: list[factors.Row]) -> list[str]:
    """Return how many pairs of values of an option and of each earlier one meet; triples after."""
    found, names = [], list(values)
    for other in names:
        if other == name:
            found.append("")
            continue
        later = names.index(other) > names.index(name)
        thirds = [each for each in names if each not in (name, other)] if later else [name]
        met = len({(row[name], row[other], t, row[t]) for row in rows for t in thirds})
        each = len(values[name]) * len(values[other])
        count = each * sum(len(values[t]) for t in thirds) if later else each
        found.append(f"{met} of {count}")
    return found


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    return str(value)


def layer_checks() -> Iterator[str]:
    """List the checks of a layer that nobody has a definition of, by tier."""
    planned = attnkit_contracts.plan(_foreign_layer(), tier="full")
    found = {each.check.id: each.check.tier for each in planned}
    for tier in TIERS:
        ids = [f"`{each}`" for each, its in found.items() if its == tier]
        yield f"- {tier}, {len(ids)} checks: {', '.join(ids)}"


def _foreign_layer() -> Variant:
    """Return a layer that promises all it can."""
    said = ("causal", "bidirectional", "dropout", "gradients", "deterministic", "compile")
    given = dict.fromkeys((*said, "stops_nan"), True)
    lists = {"masks": ALL_MASK_PARTS, "dtypes": ALL_DTYPES, "devices": ("cpu", "cuda")}
    promises = Promises.model_validate({**given, **lists, "memory": "L", "time": "L"})
    return attnkit_contracts.adapt_layer(
        "torch.nn:Identity", promises=promises, mask_argument="mask", dropout_argument="p"
    )


def public_modules() -> Iterator[str]:
    """Show a table of public modules for each purpose."""
    for purpose, modules in PUBLIC.items():
        yield f"### {purpose[0].upper()}{purpose[1:]}"
        yield ""
        rows = (
            (f"`{name}`", module.what, ", ".join(f"`{each}`" for each in names(name)))
            for name, module in modules.items()
        )
        yield from _table(("module", "what", "names"), rows)


def error_classes() -> Iterator[str]:
    """List the error classes."""
    rows = (
        (
            f"`{cls.__name__}`",
            ", ".join(f"`{base.__name__}`" for base in cls.__bases__),
            _headline(cls),
        )
        for cls in vars(errors).values()
        if inspect.isclass(cls) and issubclass(cls, errors.AttnkitError | Warning)
    )
    yield from _table(("error", "is also", "means"), rows)


def hooks() -> Iterator[str]:
    """Show one section per hook."""
    for name, value in vars(hookspecs).items():
        if name.startswith("attnkit_"):
            yield f"## {name}"
            yield ""
            group = "VARIANT" if name == "attnkit_variants" else "EXTENSION"
            yield f"Entry-point group `{getattr(hookspecs, f'{group}_GROUP')}`."
            yield ""
            yield from _text(_signature(name, value))
            yield inspect.getdoc(value) or ""
            yield ""


def commands() -> Iterator[str]:
    """Show one section per command, with its arguments and options."""
    import typer

    from attnkit_contracts.cli.app import app

    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        yield f"## attnkit {name}"
        yield ""
        yield command.help
        yield ""
        rows = [_parameter_row(each) for each in command.params]
        yield from _table(("argument or option", "default", "meaning"), rows)


def pytest_options() -> Iterator[str]:
    """List the options of the pytest plugin."""

    class Options(list[tuple[str, ...]]):
        def getgroup(self, *_: object) -> Options:
            return self

        def addoption(self, name: str, **told: Any) -> None:
            default = "" if told["default"] is None else _default(told["default"] or "all")
            self.append((f"`{name}`", default, told["help"]))

    found = Options()
    pytest_plugin.pytest_addoption(found)  # type: ignore[arg-type]  # all it needs of a parser
    yield from _table(("option", "default", "meaning"), found)


PARTS: Mapping[str, Callable[[], Iterator[str]]] = {
    "calls": calls,
    "checks": checks,
    "commands": commands,
    "coverage": coverage,
    "declarations": declarations,
    "errors": error_classes,
    "floors": drawn,
    "hooks": hooks,
    "layer-checks": layer_checks,
    "promises": promises,
    "protocols": protocols,
    "public-modules": public_modules,
    "public-names": public_names,
    "pytest-options": pytest_options,
    "states": states,
    "variant-pages": variant_pages,
    "variants": variants,
}


def pages() -> list[Path]:
    """Return the pages that hold generated parts."""
    return [page for page in sorted(FOLDER.rglob("*.md")) if PART.search(page.read_text())]


def generated(text: str) -> str:
    """Return a page with all its parts made anew."""

    def part(found: re.Match[str]) -> str:
        lines = "\n".join(PARTS[found[2]]()).strip()
        return f"{found[1]}\n{lines}\n\n{found[3]}"

    return PART.sub(part, text)


def main() -> None:
    """Rewrite what has changed, and say what that is."""
    for page in pages():
        before = page.read_text()
        after = generated(before)
        if after != before:
            page.write_text(after)
            sys.stdout.write(f"rewritten: {page.relative_to(FOLDER)}\n")


def _public() -> dict[str, Any]:
    return {name: getattr(attnkit, name) for name in attnkit.__all__}


def _built_ins() -> list[Variant]:
    entries = registry.default().entries()
    return [attnkit.get_variant(each.name) for each in entries if each.owner == OWNER]


def _promised(variant: Variant) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the promises that anybody makes: the variant, then each implementation."""
    claims = [variant.promises, *(each.promises for each in variant.implementations)]
    head = ("promise", "variant", *(f"`{each.name}`" for each in variant.implementations))
    rows = []
    for name in Promises.model_fields:
        values = [getattr(claim, name) for claim in claims]
        if any(value not in (False, ()) for value in values):
            rows.append((f"`{name}`", *map(_word, values)))
    return head, rows


def _is_own(check: Check) -> bool:
    return check.function.__module__.startswith("attnkit_contracts.")


def _check_row(check: Check) -> tuple[str, ...]:
    families = check.families
    about = "all families" if set(families) == set(BUILT_IN) else ", ".join(families)
    if len(check.relations) < 3:
        about += f"; {', '.join(check.relations)} only"
    if check.plugins_only:
        about += "; plugins only"
    words = {"E": "exactly", "R": "in error units", "S": "statistically"}
    tier = "" if check.tier == "fast" else f"; tier {check.tier}"
    required = "; required" if check.required else ""
    judged = f"{words[check.verdict]}{tier}{required}"
    return (f"`{check.id}`", check.statement, ", ".join(check.levels), about, judged)


def _parameter_row(parameter: Any) -> tuple[str, ...]:
    if parameter.param_type_name == "argument":
        default = "required" if parameter.required else _default(parameter.default or "all")
        return (f"`{parameter.name}`", default, parameter.help or "")
    given = "" if parameter.default is None else _default(parameter.default)
    default = "off" if parameter.is_flag else given
    return (f"`{parameter.opts[0]}`", default, parameter.help or "")


def _fields(model: Any) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _default(field.default)
        yield (f"`{name}`", default, field.description or "")


def _methods(cls: Any) -> Iterator[tuple[str, ...]]:
    for name, value in vars(cls).items():
        if inspect.isfunction(value) and not name.startswith("_"):
            arguments = ", ".join(list(inspect.signature(value).parameters)[1:])
            yield (f"`{name}({arguments})`", _headline(value))


def _attributes(cls: Any) -> Iterator[tuple[str, str]]:
    """Read the section Attributes of a docstring."""
    section = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    for entry in re.split(r"\n(?= {4}\w+:)", section):
        name, _, text = entry.strip().partition(": ")
        yield name, " ".join(text.split())


def _section(name: str, value: Any) -> Iterator[str]:
    yield f"### `{name}`"
    yield ""
    yield from _text(_signature(name, value))
    yield from _text(inspect.getdoc(value) or "")


def _signature(name: str, value: Any) -> str:
    """Return the signature, without the annotations, one line if that is short enough."""
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(value).parameters.values()
        if each.name != "self"
    ]
    short = f"{name}{inspect.Signature(parameters)}"
    if len(short) <= LINE:
        return short
    head, _, rest = short.partition("(")
    # the stars and defaults are those of the signature; no default holds a comma and a space
    return f"{head}(\n    " + ",\n    ".join(rest.removesuffix(")").split(", ")) + ",\n)"


def _text(text: str) -> list[str]:
    return ["```text", text, "```", ""]


def _kind(value: Any) -> str:
    if inspect.isclass(value):
        return "class"
    if isinstance(value, str):
        return "value"
    return "function" if inspect.isfunction(value) else "decorator"


def _headline(value: Any) -> str:
    """Return the first paragraph of a docstring, on one line."""
    if isinstance(value, str):
        return "Version of the plugin contract; see [Stability](stability.md)."
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return "Marks a function of a plugin as a hook."
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())


def _default(value: object) -> str:
    return f"`{value}`" if isinstance(value, str) else f"`{value!r}`"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return ", ".join(map(_claimed, value)) if isinstance(value, tuple) else str(value)


def _claimed(value: object) -> str:
    return f"{value} <= {value.max_ratio:g}" if isinstance(value, SpeedClaim) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for line in (head, ["---"] * len(head), *rows):
        cells = (" ".join(cell.split()).replace("|", "\\|").replace("``", "`") for cell in line)
        yield f"| {' | '.join(cells)} |"
    yield ""


if __name__ == "__main__":
    main()
