"""How a stranger's function may be called: read from its signature, and every way that is left.

What is told is kept. What is not is guessed by the usual names of arguments; what no name tells,
the layout, the sense of a mask, the corner of a causal flag, is tried in every way.
"""

from __future__ import annotations

import inspect
import itertools
from typing import TYPE_CHECKING, Any

from attnkit_contracts.foreign import doors
from attnkit_contracts.foreign.conventions import Convention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

USUAL = {
    "mask_argument": ("attn_mask", "mask", "attention_mask"),
    "causal_argument": ("is_causal", "causal"),
    "scale_argument": ("scale", "softmax_scale", "sm_scale", "scaling"),
    "softcap_argument": ("softcap", "logits_soft_cap", "soft_cap", "logit_cap", "cap"),
    "window_argument": ("window_size", "window", "sliding_window"),
    "sinks_argument": ("sinks", "sink", "s_aux"),
    "bias_argument": ("bias", "attn_bias", "attention_bias"),
    "gqa_argument": ("enable_gqa",),
}
"""What arguments are usually called, by the field of a `Convention` that says so."""

TRIED: dict[str, tuple[str | None, ...]] = {
    "layout": ("BHLE", "BLHE"),
    "mask": ("bool", "hidden", "additive"),
    "causal_corner": ("lower_right", "upper_left"),
    "output_layout": (None, "BHLE", "BLHE"),
}
"""What no name tells."""

ALWAYS = "cross, gqa, value_width"


def conventions(
    target: Callable[..., Any], told: Mapping[str, Any]
) -> tuple[tuple[Convention, ...], ...]:
    """Return the ways to call a function, the likelier before the others.

    Raises:
        ArgumentError: What is told contradicts itself.
    """
    guessed = {**_guessed(target), **told}
    found: dict[bool, list[Convention]] = {False: [], True: []}
    for way in _ways(guessed):
        for promises in _promises({**guessed, **way}):
            convention = doors.made(Convention, **{"promises": promises, **guessed, **way})
            moved = convention.output_layout not in (None, convention.layout)
            if convention.output_layout != convention.layout:
                found[moved].append(convention)
    return tuple(map(tuple, found.values()))


def _guessed(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        names = set(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        # of a function in C nobody can tell
        return {}
    return {
        field: next((each for each in usual if each in names), None)
        for field, usual in USUAL.items()
    }


def untold(target: Callable[..., Any], convention: Convention) -> tuple[str, ...]:
    """Return the arguments behind query, key and value of which it is not known what they are."""
    try:
        arguments = list(inspect.signature(target).parameters.values())[3:]
    except (TypeError, ValueError):
        return ()
    fields = (name for name in type(convention).model_fields if name.endswith("_argument"))
    known = {*(getattr(convention, name) for name in fields), *(convention.fixed or {})}
    named = (each for each in arguments if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD))
    return tuple(each.name for each in named if each.name not in known)


def _ways(guessed: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each way to fill in what no name tells and nobody told."""
    tried = {field: values for field, values in TRIED.items() if field not in guessed}
    if guessed.get("mask_argument", "attn_mask") is None:
        tried["mask"] = ("none",)
    if guessed.get("causal_argument") is None:
        tried.pop("causal_corner", None)
    for values in itertools.product(*tried.values()):
        yield dict(zip(tried, values, strict=True))


def _promises(said: Mapping[str, Any]) -> Iterator[str]:
    """Yield what can be asked of a function that is called so."""
    if "promises" in said:
        yield said["promises"]
        return
    options = [
        name for name in ("scale", "softcap", "sinks", "bias") if said.get(f"{name}_argument")
    ]
    if said["mask"].startswith("additive") and "bias" not in options:
        options.append("bias")
    if said["mask"] != "none":
        options += ["dense", "padding", "window"]
    elif said.get("window_argument"):
        options.append("window")
    both = said["mask"] != "none" or said.get("causal_argument")
    for way in ("causal, bidirectional",) if both else ("bidirectional", "causal"):
        yield ", ".join([way, ALWAYS, *options])


def pasted(target: str, convention: Convention, promises: str) -> str:
    """Return the command that judges a function that is called so, and promises this."""
    words = [f"attnkit judge {target} --promise {promises}"]
    for field, info in type(convention).model_fields.items():
        value = getattr(convention, field)
        if value == info.default or (field == "mask_argument" and convention.mask == "none"):
            continue
        if field.endswith("_argument"):
            words.append(f"--argument {field.removesuffix('_argument')}={value or 'none'}")
        elif field in OPTIONS:
            words.append(f"{OPTIONS[field]} {value}")
    return " ".join(words)


OPTIONS = {
    "layout": "--layout",
    "output_layout": "--output-layout",
    "mask": "--mask-as",
    "causal_corner": "--causal-corner",
}
"""The options of ``attnkit judge`` that say what no name tells."""
