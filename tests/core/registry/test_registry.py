"""The registry in one process: variants of a session, names, and who may offer what."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import attnkit
from attnkit.errors import (
    ArgumentError,
    BrokenPluginError,
    DuplicateVariantError,
    UnknownVariantError,
)
from attnkit.hookspecs import EXTENSION_GROUP
from attnkit.interface import Implementation, LayerConfig, Options, Variant
from attnkit.promises import Promises
from attnkit.registry.discovery import Entry
from attnkit.registry.registry import Registry, default
from attnkit.registry.variant_table import VariantTable

if TYPE_CHECKING:
    from pathlib import Path

REFERENCE = Implementation(
    name="reference",
    function="acme:attend",
    summary="float64",
    promises=Promises(),
    cost=lambda _: 1.0,
)
VARIANT = Variant(
    name="acme_session",
    family="softmax",
    summary="Softmax attention.",
    source="Acme 2026, eq. 1",
    relation="exact",
    promises=Promises(causal=True, gqa=True),
    config=LayerConfig,
    layer="acme:Layer",
    implementations=(REFERENCE,),
)

PLUGIN = """
import attnkit
from attnkit.promises import Promises

def declare(name):
    implementation = attnkit.Implementation(
        name="reference", function="acme:attend", summary="float64", promises=Promises(),
        cost=lambda problem: 1.0,
    )
    return attnkit.Variant(
        name=name, family="softmax", summary="", source="", relation="exact", promises=Promises(),
        config=attnkit.LayerConfig, layer="acme:Layer", implementations=(implementation,),
    )
