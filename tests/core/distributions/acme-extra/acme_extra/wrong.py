"""Answers with a list where a mapping belongs."""

import attnkit


@attnkit.hookimpl
def attnkit_implementations() -> list[str]:
    """Forget whose implementations they are."""
    return ["acme_window"]
