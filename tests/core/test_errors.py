"""The exception tree: as it is drawn, and catchable as the built-ins it also is."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from attnkit import errors
from attnkit.errors import AttnkitError

CLASSES = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if each.__module__ == errors.__name__ and not issubclass(each, Warning)
]


def drawn() -> dict[str, tuple[str, str | None]]:
    """Read the tree in the module's docstring: name -> parent and built-in."""
    found: dict[str, tuple[str, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"(    [ │├└─]*)(\w+Error)(?: \((\w+)\))?", line)
        if match:
            depth = (len(match[1]) - 4) // 4
            path[depth:] = [match[2]]
            found[match[2]] = (path[depth - 1] if depth else "Exception", match[3])
    return found


def test_every_error_is_drawn_in_the_tree() -> None:
    assert sorted(drawn()) == sorted(each.__name__ for each in CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_has_the_parent_and_the_built_in_it_is_drawn_with(
    kind: type[Exception],
) -> None:
    parent, built_in = drawn()[kind.__name__]
    assert [base.__name__ for base in kind.__bases__] == [parent, *filter(None, [built_in])]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_is_caught_as_ours_and_prints_its_message_as_it_is(kind: type[Exception]) -> None:
    message = "num_heads must be a multiple of num_kv_heads, got 6 and 4"
    with pytest.raises(AttnkitError) as caught:
        raise kind(message)
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_crosses_a_process_boundary(kind: type[Exception]) -> None:
    back = pickle.loads(pickle.dumps(kind("got 6 and 4")))
    assert type(back) is kind
    assert str(back) == "got 6 and 4"


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_says_what_it_is_for(kind: type[Exception]) -> None:
    assert kind.__doc__
    assert kind.__doc__ != kind.__bases__[0].__doc__
