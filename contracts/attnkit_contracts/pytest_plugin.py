"""The suite as a pytest plugin: options, parametrisation, one test per check instance.

    pytest --pyargs attnkit_contracts --attnkit-variant flash
    pytest --pyargs attnkit_contracts                             # all that is installed

An author's own test file says which variants it is about:

    from attnkit_contracts import parametrize

    @parametrize("acme_window")
    def test_conformance(instance):
        instance.run().raise_for_status()

This module is loaded by every run of pytest, so it imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

try:
    import pytest
except ModuleNotFoundError as error:
    from attnkit.versions import missing

    raise missing(error, "check", "attnkit_contracts.parametrize") from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit.interface import Variant
    from attnkit_contracts.reports.expectations import ExpectedFailure, Given
    from attnkit_contracts.running.instance import Instance

MARK = "attnkit_conformance"
ARGUMENT = "instance"

Function = TypeVar("Function", bound="Callable[..., object]")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("attnkit", "conformance of attention variants")
    group.addoption(
        "--attnkit-variant",
        action="append",
        default=[],
        metavar="NAME",
        help="variant to check; repeatable; default: all that are installed",
    )
    group.addoption(
        "--attnkit-tier",
        choices=("fast", "standard", "full"),
        default="fast",
        help="run the checks of this tier and of those before it",
    )
    group.addoption(
        "--attnkit-device", default="cpu", metavar="DEVICE", help="device of the inputs"
    )
    group.addoption(
        "--attnkit-expected-failures",
        default=None,
        metavar="FILE",
        help="a .toml or .json file of failures that are known",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark of `parametrize` known."""
    config.addinivalue_line(
        "markers", f"{MARK}(*variants, expected_failures=None): run the conformance suite on these"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that bears the mark one call per check instance."""
    mark = metafunc.definition.get_closest_marker(MARK)
    if mark is None:
        return
    option = metafunc.config.option
    found = instances(
        *(mark.args or option.attnkit_variant),
        tier=option.attnkit_tier,
        device=option.attnkit_device,
    )
    given = mark.kwargs.get("expected_failures")
    expected = _expected(found, given, option.attnkit_expected_failures)
    metafunc.parametrize(
        ARGUMENT,
        [
            pytest.param(each, marks=[_xfail(expected[each.id])] if each.id in expected else [])
            for each in found
        ],
        ids=[each.id for each in found],
    )


def _expected(
    found: tuple[Instance, ...], given: Given | None, file: str | None
) -> dict[str, ExpectedFailure]:
    """Return by id what a test and the option expect to fail.

    Raises:
        pytest.UsageError: The file is wrong, an id is unknown or listed twice, one has expired.
    """
    if not given and not file:
        return {}
    from attnkit.errors import AttnkitError
    from attnkit_contracts.reports.expectations import by_id, read_expected
    from attnkit_contracts.running.plan import must_exist

    try:
        listed = read_expected(Path(file)) if file else ()
        expected = by_id((*by_id(given).values(), *listed))
        must_exist(expected, found)
    except AttnkitError as error:
        raise pytest.UsageError(str(error)) from error
    return expected


def _xfail(expected: ExpectedFailure) -> pytest.MarkDecorator:
    """Return a mark under which only a broken rule is expected, and a pass is a failure."""
    from attnkit_contracts.reports.records import RuleBrokenError

    return pytest.mark.xfail(reason=str(expected), raises=RuleBrokenError, strict=True)


def instances(*variants: Variant | str, tier: str, device: str) -> tuple[Instance, ...]:
    """Plan the instances of some variants, in a fixed order and with fixed ids.

    Raises:
        pytest.UsageError: A variant is unknown or broken, or nothing of what was asked for runs.
    """
    from attnkit.errors import AttnkitError
    from attnkit_contracts.running.plan import plan

    try:
        found = plan(*variants, tier=tier, device=device)  # type: ignore[arg-type]  # an option, checked there
    except AttnkitError as error:
        raise pytest.UsageError(str(error)) from error
    if not found:
        named = ", ".join(map(str, variants)) or "what is installed"
        raise pytest.UsageError(f"no check applies to {named} on {device}: nothing would be tested")
    return found


def parametrize(
    *variants: Variant | str, expected_failures: Given | None = None
) -> Callable[[Function], Function]:
    """Run a test once per check instance of these variants, passed as ``instance``.

    Args:
        variants: Names or variants; none for those of ``--attnkit-variant``, or all.
        expected_failures: As of `attnkit_contracts.check`: one that fails is an xfail of pytest,
            one that passes a failure.
    """
    # built by name: a mark that is given one function and nothing else decorates it
    mark = getattr(pytest.mark, MARK).with_args(*variants, expected_failures=expected_failures)

    def decorate(function: Function) -> Function:
        marked: Function = mark(function)
        return marked

    if len(variants) == 1 and callable(variants[0]):
        raise TypeError("write @parametrize() or @parametrize('name'), with parentheses")
    return decorate