"""


def entry(name: str, module: str, owner: str = "acme", **fields: Any) -> Entry:
    return Entry(name=name, owner=owner, version="1.0", module=module, **fields)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose modules can be imported during one test."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


# variants of this session


def test_a_registered_variant_is_found_until_it_is_undone() -> None:
    registry = Registry()
    registration = registry.register(VARIANT)
    assert registry.get("acme_session") is VARIANT
    assert registry.names() == ("acme_session",)
    registration.undo()
    assert registry.names() == ()
    with pytest.raises(UnknownVariantError, match="no attention variant 'acme_session'"):
        registry.get("acme_session")


def test_registration_ends_with_its_block_even_after_an_error() -> None:
    registry = Registry()
    with pytest.raises(ZeroDivisionError), registry.register(VARIANT):
        _ = 1 / 0
    assert registry.names() == ()


def test_undoing_twice_leaves_a_later_registration_of_the_name() -> None:
    registry = Registry()
    first = registry.register(VARIANT)
    first.undo()
    later = replace(VARIANT, summary="Another one.")
    registry.register(later)
    first.undo()
    assert registry.get("acme_session") is later


def test_what_calls_found_out_is_void_whenever_a_name_may_mean_something_else() -> None:
    registry = Registry()
    seen = [registry.remembered]
    registration = registry.register(VARIANT)
    seen.append(registry.remembered)
    registration.undo()
    seen.append(registry.remembered)
    assert len(set(seen)) == 3
    registration.undo()
    assert registry.remembered is seen[-1]


def test_implementations_follow_the_variant_that_bears_the_name_now() -> None:
    registry = Registry()
    with registry.register(VARIANT):
        assert registry.implementations("acme_session") == (REFERENCE,)
    faster = replace(REFERENCE, name="acme_faster")
    with registry.register(replace(VARIANT, implementations=(REFERENCE, faster))):
        assert registry.implementations("acme_session") == (REFERENCE, faster)


def test_a_name_of_this_session_is_not_offered_twice() -> None:
    registry = Registry()
    registry.register(VARIANT)
    with pytest.raises(
        DuplicateVariantError,
        match="'acme_session' is already offered by this session; register yours under another",
    ):
        registry.register(VARIANT)


def test_an_installed_name_is_not_taken_by_a_session() -> None:
    registry = Registry([entry("acme_session", "acme_nowhere", owner="acme-dist")])
    with pytest.raises(
        DuplicateVariantError, match=r"'acme_session' is already offered by acme-dist 1\.0;"
    ):
        registry.register(VARIANT)
    assert [each.owner for each in registry.entries()] == ["acme-dist"]


def test_the_offers_of_a_name_are_those_of_every_owner_and_of_no_other_name() -> None:
    offers = (("acme_a", "second"), ("acme_b", "third"), ("acme_a", "first"))
    registry = Registry([entry(name, "acme_nowhere", owner=owner) for name, owner in offers])
    assert [each.owner for each in registry.entries("acme_a")] == ["first", "second"]
    assert registry.entries("acme_c") == ()


def test_the_front_door_registers_in_the_registry_of_what_is_installed() -> None:
    with attnkit.register(VARIANT):
        assert attnkit.get_variant("acme_session") is VARIANT
        (row,) = [row for row in attnkit.list_variants() if row.name == "acme_session"]
        assert (row.owner, row.version, row.module) == ("this session", "", "")
        assert row.variant is VARIANT
    assert "acme_session" not in default().names()


# a declaration that is incomplete


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "acme window"}, "a variant's name must be .*, got 'acme window'"),
        ({"name": "auto"}, "must be an identifier other than 'auto', got 'auto'"),
        ({"family": "convolution"}, "family must be one of softmax, .*, got 'convolution'"),
        ({"relation": "close"}, "relation must be one of exact, .*, got 'close'"),
        ({"promises": {"causal": True}}, "promises must be Promises, got dict"),
        ({"config": dict}, "config must be a subclass of LayerConfig, got the class dict"),
        ({"options": Options()}, "options must be a subclass of Options, got NoOptions|Options"),
        ({"layer": "acme.layer"}, "layer must be 'package.module:attribute' or a callable, got"),
        ({"layer": None}, "layer must be .* a callable, got NoneType"),
        ({"implementations": [REFERENCE]}, "implementations must be a tuple, got list"),
        ({"implementations": ("reference",)}, "expected an Implementation, got str 'reference'"),
        (
            {"implementations": ()},
            "a softmax variant needs an implementation named 'reference', first; got none",
        ),
        (
            {"implementations": (replace(REFERENCE, name="fast"), REFERENCE)},
            "needs an implementation named 'reference', first; got fast, reference",
        ),
        (
            {"implementations": (REFERENCE, REFERENCE)},
            "implementation names must be unique, got 'reference' 2 times",
        ),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_an_incomplete_variant_is_not_registered(fields: dict[str, Any], message: str) -> None:
    registry = Registry()
    with pytest.raises(ArgumentError, match=f"^cannot register: .*{message}"):
        registry.register(replace(VARIANT, **fields))
    assert registry.names() == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "auto"}, "an implementation's name must be .*, got 'auto'"),
        ({"function": "acme.attend"}, "'reference': function must be 'package.module:attribute'"),
        ({"promises": None}, "'reference': promises must be Promises, got NoneType"),
        ({"cost": 1e-6}, "'reference': cost must be a function of a Problem, got float 1e-06"),
        ({"refuses": None}, "'reference': refuses must be a function of a Problem, got NoneType"),
        ({"packages": "triton"}, "'reference': packages must be a tuple .*, got str 'triton'"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_an_incomplete_implementation_is_not_registered(
    fields: dict[str, Any], message: str
) -> None:
    broken = replace(REFERENCE, **fields)
    with pytest.raises(ArgumentError, match=message):
        Registry().register(replace(VARIANT, implementations=(broken,)))


def test_what_is_no_variant_is_not_registered() -> None:
    untyped: Any = Registry()
    with pytest.raises(ArgumentError, match="expected a Variant, got the class Variant"):
        untyped.register(Variant)


# names


def test_an_unknown_name_without_a_near_one_suggests_none() -> None:
    registry = Registry([entry("acme_window", "acme_window")])
    with pytest.raises(
        UnknownVariantError, match=r"^no attention variant 'zzz'\. Installed: acme_window\.$"
    ):
        registry.get("zzz")


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(UnknownVariantError, match=r"'flash'\. Installed: none\.$"):
        Registry().get("flash")


def test_one_distribution_that_offers_a_name_twice_is_told_to_update() -> None:
    registry = Registry([entry("acme", "acme.one"), entry("acme", "acme.two")])
    with pytest.raises(
        DuplicateVariantError,
        match=r"'acme' is offered 2 times by acme 1\.0 \(acme\.one, acme\.two\); update or uninst",
    ):
        registry.get("acme")


def test_the_first_failure_of_a_plugin_is_final(folder: Path) -> None:
    module = folder / "acme_flaky.py"
    module.write_text("raise OSError('no driver')")
    registry = Registry([entry("acme_flaky", "acme_flaky")])
    with pytest.raises(BrokenPluginError, match="OSError: no driver"):
        registry.get("acme_flaky")
    module.write_text(PLUGIN)
    with pytest.raises(BrokenPluginError, match="OSError: no driver"):
        registry.get("acme_flaky")


def test_a_misspelt_promise_is_told_by_its_name_and_the_nearest(folder: Path) -> None:
    made = "import attnkit\nPROMISES = attnkit.Promises(cuasal=True, dtypes=('float8',))"
    (folder / "acme_misspelt.py").write_text(made)
    registry = Registry([entry("acme_misspelt", "acme_misspelt")])
    with pytest.raises(BrokenPluginError) as raised:
        registry.get("acme_misspelt")

    told = str(raised.value)
    assert "Promises: " in told
    assert "there is no field 'cuasal'; did you mean 'causal'?" in told
    assert "dtypes.0: Input should be 'float64'" in told
    assert told.endswith("or mend it if it is yours")


def test_a_user_who_interrupts_an_import_is_obeyed(folder: Path) -> None:
    (folder / "acme_slow.py").write_text("raise KeyboardInterrupt")
    registry = Registry([entry("acme_slow", "acme_slow")])
    with pytest.raises(KeyboardInterrupt):
        registry.get("acme_slow")
    assert registry.names() == ("acme_slow",)


def test_a_plugin_that_returns_a_name_twice_is_broken(folder: Path) -> None:
    hook = (
        "\n@attnkit.hookimpl\ndef attnkit_variants():\n    return 2 * (declare('acme_double'),)\n"
    )
    (folder / "acme_double.py").write_text(PLUGIN + hook)
    registry = Registry([entry("acme_double", "acme_double")])
    with pytest.raises(BrokenPluginError, match="returned 2 variants named 'acme_double'"):
        registry.get("acme_double")


def test_a_hook_may_be_a_generator(folder: Path) -> None:
    hook = "\n@attnkit.hookimpl\ndef attnkit_variants():\n    yield declare('acme_lazy')\n"
    (folder / "acme_lazy.py").write_text(PLUGIN + hook)
    registry = Registry([entry("acme_lazy", "acme_lazy")])
    assert registry.get("acme_lazy").name == "acme_lazy"
    assert registry.broken() == ()


# extensions


HOOKS = """
import attnkit

