"""What is found out about a failure; made by `diagnosis`, which imports torch."""

from __future__ import annotations

from dataclasses import dataclass

NAMED = "equals the definition"
"""How the diagnosis of a failure begins that a named mistake explains."""


@dataclass(frozen=True)
class Explanation:
    """What a record says about a failure, as text.

    Attributes:
        diagnosis: Which named mistake explains it, or that none does.
        smallest: The smallest call that was found to show it.
        elements: Some wrong elements, expected and got.
        script: Python that shows it without the suite; empty where that is not possible.
        named: The names of the mistakes that explain it.
    """

    diagnosis: str = ""
    smallest: str = ""
    elements: str = ""
    script: str = ""
    named: tuple[str, ...] = ()
