"""The registry over really installed distributions, some of them broken.

What is installed stands in `distributions` and in `conftest.py`; each test asks in a process of
its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


class Environment(Protocol):
    """The fixture ``strangers``, see `conftest.py`."""

    def run(self, code: str, **variables: str) -> Any: ...
    def pip(self, *arguments: str) -> None: ...
    def copy(self, folder: Path) -> Environment: ...


def error_of(environment: Environment, call: str, **variables: str) -> dict[str, Any]:
    """Return the type, text and cause of what a call raises."""
    code = (
        f"import attnkit\n"
        f"from attnkit import registry\n"
        f"try:\n    {call}\n"
        f"except Exception as error:\n"
        f"    found = type(error).__name__, str(error), type(error.__cause__).__name__\n"
        f"    show(dict(zip(('type', 'text', 'cause'), found)))"
    )
    return dict(environment.run(code, **variables))


# listing


def test_listing_imports_no_plugin(strangers: Environment, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    names = strangers.run(
        "import attnkit\nshow([row.name for row in attnkit.list_variants()])",
        ACME_MARKER=str(marker),
    )
    assert "acme_window" in names
    assert "acme_raises" in names
    assert not marker.exists()


def test_a_plugin_is_imported_when_its_name_is_asked_for_and_only_once(
    strangers: Environment, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    found = strangers.run(
        "import attnkit\n"
        "names = 'acme_window', 'acme_taken', 'acme_window'\n"
        "show([attnkit.get_variant(name).name for name in names])",
        ACME_MARKER=str(marker),
    )
    assert found == ["acme_window", "acme_taken", "acme_window"]
    assert marker.read_text() == "acme_window was imported\n"


def test_listing_names_owner_version_and_module(strangers: Environment) -> None:
    rows = strangers.run(
        "import attnkit\n"
        "show([[row.name, row.owner, row.version, row.module] for row in attnkit.list_variants()])"
    )
    assert ["acme_window", "acme-window", "1.0", "acme_window"] in rows
    assert ["flash", "attnkit", rows[-1][2], "attnkit_plugins.softmax.flash"] in rows
    assert rows == sorted(rows)


def test_built_in_variants_enter_through_the_same_door(strangers: Environment) -> None:
    rows = strangers.run(
        "import attnkit\n"
        "show([row.name for row in attnkit.list_variants() if row.owner == 'attnkit'])"
    )
    assert {"flash", "linear", "moe", "multi_head", "self_attention", "state_space"} <= set(rows)
    assert len(rows) == len(set(rows))


def test_a_distribution_that_is_visible_twice_counts_once_and_the_first_wins(
    strangers: Environment,
) -> None:
    names = strangers.run("import attnkit\nshow([row.name for row in attnkit.list_variants()])")
    assert names.count("acme_window") == 1
    assert "acme_old" not in names


def test_a_printed_table_says_what_is_wrong_with_a_row_and_shows_the_others(
    strangers: Environment,
) -> None:
    lines = strangers.run("import attnkit\nshow(str(attnkit.list_variants()).splitlines())")
    table = {line.split()[0]: " ".join(line.split()) for line in lines}
    assert table["acme_window"].startswith("acme_window softmax acme-window 1.0 exact causal")
    assert (
        "acme_raises - acme-broken 2.1 - broken: failed to import: "
        "OSError: no acme driver on this machine" in table["acme_raises"]
    )
    assert (
        "offered by several distributions: acme-first 1.0, acme-second 2.0" in table["acme_twice"]
    )
    assert len({line.index("family") for line in lines if "family" in line}) == 1


# one name


def test_a_strangers_variant_runs_by_its_name(strangers: Environment) -> None:
    worst = strangers.run(
        "import torch, attnkit\n"
        "draw = torch.Generator().manual_seed(0)\n"
        "query, key, value = torch.randn(3, 1, 2, 5, 4, generator=draw, dtype=torch.float64)\n"
        "mask = attnkit.causal() & attnkit.sliding_window(2)\n"
        "out = attnkit.attention(query, key, value, mask=mask, variant='acme_window')\n"
        "scores = query @ key.mT / 2\n"
        "seen = torch.ones(5, 5, dtype=torch.bool).tril().triu(-1)\n"
        "expected = scores.masked_fill(~seen, float('-inf')).softmax(-1) @ value\n"
        "show(float((out - expected).abs().max()))"
    )
    # float64 both ways, sums of at most 5 terms of size 1
    assert worst < 1e-14


def test_an_unknown_name_suggests_the_nearest(strangers: Environment) -> None:
    error = error_of(strangers, "attnkit.get_variant('acme_windwo')")
    assert error["type"] == "UnknownVariantError"
    assert error["text"].startswith(
        "no attention variant 'acme_windwo'. Did you mean 'acme_window'?"
    )
    assert "Installed: acme_arguments, acme_by_sum, acme_contract_later, " in error["text"]


def test_a_name_of_two_distributions_is_an_error_that_names_both(strangers: Environment) -> None:
    assert error_of(strangers, "attnkit.get_variant('acme_twice')") == {
        "type": "DuplicateVariantError",
        "text": "attention variant 'acme_twice' is offered by several distributions: "
        "acme-first 1.0, acme-second 2.0. Uninstall all but one of them.",
        "cause": "NoneType",
    }


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        (
            "acme_arguments",
            "Argument(s) {'registry'} are declared in the hookimpl but can not be found in the "
            "hookspec",
            "PluginValidationError",
        ),
        (
            "acme_contract_later",
            "acme_broken.contract_later (from acme-broken 2.1) requires plugin contract 1.99, and "
            "attnkit 0.1.0 has 1.0; a newer attnkit may have it; ",
            "NoneType",
        ),
        (
            "acme_contract_misspelt",
            "has an attnkit_api that is not 'MAJOR.MINOR': float 1.0",
            "NoneType",
        ),
        (
            "acme_contract_older",
            "requires plugin contract 0.9, and attnkit 0.1.0 has 1.0; update or uninstall",
            "NoneType",
        ),
        ("acme_exits", "failed to import: SystemExit: acme is done", "SystemExit"),
        ("acme_hookless", "has no hook attnkit_variants, or it returned None", "NoneType"),
        (
            "acme_incomplete",
            "returned an incomplete variant 'acme_incomplete': "
            "implementations must be a tuple, got NoneType",
            "NoneType",
        ),
        ("acme_misspelt", "unknown hook 'attnkit_variant' in plugin", "PluginValidationError"),
        (
            "acme_nowhere",
            "failed to import: ModuleNotFoundError: No module named 'acme_broken.nowhere'",
            "ModuleNotFoundError",
        ),
        (
            "acme_other_name",
            "did not return a variant named 'acme_other_name' (it returned: acme_something_else)",
            "NoneType",
        ),
        (
            "acme_raises",
            "failed to import: OSError: no acme driver on this machine",
            "OSError",
        ),
        ("acme_raises_later", "raised KeyError: 'acme' in attnkit_variants", "KeyError"),
        (
            "acme_single",
            "returned Variant, not an iterable from attnkit_variants",
            "NoneType",
        ),
        ("acme_skips", "failed to import: Skipped: acme needs a GPU", "Skipped"),
    ],
    ids=lambda given: given if given.startswith("acme_") else "",
)
def test_a_broken_plugin_is_an_error_with_its_owner_and_its_cause(
    strangers: Environment, name: str, text: str, cause: str
) -> None:
    error = error_of(strangers, f"attnkit.get_variant({name!r})")
    assert error["type"] == "BrokenPluginError"
    assert error["text"].startswith(f"attention variant {name!r}: acme_broken.")
    assert text in error["text"]
    assert error["text"].endswith("; update or uninstall acme-broken, or mend it if it is yours")
    assert error["cause"] == cause


def test_the_broken_are_reported_with_their_tracebacks_and_harm_no_other(
    strangers: Environment,
) -> None:
    found = strangers.run(
        "import attnkit\n"
        "from attnkit import registry\n"
        "broken = {str(each.entry.name): each for each in registry.default().broken()}\n"
        "show(dict(names=list(broken), text=broken['acme_raises'].traceback,\n"
        "    works=[attnkit.get_variant(name).name for name in ('acme_window', 'flash')]))"
    )
    variants = [
        "acme_arguments",
        "acme_contract_later",
        "acme_contract_misspelt",
        "acme_contract_older",
        "acme_exits",
        "acme_hookless",
        "acme_incomplete",
        "acme_misspelt",
        "acme_nowhere",
        "acme_other_name",
        "acme_raises",
        "acme_raises_later",
        "acme_single",
        "acme_skips",
    ]
    assert [name for name in found["names"] if name in variants] == variants
    assert found["names"][-3:] == ["broken", "contract", "wrong"]
    assert "acme_window" not in found["names"]
    assert "acme_broken/raises.py" in found["text"].replace("\\", "/")
    assert "OSError: no acme driver\non this machine" in found["text"]
    assert found["works"] == ["acme_window", "flash"]


# extensions


def test_an_extension_adds_an_implementation_behind_the_owners(strangers: Environment) -> None:
    names = strangers.run(
        "from attnkit import registry\n"
        "found = registry.default().implementations('acme_window')\n"
        "show([each.name for each in found])"
    )
    assert names == ["reference", "acme_faster"]


def test_an_extension_does_not_touch_other_variants(strangers: Environment) -> None:
    assert strangers.run(
        "from attnkit import registry\n"
        "own = registry.get_variant('flash').implementations\n"
        "show(registry.default().implementations('flash') == own)"
    )


def test_an_implementation_of_two_owners_is_an_error_that_names_both(
    strangers: Environment,
) -> None:
    error = error_of(strangers, "registry.default().implementations('acme_taken')")
    assert error["type"] == "DuplicateVariantError"
    assert error["text"] == (
        "implementation 'reference' of attention variant 'acme_taken' is offered by several "
        "distributions: acme-extra 0.3, acme-window 1.0. Uninstall all but one of them."
    )


def test_a_broken_extension_is_reported_in_words(strangers: Environment) -> None:
    found = strangers.run(
        "from attnkit import registry\nshow(list(map(str, registry.default().broken())))"
    )
    assert [text for text in found if text.startswith("extension 'broken'")] == [
        "extension 'broken': acme_extra.broken (from acme-extra 0.3) failed to import: "
        "ImportError: acme needs its compiler"
    ]
    assert (
        "extension 'contract': acme_extra.contract (from acme-extra 0.3) requires plugin contract "
        "2.0, and attnkit 0.1.0 has 1.0; a newer attnkit may have it"
    ) in found
    assert [text for text in found if text.startswith("extension 'wrong'")] == [
        "extension 'wrong': acme_extra.wrong (from acme-extra 0.3) returned list, not a mapping of "
        "variant names to implementations from attnkit_implementations"
    ]


# metadata that cannot be read

# pydantic, torch and pytest read every distribution's entry points at their start and fail at such
# a file; pydantic can be told not to, and then attnkit can say whose file it is
NO_PYDANTIC_PLUGINS = {"PYDANTIC_DISABLE_PLUGINS": "__all__"}


def test_metadata_that_cannot_be_read_is_reported_as_its_owners_broken_extension(
    unreadable: Environment,
) -> None:
    found = unreadable.run(
        "from attnkit import registry\n"
        "broken = registry.default().broken()\n"
        "show([str(each) for each in broken if each.entry.unreadable])",
        **NO_PYDANTIC_PLUGINS,
    )
    assert found == [
        "extension 'acme-latin': entry_points.txt (from acme-latin 0.1) is not UTF-8",
        "extension 'acme-malformed': entry_points.txt (from acme-malformed 0.1) is malformed: "
        "line 3 is 'acme_malformed acme_malformed', not 'name = module'",
    ]


def test_metadata_that_cannot_be_read_harms_no_other_distribution(unreadable: Environment) -> None:
    found = unreadable.run(
        "import attnkit\n"
        "names = [row.name for row in attnkit.list_variants()]\n"
        "show(['flash' in names, attnkit.get_variant('acme_window').name])",
        **NO_PYDANTIC_PLUGINS,
    )
    assert found == [True, "acme_window"]


def test_an_unknown_name_tells_of_metadata_that_cannot_be_read(unreadable: Environment) -> None:
    text = error_of(unreadable, "attnkit.get_variant('acme_malformed')", **NO_PYDANTIC_PLUGINS)[
        "text"
    ]
    assert "acme-malformed 0.1: entry_points.txt is malformed: line 3 is" in text
    assert text.endswith(".")
    assert "stranger" not in text


def test_threads_that_ask_first_at_once_share_one_registry(strangers: Environment) -> None:
    assert strangers.run(
        "import threading\n"
        "from attnkit import registry\n"
        "sys.setswitchinterval(1e-6)\n"
        "start, found = threading.Barrier(8), []\n"
        "def ask():\n    start.wait()\n    found.append(registry.default())\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "show([len(found), len(set(map(id, found)))])"
    ) == [8, 1]


# leaving


def test_what_is_uninstalled_is_gone_and_its_rival_works_again(
    strangers: Environment, tmp_path: Path
) -> None:
    changed = strangers.copy(tmp_path / "venv")
    changed.pip("uninstall", "--yes", "acme-first", "acme-extra")
    found = changed.run(
        "from attnkit import registry\n"
        "show([[str(row.entry) for row in registry.list_variants() if row.name == 'acme_twice'],\n"
        "    [each.name for each in registry.default().implementations('acme_window')]])"
    )
    assert found == [["acme-second 2.0"], ["reference"]]


def test_a_stranger_who_takes_a_built_in_name_stops_nobody_who_does_not_ask_for_it(
    strangers: Environment, tmp_path: Path
) -> None:
    folder = tmp_path / "other-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text("[attnkit]\nflash = other_flash\n")
    found = strangers.run(
        f"import sys\nsys.path.append({str(tmp_path)!r})\n"
        "import attnkit, torch\n"
        "x = torch.randn(1, 1, 4, 8)\n"
        "shapes = [list(attnkit.attention(x, x, x).shape)]\n"
        "(own,) = [each for each in attnkit.registry.default().offered_by('attnkit')\n"
        "          if each.name == 'flash']\n"
        "shapes.append(list(attnkit.attention(x, x, x, variant=own).shape))\n"
        "try:\n    attnkit.get_variant('flash')\n"
        "except attnkit.AttnkitError as error:\n    show([shapes, str(error)])"
    )
    assert found[0] == [[1, 1, 4, 8], [1, 1, 4, 8]]
    assert "offered by several distributions: attnkit" in found[1]
    assert "other 0.1" in found[1]
