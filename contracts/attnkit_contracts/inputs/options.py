"""Which options of a layer to try, beside those that every small layer of a variant has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import ValidationError

from attnkit_contracts.inputs.cover import cover

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attnkit.interface import LayerConfig

    Setting = tuple[tuple[str, Any], ...]

VALUES: dict[str, Any] = {
    "rotary_base": 100.0,
    "window_size": 5,
    "softcap": 0.5,
    "num_kv_heads": 1,
    "num_groups": 2,
    "head_dim": 6,
    "value_head_dim": 12,
    "scale": 1.5,
    "conv_size": 3,
    "top_k": 3,
    "hidden_dim": 40,
    "embed_dim": 48,
    "num_heads": 8,
    "num_experts": 7,
    "gate_rank": 3,
    "gate_temperature": 2.0,
    # so large that leaving it out shows
    "eps": 0.3,
    "norm_eps": 0.3,
}
"""What known fields are set to, beside their default and their own further ``examples``."""

TOGETHER = ({"block_size": 4, "local_blocks": 1},)
"""Fields that are set together or not at all."""

LEFT_OUT = ("implementation", "is_causal", "context_dim", "dropout_p")
"""What is checked as itself, or must be as it is for a layer to have a state."""


def single_options(config: LayerConfig) -> Iterator[dict[str, Any]]:
    """Yield one option each, other than what the layer has: switches, choices, known fields."""
    fields = type(config).model_fields
    for name, field in fields.items():
        if name in LEFT_OUT:
            continue
        has, values = getattr(config, name), [*(field.examples or ())[1:]]
        if field.annotation is bool:
            values = [not has]
        elif get_origin(field.annotation) is not None and all(
            isinstance(each, str) for each in get_args(field.annotation)
        ):
            values = list(get_args(field.annotation))
        elif name in VALUES:
            values += [VALUES[name], *([] if field.is_required() else [field.default])]
        yield from ({name: each} for each in dict.fromkeys(values) if each != has)
    yield from (option for option in TOGETHER if fields.keys() >= option.keys())


def mixed_options(config: LayerConfig) -> list[dict[str, Any]]:
    """Return few sets of options in which every single one is, beside others each time."""
    factors = [each for each in _factors(config).values() if len(each[0]) == 1]
    rows = [
        _joined({str(i): each[(i + row) % len(each)] for i, each in enumerate(factors)})
        for row in range(max(map(len, factors), default=0))
    ]
    # what is set together says a layer's whole pattern: it excludes much
    return [{}, *rows, *(option for option in single_options(config) if len(option) > 1)]


def joint_options(config: LayerConfig) -> list[dict[str, Any]]:
    """Return sets of options in which every two that the configuration allows are together."""
    has = config.model_dump()

    def fits(row: Mapping[str, Any]) -> bool:
        try:
            type(config)(**{**has, **_joined(row)})
        except ValidationError:
            return False
        return True

    return [_joined(row) for row in cover(_factors(config), fits)]


def _factors(config: LayerConfig) -> dict[str, tuple[Setting, ...]]:
    """Return what each option can be, as the layer has it first."""
    found: dict[str, tuple[Setting, ...]] = {}
    for option in single_options(config):
        has = tuple((name, getattr(config, name)) for name in option)
        about = " and ".join(option)
        found[about] = (*found.get(about, (has,)), tuple(option.items()))
    return found


def _joined(row: Mapping[str, Setting]) -> dict[str, Any]:
    return {name: value for option in row.values() for name, value in option}