@attnkit.hookimpl
def attnkit_contracts():
    return ["a check", "another"]

@attnkit.hookimpl
def attnkit_report_section(report):
    return f"## Acme on {report}" if report else None
"""


def test_extensions_add_checks_and_sections_and_a_broken_one_adds_nothing(folder: Path) -> None:
    (folder / "acme_checks.py").write_text(HOOKS)
    (folder / "acme_wrong.py").write_text(HOOKS.replace('"## Acme', '3 or f"').replace("[", "3, ["))
    registry = Registry(
        [
            entry("good", "acme_checks", group=EXTENSION_GROUP),
            entry("broken", "acme_nowhere", group=EXTENSION_GROUP),
        ]
    )
    assert registry.contracts() == ("a check", "another")
    assert registry.hosts() == ()
    assert registry.report_sections("flash") == ("## Acme on flash",)
    assert registry.report_sections("") == ()
    assert [each.entry.name for each in registry.broken()] == ["broken"]


def test_a_section_that_is_no_text_is_reported_after_it_was_asked_for(folder: Path) -> None:
    (folder / "acme_number.py").write_text(HOOKS.replace('f"## Acme on {report}"', "42"))
    registry = Registry([entry("number", "acme_number", group=EXTENSION_GROUP)])
    assert registry.report_sections("flash") == ()
    (broken,) = registry.broken()
    assert broken.cause == "returned int 42, not a str from attnkit_report_section"


# the table


def test_an_empty_table_prints_its_head() -> None:
    table = VariantTable(Registry())
    assert len(table) == 0
    assert repr(table) == "name  family  owner  relation  promises"


def test_a_table_prints_every_column_aligned() -> None:
    registry = Registry()
    registry.register(VARIANT)
    registry.register(replace(VARIANT, name="acme_a", promises=Promises(state=True)))
    assert repr(VariantTable(registry)).splitlines() == [
        "name          family   owner         relation  promises",
        "acme_a        softmax  this session  exact     state",
        "acme_session  softmax  this session  exact     causal gqa",
    ]


def test_a_row_outlives_its_registration_and_says_so() -> None:
    registry = Registry()
    with registry.register(VARIANT):
        (row,) = VariantTable(registry)
    assert row.cells()[-1] == "no attention variant 'acme_session'. Installed: none."
