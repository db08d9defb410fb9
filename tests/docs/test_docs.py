"""The pages keep up with the code: every name has its place, every link leads somewhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import generate
import pytest

import attnkit
import attnkit_contracts
from attnkit import errors, hookspecs
from attnkit.promises import Promises
from attnkit.registry import registry
from attnkit_contracts.cli.app import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted(DOCS.rglob("*.md"))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def named(page: str) -> set[str]:
    """Return what has a heading or the first cell of a table row, without its markup."""
    text = FENCE.sub("", (REFERENCE / page).read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    cells = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    plain = (re.sub(r"\[(.+?)\]\(.+?\)", r"\1", found) for found in headings + cells)
    return {found.replace("`", "").strip() for found in plain}


def built_ins() -> list[attnkit.Variant]:
    entries = registry.default().entries()
    return [attnkit.get_variant(each.name) for each in entries if each.owner == "attnkit"]


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def test_every_public_name_is_in_the_reference() -> None:
    assert set(attnkit.__all__) <= named("interface.md")


def test_every_promise_is_in_the_reference() -> None:
    assert set(Promises.model_fields) <= named("interface.md")


def test_every_public_name_of_the_suite_is_in_the_reference() -> None:
    page = (REFERENCE / "checks.md").read_text()
    assert [name for name in attnkit_contracts.__all__ if f"`{name}`" not in page] == []


def test_every_built_in_variant_has_its_section() -> None:
    variants = {variant.name for variant in built_ins()}
    assert len(variants) >= 9
    assert variants <= named("variants.md")


@pytest.mark.parametrize("variant", built_ins(), ids=lambda variant: variant.name)
def test_every_implementation_has_a_row_in_its_variants_section(variant: attnkit.Variant) -> None:
    page = (REFERENCE / "variants.md").read_text()
    section = page.partition(f"\n## {variant.name}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert {each.name for each in variant.implementations} <= set(rows)


def test_every_check_has_a_row() -> None:
    own = {
        each.id
        for each in attnkit_contracts.all_checks()
        if each.function.__module__.startswith("attnkit_contracts.")
    }
    assert own <= named("checks.md")


def test_every_error_class_has_a_row() -> None:
    classes = (each for each in vars(errors).values() if inspect.isclass(each))
    assert {each.__name__ for each in classes} <= named("errors.md")


def test_every_hook_has_a_heading() -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("attnkit_")}
    assert len(hooks) == 6
    assert hooks <= named("hooks.md")


def test_every_command_has_a_heading() -> None:
    commands = {each.name or each.callback.__name__ for each in app.registered_commands}
    assert {f"attnkit {name}" for name in commands} <= named("command-line.md")


def test_every_generated_part_is_committed_as_it_is_made() -> None:
    pages = generate.pages()
    stale = [
        page.name for page in pages if generate.generated(page.read_text()) != page.read_text()
    ]
    assert stale == [], "run: python docs/_build/generate.py"


def test_every_generator_has_its_place() -> None:
    used = [name for page in PAGES for _, name, _ in generate.PART.findall(page.read_text())]
    assert sorted(used) == sorted(generate.PARTS)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text())
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def test_every_page_can_be_reached_from_the_index() -> None:
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(page.read_text()))
        waiting += [
            (page.parent / link).resolve()
            for link in links
            if link.endswith(".md") and "://" not in link
        ]
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_is_executed(page: Path) -> None:
    """As a doctest, or as a file of a page that ``test_tutorial.py`` follows."""
    text = page.read_text()
    written = re.findall(r"^File `[^`]+`:\n\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    blocks = [body for language, body in FENCE.findall(text) if language == "python"]
    idle = [body for body in blocks if not body.startswith(">>> ") and body not in written]
    assert idle == []
