"""The command ``attnkit``: what is installed, what a variant promises, what would run.

`attnkit_contracts.cli.app` adds ``check`` and is what the script calls. Exit codes, for every
command: 0 all is well, 1 something was found, 2 the command was wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from attnkit.cli import models as model_commands
from attnkit.cli.terminal import FOUND, AsJson, fail, say, show_table
from attnkit.errors import AttnkitError, RegistryError
from attnkit.families import SOFTMAX, Family
from attnkit.promises import ALL_MASK_PARTS, ALL_TRANSFORMS, Decay
from attnkit.registry.registry import default

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit.registry.variant_table import VariantRow

app = typer.Typer(
    help="Attention variants behind one interface, each checked by one suite.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(help="A variant's name.")]


@app.command("list")
def list_(
    as_json: AsJson = False,
    names: Annotated[
        bool, typer.Option("--names", help="Print names alone; imports no plugin.")
    ] = False,
) -> None:
    """List the installed variants; a broken plugin is listed as broken."""
    from attnkit.registry.variant_table import COLUMNS, VariantTable

    rows = VariantTable(default())
    if names:
        found = list(dict.fromkeys(row.name for row in rows))
        say(json.dumps(found, indent=2) if as_json else "\n".join(found))
    elif as_json:
        say(json.dumps([_row(row) for row in rows], indent=2))
    else:
        show_table(COLUMNS, [row.cells() for row in rows])


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show one variant: source, promises, options, implementations."""
    variant = _variant(name)
    told = _described(variant)
    if as_json:
        say(json.dumps(told, indent=2))
        return
    say(f"{variant.name}: {variant.summary}")
    say(f"family {variant.family}, relation to softmax attention: {variant.relation}")
    say(f"source: {variant.source}")
    show_table(("promise", "value", "meaning"), _promise_rows(variant))
    show_table(("option of create", "default", "meaning"), _field_rows(variant.config))
    if variant.options.model_fields:
        show_table(("option of recurrence", "default", "meaning"), _field_rows(variant.options))
    head = ("implementation", "summary", "dtypes", "devices")
    show_table(head, [tuple(each.values())[:4] for each in told["implementations"]])


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A variant's name, or 'auto'.")] = "auto",
    *,
    batch: Annotated[int, typer.Option(min=1, help="B")] = 1,
    heads: Annotated[int, typer.Option(min=1, help="H, query heads")] = 8,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Hkv; left out, H")] = None,
    length: Annotated[int, typer.Option(min=1, help="L, queries")] = 1024,
    keys: Annotated[int | None, typer.Option(min=1, help="S; left out, L")] = None,
    head_dim: Annotated[int, typer.Option(min=1, help="E")] = 64,
    value_head_dim: Annotated[int | None, typer.Option(min=1, help="Ev; left out, E")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    causal: Annotated[bool, typer.Option("--causal", help="Hide later keys.")] = False,
    window: Annotated[int | None, typer.Option(min=1, help="Window, in keys.")] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help="A further mask part: padding, documents, dense ...")
    ] = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(help="bias, scale, softcap, sinks, dropout, beta, compile, vmap ..."),
    ] = None,
    decay: Annotated[str, typer.Option(help="none, head or channel, of a recurrence")] = "none",
    gradients: Annotated[bool, typer.Option("--gradients", help="For training.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say which implementation would run a call, and why not the others."""
    from attnkit.choice.decision import explain_choice

    variant = None if name == "auto" else _variant(name)
    family = default().family(variant.family) if variant else SOFTMAX
    switches = _switches(needs or (), family)
    parts = {*(mask or ()), *(("window",) if window else ())}
    _check_words("--mask", parts, ALL_MASK_PARTS)
    _check_words("--decay", [decay], get_args(Decay))
    if heads % (kv_heads or heads):
        raise typer.BadParameter(
            f"must divide --heads {heads}, got {kv_heads}", param_hint="--kv-heads"
        )
    told = {
        "device": device,
        "dtype": dtype,
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads or heads,
        "groups": kv_heads or heads,
        "experts": heads,
        "query_length": length,
        "key_length": keys or length,
        "head_dim": head_dim,
        "width": head_dim,
        "value_head_dim": value_head_dim or head_dim,
        "causal": causal,
        "mask_parts": frozenset(parts),
        "window": window,
        "decay": decay,
        "gradients": gradients,
        **switches,
    }
    problem = family.problem.of({"family": family.name, **told})
    choice = explain_choice(name, problem)
    if as_json:
        say(choice.model_dump_json(indent=2))
    else:
        say(f"chosen: {choice.chosen or 'none'}")
        rows = [
            (
                f"{each.variant}.{each.implementation}",
                "-" if each.cost is None else f"{each.cost * 1e3:.3g} ms",
                "; ".join(each.reasons) or "can",
            )
            for each in choice.candidates
        ]
        show_table(("implementation", "estimate", "verdict"), rows)
    if choice.chosen is None:
        raise typer.Exit(FOUND)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, which implementations run here, and which plugins are broken."""
    from attnkit.cli.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        say(diagnosis.model_dump_json(indent=2))
    else:
        show_table(("package", "version"), list(diagnosis.versions.items()))
        say(f"devices: {', '.join(diagnosis.devices)}")
        rows = [
            (each.variant, each.implementation, each.device, each.dtype, each.outcome)
            for each in diagnosis.trials
        ]
        show_table(("variant", "implementation", "device", "dtype", "a small call"), rows)
        failures = diagnosis.failures()
        for (name, why), trials in failures.items():
            where = ", ".join(f"{each.device} {each.dtype}" for each in trials)
            say(f"fails: {name}, {trials[0].function}, in {where}\n{trials[0].traceback or why}")
        for broken in diagnosis.broken:
            say(f"broken: {broken.plugin}\n{broken.traceback}")
        say(f"broken plugins: {len(diagnosis.broken)}, failing implementations: {len(failures)}")
    if not diagnosis.is_well:
        raise typer.Exit(FOUND)


app.command("survey")(model_commands.survey)
app.command("swap")(model_commands.swap)


def run(application: typer.Typer) -> None:
    """Run a command line; errors of attnkit become one message and exit code 2."""
    try:
        application()
    except AttnkitError as error:
        fail(str(error))


_FLAGS = ("gradients", "compiling", "causal")
"""What a problem says and ``--needs`` does not."""


def _switches(needs: Iterable[str], family: Family) -> dict[str, object]:
    """Return what a call needs; only what calls of the family can have."""
    needs = list(needs)
    switches = [each.name for each in fields(family.problem) if each.type == "bool"]
    allowed = [name for name in switches if name not in _FLAGS]
    _check_words("--needs", needs, [*allowed, "compile", *ALL_TRANSFORMS])
    return {
        **dict.fromkeys((name for name in needs if name in allowed), True),
        "compiling": "compile" in needs,
        "transforms": frozenset(needs) & frozenset(ALL_TRANSFORMS),
    }


def _check_words(option: str, given: Iterable[str], allowed: Sequence[str]) -> None:
    for word in given:
        if word not in allowed:
            some = f"must be one of {', '.join(allowed)}" if allowed else "has no words here"
            fail(f"{option} {some}, got {word!r}")


def _variant(name: str) -> Variant:
    try:
        return default().get(name)
    except RegistryError as error:
        fail(str(error))


def _row(row: VariantRow) -> dict[str, Any]:
    told: dict[str, Any] = _told(row, "name", "owner", "version", "module")
    try:
        variant = row.variant
    except RegistryError as error:
        return {**told, "trouble": str(error)}
    promises = variant.promises.model_dump(mode="json")
    return {**told, **_told(variant, "family", "relation"), "promises": promises}


def _described(variant: Variant) -> dict[str, Any]:
    return {
        **_told(variant, "name", "family", "summary", "source", "relation"),
        "promises": variant.promises.model_dump(mode="json"),
        "config": variant.config.model_json_schema(),
        "options": variant.options.model_json_schema(),
        "implementations": [
            {
                **_told(each, "name", "summary"),
                "dtypes": ", ".join(each.promises.dtypes),
                "devices": ", ".join(each.promises.devices),
                "promises": each.promises.model_dump(mode="json"),
            }
            for each in default().implementations(variant.name)
        ],
    }


def _told(record: object, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}


def _promise_rows(variant: Variant) -> list[tuple[str, str, str]]:
    kept = variant.promises
    return [
        (name, _word(getattr(kept, name)), field.description or "")
        for name, field in type(kept).model_fields.items()
    ]


def _field_rows(model: Any) -> list[tuple[str, str, str]]:
    return [
        (name, "required" if field.is_required() else repr(field.default), field.description or "")
        for name, field in model.model_fields.items()
    ]


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)
