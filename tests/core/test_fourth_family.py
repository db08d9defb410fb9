"""A family that attnkit does not have is brought from outside: listed, run by its door, refused."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch

import attnkit
import attnkit_contracts
from attnkit.choice.front import choose
from attnkit.errors import (
    ArgumentError,
    DuplicateVariantError,
    RegistryError,
    SwapRefusedError,
    UnknownVariantError,
    UnsupportedError,
)
from attnkit.families import Family
from attnkit.registry.registry import default
from attnkit_contracts.subjects.families import SuiteFamily

sys.path.insert(0, str(Path(__file__).with_name("distributions") / "acme-ranking"))

from acme_ranking import BY_SUM
from acme_ranking.family import RANKING, RankingProblem, rank

if TYPE_CHECKING:
    from collections.abc import Iterator


CALL = RankingProblem(device="cpu", dtype="float32", query_length=8)


@pytest.fixture
def ranking() -> Iterator[None]:
    with attnkit.register(RANKING), attnkit.register(BY_SUM):
        yield


def test_a_variant_of_a_family_that_nobody_brings_is_refused_with_the_families_there_are() -> None:
    with pytest.raises(ArgumentError, match="family must be one of softmax, recurrence, feedforw"):
        attnkit.register(BY_SUM)


@pytest.mark.usefixtures("ranking")
def test_it_is_listed_and_explained() -> None:
    assert "acme_by_sum" in str(attnkit.list_variants())
    assert "ranking" in str(attnkit.list_variants())
    assert default().family("ranking") is RANKING


@pytest.mark.usefixtures("ranking")
def test_its_calls_are_chosen_for_by_its_own_problem() -> None:
    chosen = choose("acme_by_sum", CALL)
    assert torch.equal(chosen.function(torch.eye(4)[None], margin=0.0), rank(torch.eye(4)[None]))
    asking = RankingProblem(device="cpu", dtype="float32", query_length=8, margin=True)
    with pytest.raises(UnsupportedError, match="margin: asked for, not promised"):
        choose("acme_by_sum", asking)


@pytest.mark.usefixtures("ranking")
def test_other_doors_refuse_it_and_name_its_own() -> None:
    x = torch.randn(1, 1, 4, 8)
    with pytest.raises(ArgumentError, match=r"of family 'ranking'.*run it through acme.rank"):
        attnkit.attention(x, x, x, variant="acme_by_sum")
    with pytest.raises(ArgumentError, match=r"must be of family 'recurrence'.*'ranking'"):
        attnkit.recurrence(x, x, x, variant="acme_by_sum")


@pytest.mark.usefixtures("ranking")
def test_a_swap_refuses_it_by_name_until_it_says_how_its_variants_stand() -> None:
    model = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True)
    with pytest.raises(SwapRefusedError, match=r"'acme_by_sum' \(family ranking\) declares no pl"):
        attnkit.swap(model, "acme_by_sum")


@pytest.mark.usefixtures("ranking")
def test_its_layer_is_created_by_name() -> None:
    assert attnkit.create("acme_by_sum", embed_dim=4)(torch.randn(1, 3, 4)).shape == (1, 3, 4)


class Environment(Protocol):
    packages: Path

    """The fixture ``strangers``, see `conftest.py`."""

    def run(self, code: str, **variables: str) -> Any: ...
    def copy(self, folder: Path) -> Environment: ...


def test_installed_it_is_found_by_its_hook_listed_and_checked_by_the_suite(
    strangers: Environment,
) -> None:
    found = strangers.run(
        "import attnkit, attnkit_contracts\n"
        "report = attnkit_contracts.check('acme_by_sum', dtypes=['float32'])\n"
        "(row,) = [row for row in attnkit.list_variants() if row.name == 'acme_by_sum']\n"
        "show({'cells': row.cells()[:4], 'passed': report.passed, 'counts': report.counts(),\n"
        "      'red': [each.id + each.reason for each in report.failures()]})"
    )
    assert found["cells"] == ["acme_by_sum", "ranking", "acme-ranking 1.0", "different"]
    assert found["red"] == []
    assert found["passed"]
    assert found["counts"]["passed"] > 20


@pytest.mark.usefixtures("ranking")
def test_a_name_is_taken_once() -> None:
    with pytest.raises(DuplicateVariantError, match="family 'ranking' is already offered"):
        attnkit.register(RANKING)


def test_undoing_an_earlier_registration_leaves_a_later_one_of_the_same_family() -> None:
    earlier = attnkit.register(RANKING)
    earlier.undo()

    with attnkit.register(RANKING):
        earlier.undo()
        assert default().family("ranking") is RANKING


def test_a_family_of_which_variants_stand_is_not_taken_back() -> None:
    family, variant = attnkit.register(RANKING), attnkit.register(BY_SUM)
    with pytest.raises(RegistryError, match="'ranking' cannot be taken back: acme_by_sum of it st"):
        family.undo()
    assert default().get("acme_by_sum") is BY_SUM

    variant.undo()
    family.undo()
    with pytest.raises(UnknownVariantError):
        default().family("ranking")


def test_a_name_that_an_installed_distribution_has_is_taken_whatever_was_asked_before(
    strangers: Environment,
) -> None:
    told = strangers.run(
        "import attnkit\n"
        "from attnkit.errors import DuplicateVariantError\n"
        "from attnkit.families import Family\n"
        "try:\n"
        "    attnkit.register(Family(name='ranking', summary='', door='x'))\n"
        "except DuplicateVariantError as error: show(str(error))"
    )
    assert "family 'ranking' is already offered by acme-ranking 1.0" in told


def test_two_distributions_of_one_family_break_its_variants_and_nothing_else(
    strangers: Environment, tmp_path: Path
) -> None:
    both = strangers.copy(tmp_path / "venv")
    metadata = both.packages / "twin_ranking-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: twin-ranking\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("[attnkit.extensions]\ntwin = twin_ranking\n")
    (both.packages / "twin_ranking.py").write_text(
        "import attnkit\n"
        "from attnkit.families import Family\n"
        "@attnkit.hookimpl\n"
        "def attnkit_families():\n"
        "    return (Family(name='ranking', summary='', door='x'),)\n",
        encoding="utf-8",
    )
    found = both.run(
        "import attnkit\n"
        "from attnkit.registry.registry import default\n"
        "show({'broken': [str(each) for each in default().broken()],\n"
        "      'listed': [row.name for row in attnkit.list_variants()]})"
    )
    (told,) = (each for each in found["broken"] if "'acme_by_sum'" in each)
    assert "family 'ranking' is offered by several distributions: acme-ranking 1.0, " in told
    assert "flash" in found["listed"]


def test_attnkits_own_names_are_taken() -> None:
    with pytest.raises(ArgumentError, match="'softmax' is attnkit's own"):
        attnkit.register(Family(name="softmax", summary="", door=""))


def test_a_promise_of_another_family_is_refused_by_name() -> None:
    variant = attnkit.get_variant("multi_head")
    promises = variant.promises.model_copy(update={"beta": True})
    wrong = attnkit.Variant(
        **{
            name: getattr(variant, name)
            for name in ("family", "summary", "source", "relation", "config", "layer")
        },
        name="acme_wrong",
        promises=promises,
        implementations=variant.implementations,
    )
    with pytest.raises(
        ArgumentError, match=r"promises: beta is nothing that .* 'softmax' can prom"
    ):
        attnkit.register(wrong)


def test_the_page_on_families_shows_this_distribution_to_the_letter() -> None:
    folder = Path(__file__).with_name("distributions") / "acme-ranking"
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "write-a-family.md").read_text()
    shown = re.findall(r"^File `([^`]+)`:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in shown} == {
        str(path.relative_to(folder))
        for path in folder.rglob("*.*")
        if path.suffix in (".py", ".toml")
    }
    for name, text in shown:
        assert (folder / name).read_text() == text


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("problem", dict, "problem must be a subclass of Problem, got the class dict"),
        ("promises", 3, "promises must be a subclass of CommonPromises, got int 3"),
        ("kind", "middle", "kind must be one of attention, feedforward, got 'middle'"),
        ("first_call", 3, "first_call must be 'package.module:attribute' or a callable or None"),
    ],
)
def test_a_wrong_field_of_a_family_is_named(field: str, value: Any, told: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(told)):
        attnkit.register(replace(RANKING, **{field: value}))


@pytest.mark.usefixtures("ranking")
def test_a_report_says_that_nothing_compared_implementations_of_a_family_without_a_suite() -> None:
    other = replace(BY_SUM.implementations[0], name="other")
    variant = replace(
        BY_SUM, name="acme_two_ways", implementations=(*BY_SUM.implementations, other)
    )
    report = attnkit_contracts.check(variant, dtypes=["float32"], implementations=["layer"])
    assert report.header.uncompared == ("acme_two_ways",)
    assert "Implementations not compared" in report.to_markdown()


@pytest.mark.parametrize(
    ("suite", "told"),
    [
        ("acme_ranking.nowhere:SUITE", "suite 'acme_ranking.nowhere:SUITE' does not load"),
        (
            SuiteFamily(name="other"),
            "suite must be an attnkit_contracts.SuiteFamily of that name",
        ),
    ],
)
def test_a_suite_that_is_none_is_refused_with_the_name_of_the_family(suite: Any, told: str) -> None:
    with (
        attnkit.register(replace(RANKING, suite=suite)),
        pytest.raises(ArgumentError, match=f"family 'ranking': {told}"),
    ):
        attnkit_contracts.check(BY_SUM, dtypes=["float32"])
